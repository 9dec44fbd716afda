"""Which letters a reply chose where several options may be right, by hand."""

from __future__ import annotations

import pytest

from safework_cli.core.errors import ConfigError
from safework_cli.verifiers import Exchange
from safework_cli.verifiers.rules import rule_verifier
from safework_cli.verifiers.rules.choices import chosen_letters


@pytest.mark.parametrize(
    ("reply", "chosen"),
    [
        ("BD", "BD"), ("B, D", "BD"), ("(B) and (D).", "BD"), ("B、D", "BD"), ("**BD**", "BD"), ("D", "D"), ("A, B and C", "ABC"),
        ("The answer is BD.", "BD"), ("The correct answers are B and D.", "BD"), ("The answer: A\nNo, the answers are C, D", "CD"),
        ("答案：BD", "BD"), ("故选AC。", "AC"), ("答案是B和D", "BD"), ("【答案】ABD", "ABD"), ("ＢＤ", "BD"), ("正确选项为 A、C", "AC"),
        ("B and D are correct, since a lens does that.", "BD"), ("B、D均正确", "BD"), ("So we get \\boxed{AC}", "AC"),
        ("A lens bends light, so I would say:\nBC", "BC"),
        ("I do not know.", None), ("", None), ("The answer is E.", None), ("A lens bends light.", None), ("这道题很难", None),
    ],
)  # fmt: skip
def test_letters_by_hand(reply: str, chosen: str | None) -> None:
    assert chosen_letters(reply, "ABCD") == (None if chosen is None else frozenset(chosen))


def judge(reply: str, answer: str = "BD", rule: str = "choices", **meta):
    return rule_verifier(rule).judge([Exchange([], reply, answer, None, {"choices": list("wxyz"), **meta})])[0]


def test_a_part_of_the_right_letters_is_worth_half() -> None:
    assert [judge(reply).score for reply in ("DB", "B", "AB", "ABCD", "?")] == [1.0, 0.5, 0.0, 0.0, 0.0]
    assert judge("B", rule="choices{partial: 0}").score == 0.0 and judge("B", answer="B").score == 1.0
    with pytest.raises(ConfigError, match="partial"):
        rule_verifier("choices{partial: 2}")


@pytest.mark.parametrize("gold", ["BB", "E", "", "b"])
def test_a_gold_answer_that_is_no_letters_is_an_error_and_not_a_zero(gold: str) -> None:
    assert "not one or several letters" in str(judge("B", answer=gold).error)


def test_a_long_reply_takes_no_time_to_speak_of() -> None:
    assert judge("A and B, " * 40_000 + "the answers are B and D.").score == 1.0
