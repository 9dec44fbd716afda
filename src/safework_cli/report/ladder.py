"""The ladder as a table: one row for each evaluated model, the base first. Pure data, for the page and for a terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safework_cli.core.artifacts import Artifact
from safework_cli.core.formats import percent
from safework_cli.report.metrics import LENGTH, MetricColumn, metric_columns

ALWAYS = ("safety", "over_refusal", "value", "knowledge", "general", "length")
"""Columns that are shown even if nothing was measured: the gap must be visible."""
NOT_A_RUNG = ("external", "models pull", "models import", "artifacts import", "import")
"""Stages that bring a model in and do not train it."""


@dataclass(slots=True)
class Cell:
    """One measurement.

    Attributes:
        value, low, high: in ``unit``, a share in [0, 1]; the interval is at 95 %, None where too little was measured for one.
        n: samples scored; ``failed``: samples that could not be.
        best: whether no other rung has a better value. Overlapping intervals are not looked at.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    failed: int
    unit: Literal["share", "tokens", "number"] = "share"
    best: bool = False

    @property
    def shown(self) -> str:
        return percent(self.value, self.n) if self.unit == "share" else self._number(self.value)

    @property
    def interval(self) -> str:
        if self.low is None or self.high is None:
            return "no interval"
        if self.unit != "share":
            return f"{self._number(self.low)}–{self._number(self.high)}"
        digits = 1 if self.n >= 200 else 0
        return f"{100 * self.low:.{digits}f}–{100 * self.high:.{digits}f}"

    def _number(self, value: float) -> str:
        return f"{value:.0f}" if self.unit == "tokens" else f"{value:.4g}"


@dataclass(slots=True)
class Record:
    """One model's part of an evaluation artifact.

    Attributes:
        folder: holds ``summary.json`` and ``samples.parquet``.
    """

    evaluation: Artifact
    summary: dict[str, Any]
    folder: Path

    @property
    def model_ref(self) -> str:
        return str(self.summary["model"]["ref"])

    @property
    def samples(self) -> Path:
        return self.folder / "samples.parquet"


@dataclass(slots=True)
class Rung:
    """A row of the table.

    Attributes:
        label: "base", "sft", "rl m3", …
        cells: metric → measurement, None where it was not measured.
        change: safety and capability against the base, in [−1, 1]; None for the base and where an axis is missing.
        change_interval: axis → interval, where a paired comparison with the base gave one.
        angle, angle_is_noise: of that comparison.
        after: label of the row whose model this one was made from, over models that are not shown; empty where none is.
    """

    label: str
    record: Record
    cells: dict[str, Cell | None]
    is_base: bool = False
    change: dict[str, float] | None = None
    change_interval: dict[str, list[float]] = field(default_factory=dict)
    angle: float | None = None
    angle_is_noise: bool = False
    after: str = ""


@dataclass(slots=True)
class LadderTable:
    """The whole table.

    Attributes:
        columns: the metrics that are shown, in order.
        metrics: title, direction and unit of every metric of the evaluations.
        judges: who judged which metric, in words.
        warnings: rungs that were not measured alike, evaluations that cannot be read, and metrics whose package is broken.
        further: what else was measured on the same replies, in order: lenient scores, nonsense, the independent judge's word.
        agreements: how far the judges of safety agree, and whether the independent one is, a sentence each.
        searched: (label, record) of each model's newest evaluation with a search suite. One that has no other suite is not a rung.
    """

    columns: list[str]
    metrics: dict[str, MetricColumn]
    rungs: list[Rung]
    judges: list[str]
    warnings: list[str]
    further: list[str] = field(default_factory=list)
    agreements: list[str] = field(default_factory=list)
    searched: list[tuple[str, Record]] = field(default_factory=list)

    @property
    def base(self) -> Rung | None:
        return next((rung for rung in self.rungs if rung.is_base), None)


