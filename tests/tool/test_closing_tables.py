"""The tables at the end of training commands, as they look on a terminal of 80 columns."""

from __future__ import annotations

from types import SimpleNamespace

from rich.console import Console

from safework_rl.efficient.stage import stage as efficient
from safework_rl.m3.stage import stage as m3
from safework_rl.search.stage import stage as search
from safework_search.stage import stage as guided
from safework_sft.stage import stage as sft

EVALUATION = {
    "metric": "safety", "start": 0.5, "best": 0.90004, "best_step": 4, "last": 0.1, "last_step": 12, "saved_step": 4,
    "stopped_early": True, "evaluations": 7, "prompts": 3, "data": "dataset/heldout@v1",
    "judges": {"safety": "rule:refusal", "value": "verifier/value@v2\x1b[31m"},
}  # fmt: skip
SFT = {
    "rows": 1312, "dropped": {"has images": 2}, "tokens": 45678, "supervised_share": 0.412, "steps": 12, "loss_first": 5.6213,
    "loss_last": 4.1,
    "samples": {"n": 8, "stop_rate": 0.75, "format_rate": 0.5, "mean_tokens": 33.6, "replies": []},
}  # fmt: skip
RL = {
    "steps": 6, "rows": 32, "dropped": {}, "reward": {"first": 0.25, "last": 0.61}, "completions/mean_length": {"first": 12.0, "last": 9.5},
    "updates": 4, "steps_without_gradient": 2, "skipped_updates": 0, "dtype": "float32",
}  # fmt: skip
EVALUATED = [
    "evaluation       safety, 3 prompts of dataset/heldout@v1",
    "  start          0.5",
    "  best           0.9 at step 4",
    "  last           0.1 at step 12",
    "  saved          step 4, the run stopped early",
    "  judge          safety: rule:refusal",
    "  judge          value: verifier/value@v2\\x1b[31m",
]


def shown(stage, metrics, failed=0) -> list[str]:
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(stage.show(SimpleNamespace(manifest=SimpleNamespace(metrics=metrics, failed_items=failed))))
    lines = capture.get().splitlines()
    assert all(len(line) <= 80 for line in lines)
    return [line.rstrip() for line in lines]


def test_sft_ends_with_rows_losses_stop_rate_and_evaluation():
    training = [
        "rows             1,312, 2 dropped",
        "steps            12",
        "supervised       41.2% of 45,678 tokens",
        "loss             5.621 → 4.1",
        "sampled replies  8: 75% stopped, 50% in the format, 34 tokens on average",
    ]
    assert shown(sft, SFT) == training
    assert shown(sft, SFT | {"evaluation": EVALUATION}) == training + EVALUATED
    assert len(shown(sft, SFT | {"samples": {}, "dropped": {}})) == 4
    short = SFT | {"verdict": {"short_rows": 1200, "short_tokens": 30500}}
    assert shown(sft, short)[2] == "supervised       41.2% of 45,678 tokens; in 1,200 short rows 1,200 of 30,500"


def test_rl_ends_with_updates_curves_and_evaluation():
    lines = shown(m3, RL | {"evaluation": EVALUATION})
    assert [line.split(maxsplit=1) for line in lines[:4]] == [
        ["prompts", "32"],
        ["steps", "6: 4 updates, 2 without a gradient"],
        ["reward", "0.25 → 0.61"],
        ["completions/mean_length", "12 → 9.5"],
    ]
    assert [" ".join(line.split()) for line in lines[4:]] == [" ".join(line.split()) for line in EVALUATED]
    assert shown(efficient, RL) == shown(search, RL) == lines[:4]


def test_search_ends_with_what_the_guides_chose():
    metrics = {"prompts": 20, "scored": 18, "score_chosen": 0.8125, "score_offered": 0.5, "mean_tokens": 33.6, "stop_rate": 0.95}
    assert shown(guided, metrics, failed=2) == [
        "prompts        20, 18 with a score, 2 failed",
        "guides' score  0.8125 chosen, 0.5 mean of all candidates (+0.312)",
        "replies        33.6 tokens on average, 95% stopped",
    ]
    nothing = metrics | {"scored": 0, "score_chosen": None, "score_offered": None, "mean_tokens": None, "stop_rate": None}
    assert shown(guided, nothing, failed=20) == ["prompts  20, 0 with a score, 20 failed"]
