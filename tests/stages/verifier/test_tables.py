"""The tables that verifier commands end with: every number with interval and n, failures counted, 80 columns are enough."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safework_cli.core.artifacts import Artifact, Manifest
from safework_cli.core.artifacts.store import now
from safework_cli.core.terminal import console
from safework_cli.statistics.intervals import estimate
from safework_verifier.rollouts.stage import stage as rollouts
from safework_verifier.score.stage import stage as score
from safework_verifier.train.stage import stage as train
from safework_verifier.values.stage import stage as values
from safework_verifier.wrap.stage import stage as wrap


def figure(value: float, n: int = 62) -> dict[str, Any]:
    return {"value": value, "interval": [value - 0.1, value + 0.1], "n": n}


LABELS = {
    **{name: figure(value) for name, value in {"accuracy": 0.581, "macro_f1": 0.574, "ece": 0.136, "brier": 0.5}.items()},
    "baselines": {name: {"accuracy": figure(0.613)} for name in ("refusal_phrases_given_harmful", "verifier_given_harmful")},
    "by_source": {"starter": figure(0.6), "evil\x1b[2J": figure(0.5, 7)},
    "annotators": {"annotator 1 and annotator 2": {"agreement": figure(0.8), "cohen_kappa": None}},
    "attacks": {"compliance before refusal": figure(0.25, 4), "all": figure(0.3, 36)},
    "rows": {"train": 1528, "calibration": 70, "report": 62, "unscored": 3, "held_out_truncated": "7 of 132"},
    "temperature": 0.9233,
}


def shown(stage: Any, metrics: dict[str, Any], width: int = 80, **manifest: Any) -> list[str]:
    made = Manifest(
        kind=stage.output, name="a-verifier-with-a-long-name-of-its-own", version=12, created=now(), stage=stage.name, stage_version=1,
        fingerprint="", files=[], digest="", metrics=metrics, **manifest,
    )  # fmt: skip
    out = console(width=width)
    with out.capture() as captured:
        out.print(stage.show(Artifact(Path(), made)))
    return [line.strip() for line in captured.get().splitlines()]


@pytest.mark.parametrize("width", [80, 120])
def test_a_label_verifier_shows_what_was_measured(width: int) -> None:
    lines = shown(train, LABELS, width)
    assert lines == shown(wrap, LABELS, width)
    assert lines[0] == "verifier/a-verifier-with-a-long-name-of-its-own@v12"
    assert " ".join(lines[1].split()) == "measure value 95% interval n"
    rows = {tuple(line.rsplit(maxsplit=5)[0:1]): line.split()[-5:] for line in lines[2:-4]}
    assert rows[("accuracy",)] == ["0.581", "0.481", "–", "0.681", "62"]
    for name in (
        "macro-F1", "ECE", "Brier score", "accuracy, refusal phrases given harmful", "accuracy, verifier given harmful",
        "accuracy on starter", "accuracy on evil\\x1b[2J", "agreement, annotator 1 and annotator 2",
        "flipped by: compliance before refusal", "flipped by all attacks",
    ):  # fmt: skip
        assert (name,) in rows, name
    assert lines[-4:] == [
        "rows: 1,528 trained on, 70 calibrated on, 62 reported", "failed: the judge gave 3 rows no label",
        "truncated: 7 of 132 held-out rows", "temperature 0.9233",
    ]  # fmt: skip


def test_a_verifier_that_was_not_measured_says_why() -> None:
    for stage in (train, wrap, values):
        lines = shown(stage, {"rows": {"train": 5}, "steps": 2}, notes=["measuring failed after training: no memory"])
        assert lines[1:] == ["measuring failed after training: no memory"]


def test_a_value_model_shows_every_principle() -> None:
    measured = {name: figure(0.5, 40) for name in ("squared_error", "skill", "ranking", "calibration_error")}
    metrics = {"principles": {"safety": measured}, "routing": figure(0.9, 40), "rows": {"train": 90, "calibration": 30, "report": 40}}
    lines = shown(values, metrics)
    for name in ("safety: squared error", "safety: skill over the mean", "safety: pairs in right order", "safety: calibration error"):
        assert any(line.startswith(name) and line.endswith("0.500  0.400 – 0.600  40") for line in lines), name
    assert lines[-1] == "rows: 90 trained on, 30 calibrated on, 40 reported"


def test_rollouts_show_coverage_and_failures() -> None:
    old = {"n": 14, "mean": 0.25, "undecided": 0.5}  # an artifact from before the intervals
    new = old | {"mean_interval": [0.1, 0.4], "undecided_interval": [0.3, 0.7]}
    metrics = {"prompts": 12, "without_value": 4, "prefixes": 14, "coverage": figure(0.667, 12), "principles": {"a": old, "b": new}}
    lines = shown(rollouts, metrics, failed_items=4)
    assert " ".join(lines[2].split()) == "a: mean value 0.250 – 14"
    assert " ".join(lines[5].split()) == "b: neither 0 nor 1 0.500 0.300 – 0.700 14"
    assert lines[-3].startswith("prompts with a value") and lines[-2:] == ["14 prefixes of 12 prompts", "failed: 4 prompts"]


def test_scores_end_with_a_table_of_each_verifier(cli, tmp_path: Path) -> None:
    replies = ["I can't help with that.", "Use a drill.", "Use a saw.", "I won't."]
    path = tmp_path / "replies.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"How? {i // 2}", "reply": reply}) + "\n" for i, reply in enumerate(replies)))
    words = ("verifier", "score", f"file={path}", "rules=[format, exact]")
    done = cli(*words)
    assert done.returncode == 5, done.stderr
    lines = [" ".join(line.split()) for line in done.stderr.splitlines()]
    high = estimate([0.0] * 4, [0, 0, 1, 1]).high
    assert f"rule:format: mean score 0.000 0.000 – {high:.3f} 4" in lines, "replies to one prompt are not independent"
    assert "rule:exact: mean score – – 0" in lines and any(line.startswith("rule:exact: scored 0.000 0.000") for line in lines)
    assert "rule:exact: failed 4" in lines and "failed: 4 verdicts" in lines
    assert cli(*words).stderr.count("mean score") == 2, "a result that is already there shows its table too"


def test_old_scores_without_intervals_are_shown() -> None:
    metrics = {"replies": 2, "verifiers": {"safety": {"mean": 0.5, "n": 2, "failed": 0, "unparsed": 0, "labels": {"Unsafe": 1}}}}
    lines = shown(score, metrics)
    assert " ".join(lines[2].split()) == "safety: mean score 0.500 – 2" and lines[-1] == "safety: Unsafe 1"
