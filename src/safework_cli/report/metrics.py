"""What the report knows of each metric: its title, direction and unit, from the registered metrics or from the evaluation itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from safework_cli.core.errors import SafeworkError
from safework_cli.core.registry import entries, load_registered

GROUP = "safework.metrics"
LENGTH = "length"


@dataclass(frozen=True, slots=True)
class MetricColumn:
    """A column of the ladder's table.

    Attributes:
        summary: one line about what is measured.
        better: None if neither direction is better, or if it is not known.
        unit: a share in [0, 1] is shown in per cent.
        problem: why only what the evaluation recorded is known of a metric whose package is broken here; empty for all others.
    """

    name: str
    title: str
    summary: str
    better: Literal["higher", "lower"] | None
    unit: Literal["share", "tokens", "number"] = "share"
    problem: str = ""

    @property
    def mark(self) -> str:
        """For the heading: the better direction, or the unit."""
        if self.unit == "tokens":
            return "tokens"
        return {"higher": "↑", "lower": "↓", None: ""}[self.better]


LENGTH_COLUMN = MetricColumn(LENGTH, "Length", "mean reply length over all suites, in tokens", None, "tokens")


def metric_columns(names: Iterable[str], suites: Iterable[Mapping[str, Any]]) -> dict[str, MetricColumn]:
    """The columns of metrics, in the metrics' own order, the length last.

    Args:
        names: metrics with a column of their own even if nothing was measured.
        suites: the suite records of all evaluations, newest last: they say what is known of a metric whose package is not installed.
    """
    recorded = {name: {"metric": name} for name in names if name != LENGTH} | {str(suite["metric"]): suite for suite in suites}
    placed = sorted((_column(name, suite) for name, suite in recorded.items()), key=lambda item: (item[0], item[1].name))
    return {column.name: column for _, column in placed} | {LENGTH: LENGTH_COLUMN}


def _column(name: str, suite: Mapping[str, Any]) -> tuple[float, MetricColumn]:
    """A metric's position and column."""
    title = name.replace("_", " ").capitalize()
    metric, why = _registered(name)
    if metric is not None:
        unit: Literal["share", "number"] = "share" if metric.bounds == (0.0, 1.0) else "number"
        return metric.order, MetricColumn(name, metric.title or title, metric.summary, metric.better, unit)
    better = suite.get("better")
    known: Literal["higher", "lower"] | None = better if better in ("higher", "lower") else None
    unit = "share" if suite.get("in_percent", True) else "number"
    if not why:
        return float("inf"), MetricColumn(name, title, "its package is not installed here", known, unit)
    problem = f"the metric '{name}' has no title, summary or place of its own, only what the evaluations recorded: {why}"
    return float("inf"), MetricColumn(name, title, "its package cannot be used here", known, unit, problem)


def _registered(name: str) -> tuple[Any | None, str]:
    """The metric's object, or None and why its package cannot be used (empty where none registers it): a report shows what was measured
    nevertheless."""
    if name not in entries(GROUP):
        return None, ""
    try:
        metric = load_registered(GROUP, name, "metric")
        _ = metric.order, metric.title, metric.summary, metric.better, metric.bounds
    except SafeworkError as error:
        return None, f"it cannot be imported ({error.why})"
    except Exception as error:  # a third party's module
        return None, f"{entries(GROUP)[name].value} cannot be used ({type(error).__name__}: {error})"
    return metric, ""
