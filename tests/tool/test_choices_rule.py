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


@pytest.mark.parametrize(
    ("reply", "chosen"),
    [
        # a cue in any case, with a colon, a line of its own, or words between
        ("Answer: BD", "BD"), ("Answer: B and D", "BD"), ("**Answer:** B, D\n\nB and D are capitals.", "BD"),
        ("FINAL ANSWER: B, D", "BD"),
        ("Correct options: B, D", "BD"), ("Answer:\n\nB, D", "BD"), ("Answer: (B), (D)", "BD"), ("<answer>BD</answer>", "BD"),
        ("I would go with options B and D", "BD"), ("本题选BD", "BD"), ("应选B、D", "BD"), ("Answer: b, d", "BD"), ("b, d", "BD"),
        # what is said of an option does not state the answer
        ("The answer is BD. Explanation: choice A is false.", "BD"), ("答案：BD\n解析：选项A错误", "BD"),
        ("答案：BD。选项A错误，因为它在法国。", "BD"),
        ("【答案】BD\n【解析】A选项错误，选项C也错误。", "BD"), ("The answer is BD. The other options are A and C.", "BD"),
        ("Some say the answer is A. B and D are correct.", "BD"), ("If the answer were A, it would fall. So the answer is BD.", "BD"),
        # verdicts of each letter
        ("A is wrong. B is correct. C is wrong. D is correct.", "BD"),
        ("Option A is incorrect. Option B is correct. Option D is correct.", "BD"),
        ("选项A错误，选项B正确，选项C错误，选项D正确。", "BD"), ("A ❌\nB ✅\nC ❌\nD ✅", "BD"),
        ("A: False\nB: True\nC: False\nD: True", "BD"),
        ("A is not correct, but B is correct.", "B"), ("Neither A nor C is correct.", None), ("Options A and C are not correct.", None),
        # denied, and what is said instead
        ("The answer is not A; it is B and D", "BD"), ("The answer is NOT C. A and B are correct.", "AB"), ("不选A，选BD", "BD"),
        ("选B和D，不选A和C", "BD"), ("答案不是A，而是BD", "BD"), ("All except A and C: B and D", "BD"), ("The answer isn't B", None),
        ("I don't think the answer is A. The answers are B and D.", "BD"), ("The answer is A. Wait, no, the answers are B and D", "BD"),
        # where a run of letters ends
        ("The answer: B,D (I am confident).", "BD"), ("Answer: A I am sure", "A"),
        ("Answer: B and D. I chose these since A is wrong.", "BD"),
        ("Answer: B and D, A is wrong", "BD"), ("答案：B、D，A错误", "BD"), ("Answer: B, D, A and C are wrong", "BD"),
        ("The answer is DNA.", None), ("The answer is a matter of taste.", None), ("I think A lens bends light.", None), ("bad", None),
        ("The answer is B or D.", None), ("The answer is 'B'.", "B"), ("The capital is London, which is option B.", "B"),
        # a reply that runs on
        ("The answer is B and D.\n\nQuestion: what?\nAnswer: AC", "BD"), ("BD\n\nHuman: And now?\nAssistant: A", "BD"),
    ],
)  # fmt: skip
def test_statements_and_verdicts_by_hand(reply: str, chosen: str | None) -> None:
    assert chosen_letters(reply, "ABCD") == (None if chosen is None else frozenset(chosen))


def test_lines_of_options_with_their_texts_are_letters() -> None:
    options = ["Paris", "London", "Berlin", "Madrid"]
    assert chosen_letters("B. London\nD. Madrid", "ABCD", options) == {"B", "D"}
    assert chosen_letters("B. London\nD. Rome", "ABCD", options) is None
    assert chosen_letters("\n".join(map("{}. {}".format, "ABCD", options)), "ABCD", options) is None  # the question's own list


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