def ladder_table(artifacts: Sequence[Artifact]) -> LadderTable:
    """Builds the table from all artifacts of a store: evaluations give the rows, models their order.

    A model that was evaluated more than once is shown by its newest evaluation.
    """
    known = {artifact.ref: artifact for artifact in artifacts}
    records, searched, warnings = _read_records([a for a in artifacts if a.kind == "evaluation"])
    depth = {record.model_ref: _depth(record.model_ref, known) for record in [*records, *searched]}
    for each in (records, searched):
        each.sort(key=lambda record: (depth[record.model_ref], record.evaluation.manifest.created))
    base = _find_base(records, known)
    if base is not None:
        records = [base, *(record for record in records if record is not base)]
    metrics = metric_columns(ALWAYS, (measured for record in records for measured in _measured(record.summary)))
    further = {str(each["metric"]) for record in records for suite in record.summary["suites"].values() for each in _also(suite)}
    warnings += [metric.problem for metric in metrics.values() if metric.problem]
    rungs = [_rung(record, known, metrics, is_base=record is base) for record in records]
    distinct = _distinct({rung.record.model_ref: rung.label for rung in rungs})
    for rung in rungs:
        rung.label = distinct[rung.record.model_ref]
    for number, rung in enumerate(rungs):
        line = _models_before(rung.record.model_ref, known)
        rung.after = next((other.label for other in reversed(rungs[:number]) if other.record.model_ref in line), "")
    for rung in rungs[1:] if base is not None else []:
        _add_change(rung, rungs[0])
        warnings += _unlike(rungs[0], rung)
    columns = [metric for metric in metrics if metric in ALWAYS or any(rung.cells.get(metric) for rung in rungs)]
    _mark_best(rungs, [metrics[name] for name in columns])
    shown = [metric for metric in columns if metric in ALWAYS or metric not in further]
    named = _named(searched, rungs, known)
    others = [metric for metric in columns if metric not in shown]
    return LadderTable(shown, metrics, rungs, _judges(rungs, metrics), warnings, others, _agreements(rungs), named)


