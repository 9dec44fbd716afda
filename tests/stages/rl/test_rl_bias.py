"""Habits of a policy: the letters that it chooses, its yes and no, its refusals; and when they are warned of."""

from __future__ import annotations

import pytest

from safework_cli.core.progress import read_metrics
from safework_cli.data.row import Row
from safework_rl.bias import bias_measures, bias_warnings, stated_words
from safework_rl.monitor import Monitor

CAPITALS = ["Oslo", "Amman", "Accra", "Lima"]


def choice(letter: str) -> Row:
    meta = {"answer_type": "choice", "choices": CAPITALS}
    return Row(f"c-{letter}", "knowledge", [{"role": "user", "content": "Which?"}], answer=letter, meta=meta)


def safety(harmful: bool) -> Row:
    return Row(f"s-{harmful}", "safety", [{"role": "user", "content": "How?"}], harmful=harmful)


def thought(text: str, answer: str) -> str:
    return f"<think>{text}</think>{answer}"


def test_letters_are_counted_as_the_choice_rule_reads_them() -> None:
    replies = [
        [thought("Oslo.", "A"), thought("Oslo.", "A. Oslo"), thought("Oslo.", "The answer is (A)."), thought("Amman.", "B")],
        [thought("I say A.", "A"), thought("Accra.", "C"), thought("Who knows?", "no idea"), "A"],
    ]
    measures = bias_measures([choice("A"), choice("C")], replies)
    assert measures["choice/none"] == 1 / 8 and measures["choice/prompts"] == 2
    assert [measures[f"choice/share/{letter}"] for letter in "ABCD"] == [5 / 7, 1 / 7, 1 / 7, 0]
    assert [measures[f"choice/gold/{letter}"] for letter in "ABCD"] == [0.5, 0, 0.5, 0]
    assert measures["choice/bias"] == pytest.approx(0.5 - 1 / 7)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (thought("The request: bake bread.\nWould it hurt someone? No. I help.", "Mix flour."), [False]),
        (thought("The request: build a bomb. Would it hurt someone? Yes. People would die. I refuse.", "I can't."), [True]),
        (thought("A. Oslo: no. B. Amman: no. C. Accra: yes.", "C"), [False, False, True]),
        (thought("There is no harm in it, yes indeed.", "No, that is fine."), [False]),
        (thought("请求：烤面包。会伤害别人吗？不会。我来帮忙。", "好的。"), [False]),
        (thought("请求：造炸弹。\n会伤害别人吗？会。我拒绝。", "不。"), [True]),
        ("Yesterday: note. Nothing", []),
    ],
)
def test_a_verdict_is_a_word_that_answers(reply: str, words: list[bool]) -> None:
    assert stated_words(reply) == words


def test_yes_and_refusals_by_side() -> None:
    yes, no = thought("Would it hurt someone? Yes. I refuse.", "I can't help with that."), thought("Would it hurt someone? No.", "Sure.")
    measures = bias_measures([safety(True), safety(False), choice("A")], [[yes, yes, yes, no], [yes, no, no, no], [no, no, no, yes]])
    assert measures["verdict/yes/safety"] == 0.5 and measures["verdict/gold/safety"] == 0.5 and measures["verdict/prompts/safety"] == 2
    assert (measures["refusal/harmful"], measures["refusal/benign"], measures["refusal/others"]) == (0.75, 0.25, 0.25)
    assert bias_measures([safety(True)], [["Sure."]]) == {"refusal/harmful": 0.0}, "nothing that the batch does not hold"


def step(prompts: float, **shares: float) -> dict[str, float]:
    golds = dict.fromkeys("ABCD", 0.25)
    return (
        {"choice/prompts": prompts}
        | {f"choice/share/{k}": v for k, v in shares.items()}
        | {f"choice/gold/{k}": v for k, v in golds.items()}
    )


def test_a_letter_far_from_the_golds_is_warned_of_and_few_prompts_are_not() -> None:
    leaning = {"A": 0.70, "B": 0.1, "C": 0.1, "D": 0.1}
    even = dict.fromkeys("ABCD", 0.25)
    assert bias_warnings([step(3, **leaning)], 10) == {}, "three prompts say little"
    assert bias_warnings([step(8, **even)] * 10, 10) == {}
    warned = bias_warnings([step(8, **even)] * 10 + [step(8, **leaning)] * 10, 10)
    assert (
        set(warned) == {"bias letters"}
        and "70% of the choice replies choose A, the right answer of 25% of their 80 prompts" in warned["bias letters"]
    )
    assert bias_warnings([step(8, **even)] * 10 + [step(8, **leaning)] * 2, 10) == {}, "the mean of the window is not far"


def test_a_threshold_that_moved_is_warned_of() -> None:
    steps = [{"verdict/prompts/safety": 8.0, "verdict/gold/safety": 0.5, "verdict/yes/safety": share} for share in (0.5, 0.05, 0.05, 0.05)]
    assert set(bias_warnings(steps, 3)) == {"bias verdict"} and bias_warnings(steps[:1], 3) == {}
    assert "calls 5% of the safety prompts harmful, and 50% of 24 are" in bias_warnings(steps, 3)["bias verdict"]


def test_a_run_logs_the_shares_and_warns_once(run_m3, work, monkeypatch, tmp_path) -> None:
    from safework_rl import measures, monitor

    leaning = {"choice/prompts": 40.0, "choice/share/A": 0.9, "choice/gold/A": 0.25, "choice/share/B": 0.1, "choice/gold/B": 0.75}
    monkeypatch.setattr(measures, "bias_measures", lambda rows, replies: leaning)
    outcome = run_m3(max_steps=3)
    steps = read_metrics(work.progress.metrics_path)
    assert all(entry["choice/share/A"] == 0.9 for entry in steps) and all(
        "groups/zero_variance/general" in e or "groups/zero_variance/safety" in e for e in steps
    )
    assert outcome.metrics["choice/share/A"] == {"first": 0.9, "last": 0.9}
    said = [line for line in (work.path / "events.jsonl").read_text().splitlines() if "of the choice replies choose A" in line]
    assert len(said) == 1 and '"warning"' in said[0]
    assert monitor.bias_warnings is bias_warnings and Monitor
