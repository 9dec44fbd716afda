"""The table that a finished verifier command shows on stderr: every number with its 95% interval and n, and what failed.

Made of the manifest's metrics only, so that a result that is already there shows the same table. Imports rich when a table is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from safework_cli.core.formats import NOTHING, interval
from safework_cli.core.terminal import visible

if TYPE_CHECKING:
    from rich.console import RenderableType

    from safework_cli.core.artifacts import Artifact

TITLES = {
    "macro_f1": "macro-F1",
    "ece": "ECE",
    "ece_before_temperature": "ECE before temperature",
    "brier": "Brier score",
    "auroc": "AUROC",
}
MEASURES = ("accuracy", "macro_f1", "ece", "ece_before_temperature", "brier")
VALUE_MEASURES = ("squared_error", "skill", "ranking", "calibration_error")
VALUE_TITLES = {"skill": "skill over the mean", "ranking": "pairs in right order"}


class Line(NamedTuple):
    """A measured number; ``value`` None where it was not measured."""

    name: str
    value: float | None
    interval: Sequence[float] | None
    n: int


def labels_table(artifact: Artifact) -> RenderableType:
    """Of a label verifier, trained or wrapped: accuracy, macro-F1, ECE, baselines, sources, people, attacks."""
    metrics = artifact.manifest.metrics
    if "accuracy" not in metrics:
        return _table(artifact, (), artifact.manifest.notes or ["not measured"])
    lines = [_line(_title(name), metrics[name]) for name in MEASURES if name in metrics]
    lines += [_line(f"accuracy, {_title(name)}", entry["accuracy"]) for name, entry in metrics["baselines"].items()]
    if len(metrics["by_source"]) > 1:
        lines += [_line(f"accuracy on {source or '(unnamed)'}", entry) for source, entry in metrics["by_source"].items()]
    for decision, entry in metrics.get("decisions", {}).items():
        lines += [_line(f"{decision}: {what}", entry[what]) for what in ("accuracy", "auroc")]
    lines += [_line(f"agreement, {names}", entry["agreement"]) for names, entry in metrics.get("annotators", {}).items()]
    for name, flipped in metrics.get("attacks", {}).items():
        lines.append(_line("flipped by all attacks" if name == "all" else f"flipped by: {name}", flipped))
    temperature = [f"temperature {metrics['temperature']:g}"] if "temperature" in metrics else []
    return _table(artifact, lines, _rows(metrics["rows"]) + temperature)


def values_table(artifact: Artifact) -> RenderableType:
    """Of a value model: each principle's measures, and the routing."""
    metrics = artifact.manifest.metrics
    if "principles" not in metrics:
        return _table(artifact, (), artifact.manifest.notes or ["not measured"])
    lines = [
        _line(f"{principle}: {VALUE_TITLES.get(name, _title(name))}", measured[name])
        for principle, measured in metrics["principles"].items()
        for name in VALUE_MEASURES
    ]
    return _table(artifact, [*lines, _line("routing to the right principle", metrics["routing"])], _rows(metrics["rows"]))


def rollouts_table(artifact: Artifact) -> RenderableType:
    """Of rollouts: each principle's mean value and how much is undecided, and the prompts that have a value."""
    metrics = artifact.manifest.metrics
    lines = []
    for name, of_principle in metrics["principles"].items():
        lines.append(Line(f"{name}: mean value", of_principle["mean"], of_principle.get("mean_interval"), of_principle["n"]))
        lines.append(Line(f"{name}: neither 0 nor 1", of_principle["undecided"], of_principle.get("undecided_interval"), of_principle["n"]))
    if "coverage" in metrics:
        lines.append(_line("prompts with a value", metrics["coverage"]))
    return _table(artifact, lines, [f"{metrics['prefixes']:,} prefixes of {metrics['prompts']:,} prompts", *_failed(artifact, "prompts")])


def scores_table(artifact: Artifact) -> RenderableType:
    """Of scored replies: each verifier's mean score, coverage and labels."""
    metrics = artifact.manifest.metrics
    lines, below = [], [f"{metrics['replies']:,} replies"]
    for name, summary in metrics["verifiers"].items():
        lines.append(Line(f"{name}: mean score", summary["mean"], summary.get("interval"), summary["n"]))
        if "coverage" in summary:
            lines.append(_line(f"{name}: scored", summary["coverage"]))
        counts = {key: summary[key] for key in ("failed", "unparsed", "truncated", "empty") if summary.get(key)}
        counts |= {label: count for label, count in summary["labels"].items() if label != "unparsed"}
        if counts:
            below.append(f"{name}: " + ", ".join(f"{label} {count:,}" for label, count in counts.items()))
    return _table(artifact, lines, [*below, *_failed(artifact, "verdicts")])


def _table(artifact: Artifact, lines: Iterable[Line], below: Sequence[str]) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, header_style="bold")
    for name in ("measure", "value", "95% interval", "n"):
        grid.add_column(name, justify="left" if name == "measure" else "right", overflow="fold", no_wrap=name != "measure")
    for line in lines:
        value = NOTHING if line.value is None else f"{line.value:.3f}"
        grid.add_row(Text(visible(line.name)), value, interval(line.interval), f"{line.n:,}")
    title = Text(visible(artifact.ref), style="italic")  # not the grid's title, which would wrap at the grid's width
    return Group(title, *([grid] if grid.row_count else []), *(Text(visible(text)) for text in below))


def _line(name: str, measured: Mapping[str, Any]) -> Line:
    return Line(name, measured["value"], measured["interval"], measured["n"])


def _title(name: str) -> str:
    return TITLES.get(name, name.replace("_", " "))


def _rows(rows: Mapping[str, Any]) -> list[str]:
    """The counts of rows; those that failed or were truncated on lines of their own."""
    parts = [f"{rows[name]:,} {title}" for name, title in (("train", "trained on"), ("calibration", "calibrated on")) if rows.get(name)]
    lines = ["rows: " + ", ".join([*parts, f"{rows['report']:,} reported"])]
    if rows.get("unscored"):
        lines.append(f"failed: the judge gave {rows['unscored']:,} rows no label")
    if rows.get("missing_label"):
        lines.append(f"left out: {rows['missing_label']:,} rows without a label or a reply")
    if rows.get("train_truncated"):
        lines.append(f"truncated: {rows['train_truncated']:,} training rows")
    if not str(rows.get("held_out_truncated", "0")).startswith("0"):
        lines.append(f"truncated: {rows['held_out_truncated']} held-out rows")
    return lines


def _failed(artifact: Artifact, what: str) -> list[str]:
    failed = artifact.manifest.failed_items
    return [f"failed: {failed:,} {what}"] if failed else []
