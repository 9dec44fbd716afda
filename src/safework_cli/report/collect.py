"""What the page shows of each artifact, from manifests and the files next to them. A file that cannot be read is named, not fatal."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from safework_cli.core.artifacts import Artifact
from safework_cli.core.errors import InputError
from safework_cli.core.formats import interval, percent, percent_interval, plain
from safework_cli.core.journal import read_journal
from safework_cli.core.progress import read_metrics
from safework_cli.report.charts import Node, curve
from safework_cli.report.ladder import LadderTable, strip_subset
from safework_cli.report.text import shortened

MOST_CURVES = 12
"""Curves of a run that are shown at once; the others are folded."""
SHOWN_PAIRS = 8
"""Prompts of a suite in the samples browser."""
FIRST_CURVES = (
    "loss", "reward", "search/lambda", "search/reliability", "correct", "drift", "clip", "mean_length", "refusal", "zero_variance",
    "entropy", "logprob_gap", "grad_norm", "rewards", "kl", "length", "format", "learning_rate",
)  # fmt: skip
MARKS = {"search/reliability": "search/threshold", "search/reliability_ema": "search/threshold"}
"""Series → the one that holds a constraint's threshold, drawn as a line."""
SHOWN_STEPS = 4
"""Steps whose rollouts are shown, the first and the last among them."""
REPEATED = ("epoch", "rewards/total_reward/")
"""Series that say what another one says: the step, and the reward under the name of TRL's only reward function."""
HEADLINE = {"accuracy": "accuracy", "macro_f1": "macro-F1", "ece": "ECE"}
"""Metrics of a verifier above its confusion matrix → how they are called there."""
UNITS = {
    "seconds": "s",
    "length": "tokens",
    "tokens": "tokens",
    "learning_rate": "",
    "memory": "bytes",
    "share": "share",
    "rate": "share",
    "bytes": "bytes",
}


@dataclass(slots=True)
class Run:
    """The curves of one training run."""

    artifact: Artifact
    shown: list[Markup]
    folded: list[Markup]
    constant: list[tuple[str, float]]
    """Numbers that never changed: listed, not drawn."""


@dataclass(slots=True)
class Card:
    """One artifact, in tables."""

    artifact: Artifact
    anchor: str
    settings: list[tuple[str, str, str]]
    metrics: list[tuple[str, str]]
    warnings: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Pair:
    """The same prompt answered by the base and by the last rung."""

    suite: str
    metric: str
    verdict: str
    question: str
    sides: list[dict[str, Any]]


def anchor_of(ref: str) -> str:
    return "a-" + re.sub(r"[^A-Za-z0-9]+", "-", ref).strip("-")


def cards(artifacts: Sequence[Artifact]) -> list[Card]:
    found = []
    for artifact in artifacts:
        manifest = artifact.manifest
        settings = [(key, plain(value), manifest.config_sources.get(key, "default")) for key, value in _flat(manifest.config)]
        metrics = [(key, plain(value)) for key, value in _flat(manifest.metrics)]
        found.append(Card(artifact, anchor_of(artifact.ref), settings, metrics, _warnings(artifact)))
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found


def _warnings(artifact: Artifact) -> list[str]:
    broken: list[InputError] = []
    events = read_journal(artifact.path / "safework" / "events.jsonl", broken=broken)
    return [str(e.get("text", "")) for e in events if e.get("event") == "warning"] + [f"left out: {error.what}" for error in broken]


def runs(artifacts: Sequence[Artifact]) -> list[Run]:
    """Every artifact that holds ``safework/metrics.jsonl`` with more than one step. Lines that are not JSON are left out."""
    found = []
    for artifact in artifacts:
        records = read_metrics(artifact.path / "safework" / "metrics.jsonl", broken=[])
        series: dict[str, tuple[list[int], list[float]]] = {}
        for record in records:
            for name, value in record.items():
                if name != "step" and isinstance(value, (int, float)) and not isinstance(value, bool):
                    steps, values = series.setdefault(name, ([], []))
                    steps.append(int(record["step"]))
                    values.append(float(value))
        if len(records) > 1 and series:
            names = [name for name in sorted(series, key=_curve_order) if not name.startswith(REPEATED)]
            constant = [(name, series[name][1][0]) for name in names if _constant(series[name][1])]
            drawn = [curve(name, _unit(name), *series[name], _mark(name, series)) for name in names if not _constant(series[name][1])]
            found.append(Run(artifact, drawn[:MOST_CURVES], drawn[MOST_CURVES:], constant))
    return found


def _constant(values: Sequence[float]) -> bool:
    """Whether a series never changed. Rounding of 32-bit numbers is not a change: a curve of it would look like one."""
    if not all(math.isfinite(value) for value in values):
        return len(set(values)) == 1
    return max(values) - min(values) <= max(1e-6 * max(abs(value) for value in values), 1e-9)