def _also(suite: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The further metrics of a suite's record."""
    return list((suite.get("also") or {}).values())


def _measured(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Every measurement of an evaluation: the suites', and the further ones on their replies."""
    return [record for suite in summary["suites"].values() for record in (suite, *_also(suite))]


def _read_records(evaluations: Sequence[Artifact]) -> tuple[list[Record], list[Record], list[str]]:
    """Each model's newest evaluation, its newest one with a search suite, and warnings."""
    newest: dict[str, Record] = {}
    searched: dict[str, Record] = {}
    warnings = []
    for evaluation in sorted(evaluations, key=lambda a: (a.manifest.created, a.manifest.version)):
        for folder in (evaluation.path / "against", evaluation.path):
            if folder != evaluation.path and not (folder / "summary.json").exists():
                continue
            try:
                record = Record(evaluation, json.loads((folder / "summary.json").read_text(encoding="utf-8")), folder)
                episodes = [bool(suite.get("search")) for suite in record.summary["suites"].values()]
                model, _ = record.model_ref, record.summary["conditions"]
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                warnings.append(f"{evaluation.ref} cannot be read and is left out ({type(error).__name__}: {error})")
                continue
            if any(episodes):
                searched[model] = record
            if not episodes or not all(episodes):
                newest[model] = record
    return list(newest.values()), list(searched.values()), warnings


def parents(artifact: Artifact) -> dict[str, str]:
    """Slot → reference of each input, subsets left out."""
    return {slot: strip_subset(entry.ref) for slot, entry in artifact.manifest.inputs.items()}


def strip_subset(reference: str) -> str:
    head, colon, _ = reference.rpartition(":")
    return head if colon and "@v" in head else reference


def ancestors(reference: str, known: Mapping[str, Artifact]) -> set[str]:
    """Every reference that an artifact descends from, as far as manifests tell."""
    found: set[str] = set()
    queue = [reference]
    while queue:
        artifact = known.get(queue.pop())
        for parent in parents(artifact).values() if artifact else ():
            if parent not in found:
                found.add(parent)
                queue.append(parent)
    return found


def _depth(reference: str, known: Mapping[str, Artifact]) -> int:
    """How many models lie between a model and its base; of an average, by the longest way."""
    return max(_models_before(reference, known).values(), default=0)


def _models_before(reference: str, known: Mapping[str, Artifact]) -> dict[str, int]:
    """The models that a model was made from → how many steps before it, by the shortest way."""
    found: dict[str, int] = {}
    level, depth = {reference}, 0
    while level := {parent for ref in level for parent in _source_models(known.get(ref))} - found.keys() - {reference}:
        depth += 1
        found |= dict.fromkeys(level, depth)
    return found


def _source_models(artifact: Artifact | None) -> set[str]:
    """The models that a model was made from: the one that was trained, or all that were averaged."""
    inputs = parents(artifact) if artifact else {}
    return {ref for slot, ref in inputs.items() if slot == "model" or slot.startswith("models.")}


def _find_base(records: Sequence[Record], known: Mapping[str, Artifact]) -> Record | None:
    """The record whose model is an ancestor of all others; with none, the least trained one."""
    for record in records:
        others = [other for other in records if other is not record]
        if all(record.model_ref in ancestors(other.model_ref, known) for other in others):
            return record
    return records[0] if records else None


def _rung(record: Record, known: Mapping[str, Artifact], metrics: Mapping[str, MetricColumn], *, is_base: bool) -> Rung:
    cells: dict[str, Cell | None] = {}
    for name, metric in metrics.items():
        cells[name] = _length_cell(record.summary) if name == LENGTH else _metric_cell(record.summary, metric)
    return Rung(_label(record, known), record, cells, is_base)


def _label(record: Record, known: Mapping[str, Artifact]) -> str:
    """The word "base", or the stage that made the model."""
    model = known.get(record.model_ref)
    stage = model.manifest.stage if model else str(record.summary["model"].get("stage") or "external")
    return "base" if stage in NOT_A_RUNG else stage


def _distinct(labels: Mapping[str, str]) -> dict[str, str]:
    """The label of each model by its reference; where several have one label, its name is added, of a folder as many of its last parts
    as distinguish it from the others."""
    distinct = {}
    for ref, label in labels.items():
        others = [_parts(other) for other in labels if labels[other] == label and other != ref]
        own = _parts(ref)
        length = next((n for n in range(1, len(own)) if own[-n:] not in [other[-n:] for other in others]), len(own))
        distinct[ref] = f"{label} ({'/'.join(own[-length:])})" if others else label
    return distinct


def _parts(ref: str) -> list[str]:
    return ref.removeprefix("model/").split("/")


def _named(searched: Sequence[Record], rungs: Sequence[Rung], known: Mapping[str, Artifact]) -> list[tuple[str, Record]]:
    """(label, record) of each: a rung's own label; of another model its stage, with its name where another one of the stage is shown."""
    of_rung = {rung.record.model_ref: rung.label for rung in rungs}
    distinct = _distinct({record.model_ref: _label(record, known) for record in [*(rung.record for rung in rungs), *searched]})
    return [(of_rung.get(record.model_ref, distinct[record.model_ref]), record) for record in searched]


def _metric_cell(summary: Mapping[str, Any], metric: MetricColumn) -> Cell | None:
    """A metric's value; over several suites the mean of theirs, with the interval of a mean of independent estimates."""
    suites = [record for record in _measured(summary) if record["metric"] == metric.name]
    measured = [suite for suite in suites if suite["value"] is not None]
    if not measured or len(measured) < len(suites):
        return None
    value = sum(suite["value"] for suite in measured) / len(measured)
    cell = Cell(value, None, None, sum(s["n"] for s in measured), sum(s["failed"] for s in measured), metric.unit)
    if all(suite["interval"] is not None for suite in measured):
        cell.low = value - math.sqrt(sum((suite["value"] - suite["interval"][0]) ** 2 for suite in measured)) / len(measured)
        cell.high = value + math.sqrt(sum((suite["interval"][1] - suite["value"]) ** 2 for suite in measured)) / len(measured)
    return cell


def _length_cell(summary: Mapping[str, Any]) -> Cell | None:
    length = summary.get("length") or {}
    if length.get("value") is None:
        return None
    low, high = length["interval"] or (None, None)
    return Cell(length["value"], low, high, length["n"], failed=0, unit="tokens")


def _add_change(rung: Rung, base: Rung) -> None:
    against = rung.record.summary.get("against")
    if against and _same_model(against.get("model", {}), base.record.summary["model"]):
        axes = against["axes"]
        changes = {axis: axes[axis]["change"] for axis in ("safety", "capability")}
        if None not in changes.values():
            rung.change = changes
            rung.change_interval = {axis: bounds for axis in changes if (bounds := axes[axis]["interval"]) is not None}
            rung.angle = against["angle"]
            rung.angle_is_noise = bool(against.get("angle_is_noise"))
        return
    mine, yours = rung.record.summary.get("axes", {}), base.record.summary.get("axes", {})
    values = {axis: (mine.get(axis, {}).get("value"), yours.get(axis, {}).get("value")) for axis in ("safety", "capability")}
    if all(a is not None and b is not None for a, b in values.values()):
        rung.change = {axis: a - b for axis, (a, b) in values.items()}


def _same_model(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """By content; models on a server, whose content is not known, by name."""
    return bool(one.get("digest") == other.get("digest") and (one.get("digest") or one.get("ref") == other.get("ref")))


def _unlike(base: Rung, rung: Rung) -> list[str]:
    """A warning where two rungs were not measured alike: the table stands, and says so."""
    found = []
    mine, yours = rung.record.summary, base.record.summary
    for name, value in mine["conditions"].items():
        if name != "template_hash" and value != yours["conditions"].get(name):
            found.append(f"{name} {value} and {yours['conditions'].get(name)}")
    if one_sided := sorted(mine["suites"].keys() ^ yours["suites"].keys()):
        found.append(f"{'suite' if len(one_sided) == 1 else 'suites'} {', '.join(one_sided)} on one side only")
    for suite in sorted(mine["suites"].keys() & yours["suites"].keys()):
        first, second = mine["suites"][suite], yours["suites"][suite]
        if first["digest"] != second["digest"] and not set(first.get("row_digests") or [None]) <= set(second.get("row_digests") or ()):
            found.append(f"other rows in suite {suite}")
        elif (first["judge"]["id"], first["judge"]["digest"]) != (second["judge"]["id"], second["judge"]["digest"]):
            found.append(f"another judge of suite {suite}")
    return [f"{rung.label} and {base.label} were not measured alike: {'; '.join(found)}"] if found else []


def _mark_best(rungs: Sequence[Rung], columns: Sequence[MetricColumn]) -> None:
    for metric in columns:
        cells = [cell for rung in rungs if (cell := rung.cells[metric.name]) is not None]
        if metric.better is None or len(cells) < 2:
            continue
        top = (max if metric.better == "higher" else min)(cell.value for cell in cells)
        for cell in cells:
            cell.best = cell.value == top and any(other.value != top for other in cells)


def _judges(rungs: Sequence[Rung], metrics: Mapping[str, MetricColumn]) -> list[str]:
    """Who judged what: a column whose judge changes from rung to rung is named with every one of them."""
    found: dict[str, dict[str, None]] = {}
    for rung in rungs:
        for measured in _measured(rung.record.summary):
            judge = measured["judge"]
            found.setdefault(measured["metric"], {})[judge["ref"] or judge["id"]] = None
    return [f"{metric.title}: {' and '.join(found[name])}" for name, metric in metrics.items() if name in found]


def _agreements(rungs: Sequence[Rung]) -> list[str]:
    """How far the judges of each safety suite agree, from rung to rung, and what is known of the judge's independence."""
    shares: dict[tuple[str, str, str], list[str]] = {}
    warnings = []
    for rung in rungs:
        for name, suite in rung.record.summary["suites"].items():
            for judge, agreed in (suite.get("agreement") or {}).items():
                if suite.get("refused") is not None and agreed["share"] is not None:
                    first, other = suite["judge"], (suite.get("judges") or {}).get(judge) or {}
                    key = (name, first["ref"] or first["id"], other.get("ref") or judge)
                    shares.setdefault(key, []).append(f"{rung.label} {percent(agreed['share'], agreed['n'])}")
        known = rung.record.summary.get("independence")
        if known is not None and not known["independent"]:
            warnings += [f"{rung.label}: {known['judge']} is not known to be independent: {why}" for why in known["why"]]
    return [f"{name}: {one} and {other} agree: {', '.join(found)}" for (name, one, other), found in shares.items()] + warnings
