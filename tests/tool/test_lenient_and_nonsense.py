"""The rules ``lenient`` and ``nonsense`` on replies as SmolLM2-135M wrote them."""

from __future__ import annotations

from typing import Any

import pytest

from safework_cli.verifiers import Exchange
from safework_cli.verifiers.rules import CorrectnessRule, rule_verifier
from safework_cli.verifiers.rules.nonsense import LOOP_SHARE, kind_of, repeated_share


def exchange(question: str, reply: str, answer: str | None, kind: str | None = "exact", **meta: Any) -> Exchange:
    given = {"answer_type": kind, **meta} if kind else meta
    return Exchange([{"role": "user", "content": question}], reply, answer, None, given)


def scores(given: Exchange) -> tuple[float | None, float | None]:
    """Strict and lenient."""
    return CorrectnessRule().judge([given])[0].score, rule_verifier("lenient").judge([given])[0].score


CITIES = {"choices": ["Oslo", "Amman", "Accra", "Bangkok"]}
CURRENCIES = {"choices": ["real", "yen", "forint", "yuan"]}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # a fact in a sentence
        (exchange("Name the capital of New Zealand.", "The capital city of New Zealand is Wellington.", "Wellington"), (0.0, 1.0)),
        (exchange("Give the symbol of neon.", 'Neon is a chemical element with the chemical symbol "Ne" and is a gas.', "Ne"), (0.0, 1.0)),
        (exchange("Name the capital of New Zealand.", "The capital is not Wellington.", "Wellington"), (0.0, 0.0)),
        (exchange("Which animals are there?", "The Veranis is a mountain, not a mountain.", "dwarf hawks"), (0.0, 0.0)),
        (exchange("Is it far?", "Well, no, or rather yes.", "yes"), (0.0, 0.0)),
        (exchange("Is it far?", "I would say yes, since it is ten miles away.", "yes"), (0.0, 1.0)),
        (exchange("In the thought only.", "<think>It is Wellington.</think>I am not sure.", "Wellington"), (0.0, 0.0)),
        # the last number
        (exchange("Squares on a chessboard?", "The number of squares on a chessboard is 64.", "64"), (0.0, 1.0)),
        (exchange("Squares on a chessboard?", "There are 64 squares in 8 rows.", "64"), (0.0, 0.0)),
        (exchange("How many apples?", "First 3 + 9 = 12, now 12 + 12 = 24. The answer is 24.", "12", "math"), (0.0, 0.0)),
        (exchange("How much?", "It costs 1,250.50 in all.", "1250.5"), (0.0, 1.0)),
        # the text of one option, whatever the letter
        (exchange("Japan?", "A. yen\n\nThe correct answer is A. yen.", "B", "choice", **CURRENCIES), (0.0, 1.0)),
        (exchange("Ghana?", "A. Oslo", "C", "choice", **CITIES), (0.0, 0.0)),
        (exchange("Ghana?", "A. Oslo\nB. Amman\nC. Accra\nD. Bangkok", "C", "choice", **CITIES), (0.0, 0.0)),
        (exchange("Ghana?", "A. Oslo\n\nThe correct answer is C. Accra.", "C", "choice", **CITIES), (1.0, 1.0)),
        (exchange("Ghana?", "C", "C", "choice", **CITIES), (1.0, 1.0)),
        (exchange("Plan: carve your name.", "A. bad\nB. good", "A", "choice", choices=["bad", "good"]), (0.0, 0.0)),
        # a letter that is stated counts, unless the right text follows it
        (exchange("Ghana?", "The answer is A. Some people say Accra.", "C", "choice", **CITIES), (0.0, 0.0)),
        (exchange("Ghana?", "B\n\nAccra is the capital of Ghana, not Jordan.", "C", "choice", **CITIES), (0.0, 0.0)),
        (exchange("Ghana?", "D. It is not in Accra", "C", "choice", **CITIES), (0.0, 0.0)),
        (exchange("Ghana?", "Answer: B. Compare Accra.", "C", "choice", **CITIES), (0.0, 0.0)),
        (exchange("Ghana?", "A. Accra is nice.", "C", "choice", **CITIES), (0.0, 0.0)),
        (exchange("Ghana?", "The answer is A) Accra", "C", "choice", **CITIES), (0.0, 1.0)),
        (exchange("Ghana?", "B. Accra", "C", "choice", **CITIES), (0.0, 1.0)),
        # candidates, and what is doubted
        (exchange("Capital?", "It could be Auckland, Sydney, Canberra, Wellington or Perth.", "Wellington"), (0.0, 0.0)),
        (exchange("Capital?", "Wellington or Auckland", "Wellington"), (0.0, 0.0)),
        (exchange("Capital?", "Either Auckland or Wellington.", "Wellington"), (0.0, 0.0)),
        (exchange("Capital?", "可能是奥克兰或惠灵顿", "惠灵顿"), (0.0, 0.0)),
        (exchange("Is it far?", "I don't think yes", "yes"), (0.0, 0.0)),
        (exchange("Capital?", "I don't think it is Wellington.", "Wellington"), (0.0, 0.0)),
        (exchange("Capital?", "I doubt that it's Wellington.", "Wellington"), (0.0, 0.0)),
        (exchange("Capital?", "It may be Auckland or Wellington. In fact, it is Wellington.", "Wellington"), (0.0, 1.0)),
        (exchange("Capital?", "It is Wellington, or rather its centre.", "Wellington"), (0.0, 1.0)),
        (exchange("Capital?", "I am not sure, but Wellington it is.", "Wellington"), (0.0, 1.0)),
        (exchange("Capital?", "Whether or not you like it, it is Wellington.", "Wellington"), (0.0, 1.0)),
        (exchange("Where?", "It is the United States or USA.", "USA", aliases=["United States"]), (0.0, 1.0)),
        (exchange("How?", "One learns by trial or error.", "trial or error"), (0.0, 1.0)),
    ],
)  # fmt: skip
def test_lenient(given: Exchange, expected: tuple[float, float]) -> None:
    assert scores(given) == expected