def _mark(name: str, series: Mapping[str, tuple[list[int], list[float]]]) -> float | None:
    return series[MARKS[name]][1][-1] if MARKS.get(name) in series else None


def _curve_order(name: str) -> tuple[int, str]:
    position = next((i for i, word in enumerate(FIRST_CURVES) if word in name), len(FIRST_CURVES))
    return position, name


def _unit(name: str) -> str:
    return next((unit for word, unit in UNITS.items() if name.endswith(word)), "")


def lineage_nodes(artifacts: Sequence[Artifact]) -> list[Node]:
    """Every artifact and, dashed, every input that is not among them."""
    known = {artifact.ref for artifact in artifacts}
    nodes: dict[str, Node] = {}
    for artifact in artifacts:
        inputs = {slot: (strip_subset(entry.ref), entry.kind) for slot, entry in artifact.manifest.inputs.items()}
        for reference, kind in inputs.values():
            if reference not in known:
                nodes[reference] = Node(reference, kind, "outside this store", "", ())
        edges = tuple(dict((reference, slot) for slot, (reference, _) in inputs.items()).items())
        nodes[artifact.ref] = Node(
            artifact.ref, artifact.kind, artifact.manifest.stage, anchor_of(artifact.ref), tuple((slot, ref) for ref, slot in edges)
        )
    return list(nodes.values())


def datasets(artifacts: Sequence[Artifact]) -> list[dict[str, Any]]:
    """Rows kept and dropped of each dataset, from its manifest."""
    found = []
    for artifact in artifacts:
        metrics = artifact.manifest.metrics
        if artifact.kind == "dataset":
            subsets, dropped = (value if isinstance(value := metrics.get(key), dict) else {} for key in ("subsets", "dropped"))
            lost, read = sum(dropped.values()), metrics.get("read") or 0
            found.append(
                {"artifact": artifact, "read": read, "rows": metrics.get("rows"), "subsets": subsets, "dropped": dropped, "lost": lost}
            )
    return found


