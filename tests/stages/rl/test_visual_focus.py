"""The visual-focus reward, by hand."""

from __future__ import annotations

import pytest

from safework_cli.core.registry import load_registered
from safework_cli.data.row import Image, Message, Row
from safework_data import drawn
from safework_rl.config import FormatSettings, LanguageSettings
from safework_rl.objectives import RegisteredReward, TaskRewards
from safework_rl.registry import REWARDS
from safework_rl.visual_focus import focus, occurrences, visual_focus

SHOWS, SHOWS_NOT = ["red circle", "red circle", "blue square", "green square"], ["blue circle", "red square", "black circle"]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("a red circle, a Red Circle; one blue square and a green square", 1.0),
        ("1 red circle, 2 blue square", 2 / 4),  # recall 1/2, nothing wrong
        ("red circle, red circle, red circle, red circle", 2 / 4),  # said more often than it is there: no more and no less
        ("red circle, red square", 1 / 4 * 1 / 2),  # recall 1/4, precision 1/2
        ("red circle, red circle, blue square, green square, blue circle, red square, black circle", 4 / 7),  # everything that there is
        ("I look at the image closely before I conclude.", 0.0),
        ("reddish circles, circle red", 0.0),
        ("", 0.0),
    ],
)
def test_recall_times_precision_by_hand(reply: str, expected: float) -> None:
    assert focus(SHOWS, SHOWS_NOT, reply) == pytest.approx(expected)


def test_words_in_a_row_are_counted() -> None:
    assert occurrences("A 3", ["a", "3", "b", "3", "a", "3"]) == 2 and occurrences("A 3", ["a", "30"]) == 0
    assert occurrences("红圆", ["红", "圆", "红"]) == 1 and occurrences("…", ["a"]) == 0


def row(question: str = "How many?", *, image: bool = True, **meta) -> Row:
    images = [Image(bytes=b"x", path=None)] if image else []
    return Row("r", "general", [Message(role="user", content=question)], images=images, meta=meta)


def test_rows_without_an_image_or_annotations_earn_the_same_whatever_is_said() -> None:
    rows = [row(image=False, shows=SHOWS), row(), row(shows=SHOWS, shows_not=SHOWS_NOT)]
    assert visual_focus(rows, ["nothing"] * 3) == [1.0, 1.0, 0.0]


def test_a_phrase_that_the_question_names_may_be_denied() -> None:
    asked = row("Is there a blue circle?", shows=["red circle"], shows_not=["blue circle", "red square"])
    assert visual_focus([asked] * 2, ["a red circle, no blue circle", "a red circle, a red square"]) == [1.0, 0.5]


def test_it_is_registered_and_joins_a_route_with_a_small_weight() -> None:
    reward = RegisteredReward("visual_focus", load_registered(REWARDS, "visual_focus", "reward"))
    verifiers = {"visual_focus": reward, "format": Always(), "first": Always()}
    rewards = TaskRewards({"general": {"first": 1.0, "visual_focus": 0.25}}, verifiers, FormatSettings(), LanguageSettings(mode="off"), 0.5)
    rows = [row(shows=["red circle"], shows_not=[])] * 2
    scored = rewards.score(rows, ["<think>a red circle</think>1", "<think>I count.</think>1"])
    assert scored.reward == pytest.approx([1.0, 0.8])


class Always:
    name = "always"

    def judge(self, exchanges):
        from safework_cli.verifiers import Verdict

        return [Verdict(1.0) for _ in exchanges]


def test_worked_replies_of_the_drawn_set_earn_all_of_it() -> None:
    made = [each for each in drawn.build(0, 48, 96) if each.subset == "cot"]
    rows = [drawn.drawn_row(each, 96) for each in made]
    assert visual_focus(rows, [str(each.reply) for each in rows]) == [1.0] * 48
