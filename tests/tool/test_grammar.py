"""The grammar of search episodes: what it writes it reads back, and what it refuses it explains."""

import pytest

from safework_cli.data.reply import make_reply
from safework_cli.environments.search.grammar import (
    SEARCH_INSTRUCTION,
    Action,
    Malformed,
    document_observation,
    final_action,
    opening,
    parse_action,
    read_action,
    results_observation,
    search_action,
)


@pytest.mark.parametrize(
    ("written", "action"),
    [
        (search_action(" blue glass "), Action("search", query="blue glass")),
        (search_action("云泽镇 青螺河"), Action("search", query="云泽镇 青螺河")),
        (read_action(3), Action("read", number=3)),
        (final_action(0, "unknown"), Action("answer", confidence=0, answer="unknown")),
        (final_action(10, "a < b\nand c"), Action("answer", confidence=10, answer="a < b\nand c")),
    ],
)
def test_round_trip(written, action):
    assert parse_action(make_reply("A thought.", written)) == action


def test_white_space_around_the_parts_is_allowed():
    assert parse_action("\n<think> t </think>\n\n<confidence> 7 </confidence>\n<answer> Rome </answer>\n") == Action(
        "answer", confidence=7, answer="Rome"
    )


@pytest.mark.parametrize(
    ("turn", "clue"),
    [
        ("<search>x</search>", "before the action"),
        ("", "after </think>"),
        ("<think>t", "close the thought"),
        ("t</think><read>1</read>", "open the thought"),
        ("<think> </think><read>1</read>", "thought is empty"),
        ("<think>t</think>", "after </think>"),
        ("<think>a</think><think>b</think><read>1</read>", "only one"),
        ("Well, <think>t</think><read>1</read>", "nothing before"),
        ("<think><read>1</read></think>go", "not inside the thought"),
        ("<think>t</think>Rome", "no action"),
        ("<think>t</think><search>x", "opening and closing"),
        ("<think>t</think><search>x</search> now", "nothing but the action"),
        ("<think>t</think><search>x</search><read>1</read>", "one action"),
        ("<think>t</think><read>1</read><read>2</read>", "one action"),
        ("<think>t</think><search> </search>", "no words"),
        ("<think>t</think><search>a<read>1</read></search>", "inside another"),
        ("<think>t</think><search>a</search></read>", "opening and closing"),
        ("<think>t</think><read>first</read>", "number of a result"),
        ("<think>t</think><read>0</read>", "from 1"),
        ("<think>t</think><read>-1</read>", "from 1"),
        ("<think>t</think><read>٣</read>", "number of a result"),
        ("<think>t</think><answer>Rome</answer>", "final action"),
        ("<think>t</think><confidence>5</confidence>", "final action"),
        ("<think>t</think><answer>Rome</answer><confidence>5</confidence>", "in this order"),
        ("<think>t</think><search>x</search><confidence>5</confidence><answer>Rome</answer>", "alone"),
        ("<think>t</think><confidence>11</confidence><answer>Rome</answer>", "0 to 10"),
        ("<think>t</think><confidence>high</confidence><answer>Rome</answer>", "0 to 10"),
        ("<think>t</think><confidence>7.5</confidence><answer>Rome</answer>", "0 to 10"),
        ("<think>t</think><confidence>5</confidence><answer> </answer>", "answer is empty"),
    ],
)
def test_malformed_turns_say_why(turn, clue):
    found = parse_action(turn)
    assert isinstance(found, Malformed) and clue in found.reason


def test_observations_are_numbered_from_one():
    assert results_observation([("Torvelle", "A town."), ("Lake", "A lake.")]) == "Results:\n1. Torvelle: A town.\n2. Lake: A lake."
    assert results_observation([]).startswith("No results")
    assert document_observation("Torvelle", "It is old.") == "Document: Torvelle\nIt is old."


def test_opening_holds_the_instruction_and_the_question():
    assert opening(" Who? ") == f"{SEARCH_INSTRUCTION}\n\nQuestion: Who?"
    assert isinstance(parse_action(SEARCH_INSTRUCTION), Malformed)  # an echo of the instruction is not an action