def verifiers(artifacts: Sequence[Artifact]) -> tuple[list[dict[str, Any]], list[str]]:
    """Confusion matrices, and what could not be read."""
    found, problems = [], []
    for artifact in artifacts:
        path = artifact.path / "confusion.json"
        if artifact.kind != "verifier" or not path.exists():
            continue
        try:
            matrix = json.loads(path.read_text(encoding="utf-8"))
            labels, counts = list(matrix["labels"]), [[int(n) for n in row] for row in matrix["gold_by_predicted"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(f"the confusion matrix of {artifact.ref} cannot be read ({error})")
            continue
        rows = [
            {"label": label, "total": sum(row), "cells": [(count, count / sum(row) if sum(row) else 0.0) for count in row]}
            for label, row in zip(labels, counts, strict=False)
        ]
        metrics = artifact.manifest.metrics
        headline = {title: _estimate(metrics[key]) for key, title in HEADLINE.items() if key in metrics}
        found.append({"artifact": artifact, "labels": labels, "rows": rows, "headline": headline})
    return found, problems


def _estimate(value: Any) -> str:
    """A number, or a number with its interval, however the stage wrote it."""
    if not isinstance(value, dict) or "value" not in value:
        return plain(value)
    bounds = value.get("interval")
    return f"{value['value']:.3f} ({interval(bounds)})" if bounds else plain(value["value"])


def pairs(table: LadderTable) -> tuple[dict[str, list[Pair]], str, list[str]]:
    """Suite → the same prompts answered by the base and the last rung: the gains, the losses, then some that stayed.

    Returns:
        The pairs, the last rung's label (empty where there is nothing to compare), and what could not be read.
    """
    if len(table.rungs) == 0:
        return {}, "", []
    rungs = [table.rungs[0], table.rungs[-1]] if len(table.rungs) > 1 else [table.rungs[0]]
    try:
        sides = [{(r["suite"], r["id"]): r for r in _read_parquet(rung.record.samples)} for rung in rungs]
    except (OSError, ValueError, KeyError) as error:
        return {}, "", [f"the samples of the evaluations cannot be read ({error})"]
    suites = rungs[-1].record.summary["suites"]
    found: dict[str, list[Pair]] = {}
    for suite, record in suites.items():
        keys = [key for key in sides[-1] if key[0] == suite and all(key in side for side in sides)]
        sign = -1.0 if table.metrics[record["metric"]].better == "lower" else 1.0
        keys.sort(key=lambda key: (sign * _gain(key, sides), key[1]))
        losses, gains = [k for k in keys if sign * _gain(k, sides) < 0], [k for k in keys if sign * _gain(k, sides) > 0][::-1]
        same = [k for k in keys if _gain(k, sides) == 0]
        best, worst = gains[:3], losses[:3]
        chosen = [("better", key) for key in best] + [("worse", key) for key in worst]
        chosen += [("same", key) for key in same[: SHOWN_PAIRS - len(chosen)]]
        found[suite] = [_pair(suite, record["metric"], verdict, key, sides, [r.label for r in rungs]) for verdict, key in chosen]
    return found, rungs[-1].label if len(rungs) > 1 else "", []


def _gain(key: tuple[str, str], sides: Sequence[Mapping[tuple[str, str], Mapping[str, Any]]]) -> float:
    first, last = sides[0][key]["outcome"], sides[-1][key]["outcome"]
    return 0.0 if first is None or last is None else last - first


def _pair(
    suite: str, metric: str, verdict: str, key: tuple[str, str], sides: Sequence[Mapping[Any, Mapping[str, Any]]], labels: Sequence[str]
) -> Pair:
    shown = []
    for label, side in zip(labels, sides, strict=True):
        record = side[key]
        said = "; ".join(
            f"{v['judge']}: {v['label'] or plain(v['score'])}" if not v["error"] else f"{v['judge']}: {v['error']}"
            for v in record["verdicts"] or ()
        )
        shown.append(
            {
                "label": label,
                "thought": shortened(record["thought"] or ""),
                "answer": shortened(record["answer"] or ""),
                "outcome": record["outcome"],
                "said": said,
                "tokens": record["tokens"],
                "finish": record["finish_reason"],
            }
        )
    return Pair(suite, metric, verdict, shortened(sides[-1][key]["question"] or "", 1500), shown)


@dataclass(slots=True)
class SearchSuite:
    """A search suite of every model that was asked it.

    Attributes:
        measures: in order.
        rows: label of the model → measure → (value, interval).
    """

    name: str
    measures: list[str]
    rows: dict[str, dict[str, tuple[str, str]]]


def search_suites(table: LadderTable) -> list[SearchSuite]:
    """Search suites with what was measured of their episodes."""
    suites: dict[str, SearchSuite] = {}
    for label, searched in table.searched:
        for name, record in searched.summary["suites"].items():
            measured = {"accuracy": record} | record["search"] if record.get("search") else {}
            if measured:
                suite = suites.setdefault(name, SearchSuite(name, [], {}))
                suite.measures += [measure for measure in measured if measure not in suite.measures]
                suite.rows[label] = {measure: _value(measure, value) for measure, value in measured.items()}
    return list(suites.values())


def _value(measure: str, record: Mapping[str, Any]) -> tuple[str, str]:
    if record["value"] is None:
        return "not measured", ""
    shown, bounds = (percent, percent_interval) if measure not in ("auroc", "searches") else (plain, None)
    ends = record["interval"]
    between = "" if ends is None else bounds(ends) if bounds else f"{plain(ends[0])} – {plain(ends[1])}"
    return shown(record["value"]), between


@dataclass(slots=True)
class Rollouts:
    """What a reinforcement-learning run said while it trained.

    Attributes:
        steps: step → its best, median and worst replies of each task.
        hints: what the run's own numbers hinted at.
    """

    artifact: Artifact
    steps: dict[int, list[dict[str, Any]]]
    hints: list[str]


def rollouts(artifacts: Sequence[Artifact]) -> list[Rollouts]:
    """Rollouts of a few steps of every run that kept some, from its first to its last."""
    found = []
    for artifact in artifacts:
        path = artifact.path / "safework" / "samples.parquet"
        if not path.exists():
            continue
        try:
            records = _read_parquet(path)
        except (OSError, ValueError):
            continue
        usable = [r for r in records if {"step", "task", "rank", "prompt", "reply", "reward"} <= r.keys()]
        steps = sorted({r["step"] for r in usable})
        chosen = sorted({steps[round(i * (len(steps) - 1) / (SHOWN_STEPS - 1))] for i in range(SHOWN_STEPS)}) if steps else []
        if chosen:
            found.append(
                Rollouts(artifact, {step: [_rollout(r) for r in usable if r["step"] == step] for step in chosen}, _hints(artifact))
            )
    return found


def _rollout(record: Mapping[str, Any]) -> dict[str, Any]:
    verdicts = json.loads(record.get("verdicts") or "{}")
    said = "; ".join(f"{name}: {word}" for name, word in verdicts.items())
    texts = {"prompt": shortened(str(record["prompt"]), 800), "reply": shortened(str(record["reply"]), 1500)}
    return {**record, **texts, "reward": plain(record["reward"]), "said": said}


def _hints(artifact: Artifact) -> list[str]:
    events = read_journal(artifact.path / "safework" / "events.jsonl", broken=[])  # named by the card
    texts = [str(e.get("text", "")) for e in events if e.get("event") == "note"]
    return [text.removeprefix("hint: ") for text in texts if text.startswith("hint: ")]


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()