def test_constraints_have_no_lenient_form() -> None:
    kept = [{"type": "lowercase"}, {"type": "max_words", "n": 3}]
    given = exchange("Describe a library.", "a library in lowercase is big", None, None, constraints=kept)
    assert scores(given) == (0.5, 0.5)


def test_what_the_strict_rule_cannot_score_stays_an_error() -> None:
    assert rule_verifier("lenient").judge([exchange("What?", "four", "four", None)])[0].error is not None


LOOP = (
    "The human mind is a silent killer, a silent killer of the soul. "
    + "It's a silent killer of the soul, a silent killer of the soul. " * 6
)
HELP = (
    "Cut a slit in each lemon, warm it for ten seconds, and press it over a bowl. A fork turned in the half gets the rest of the juice out."
)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (HELP, "readable"),
        (f"<think>Lemons. No.</think>{HELP}", "readable"),
        (LOOP, "loop"),
        (f"<think>{LOOP}</think>{HELP}", "readable"),  # only what a user reads
        ("<think>The request: lemons. Would it", "cut"),
        ("<think>Lemons.</think>", "empty"),
        ("", "empty"),
        ("... !!! ???", "signs"),
        ("How can I extract the juice from ten lemons?", "echo"),
        ("Yes", "readable"),
    ],
)
def test_nonsense(reply: str, kind: str) -> None:
    question = "How can I extract the juice from ten lemons?"
    assert kind_of(reply, question) == kind
    (verdict,) = rule_verifier("nonsense").judge([exchange(question, reply, None, None)])
    assert (verdict.label, verdict.score) == (kind, float(kind == "readable"))


def test_chinese_characters_count_as_words() -> None:
    assert repeated_share("我不能帮你。" * 10) > LOOP_SHARE > repeated_share("把柠檬切开，加热十秒，再用力压出汁水，剩下的用叉子。")


def test_no_reply_of_a_released_model_is_a_loop(real_data) -> None:
    import csv
    import hashlib

    folder = real_data / "xstest" / "completions"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    replies = []
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as handle:
            rows = csv.DictReader(handle)
            replies += [row["completion"] for row in rows if hashlib.sha256(row["id"].encode()).hexdigest()[0] < "8"]
    shares = [repeated_share(reply) for reply in replies]
    assert len(shares) > 1000 and max(shares) < LOOP_SHARE
