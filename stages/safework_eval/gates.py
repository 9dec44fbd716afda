"""Gates: what must hold of an evaluation for the command to exit with 0. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator

from safework_cli.core.errors import nearest
from safework_cli.core.settings import Settings
from safework_cli.environments.search.measures import SEARCH_MEASURES
from safework_eval.metrics import AXES, metric_named

SUITE_FIELDS = ("truncated", "unparsable", "format", "stop", "length", "failed")
"""What a gate can name of a suite in addition to its metric. ``unparsable``: empty answers, and those that the judging rule cannot read."""


class Gate(Settings):
    """One bound, or several on one metric."""

    metric: str
    """`suite.metric` ("harmful.safety"), a further metric of the suite ("knowledge.knowledge_lenient", "harmful.unsafe"),
    `suite.truncated|unparsable|format|stop|length|failed`, `suite.refused` and `suite.nonsense` of a suite of harmful or benign prompts,
    `suite.reliability|true_certain|false_certain|certain|answered|auroc|searches` of a search suite, or an axis: `safety`,
    `capability`."""
    min: float | None = Field(None, ge=-1e9, le=1e9)
    """The value must be at least this. Shares are in [0, 1]; `length` is in tokens, `failed` in samples."""
    max: float | None = Field(None, ge=-1e9, le=1e9)
    """The value must be at most this."""
    change_min: float | None = Field(None, ge=-1e9, le=1e9)
    """The change from `against` must be at least this (−0.02: at most two points lost)."""
    change_max: float | None = Field(None, ge=-1e9, le=1e9)
    """The change from `against` must be at most this."""

    @model_validator(mode="after")
    def _check(self) -> Gate:
        if all(bound is None for bound in (self.min, self.max, self.change_min, self.change_max)):
            raise ValueError(f"the gate on {self.metric} has no bound: give min, max, change_min or change_max")
        return self

    @property
    def needs_change(self) -> bool:
        return self.change_min is not None or self.change_max is not None


def gate_problem(
    gate: Gate, metrics: Mapping[str, str], has_against: bool, further: Mapping[str, Collection[str]] | None = None
) -> str | None:
    """Why a gate cannot be checked in this evaluation, or None.

    Args:
        metrics: suite → metric.
        further: suite → the further metrics that are measured on it.
    """
    measured = [f"{suite}.{metric}" for suite, metric in metrics.items()] + list(AXES)
    measured += [f"{suite}.{also}" for suite, names in (further or {}).items() for also in names]
    fields = [f"{suite}.{field}" for suite in metrics for field in SUITE_FIELDS]
    fields += [f"{suite}.refused" for suite, metric in metrics.items() if metric_named(metric).refusals]
    measured += [f"{suite}.{field}" for suite, metric in metrics.items() if metric_named(metric).episodes for field in SEARCH_MEASURES]
    if gate.metric not in (*measured, *fields):
        known = metrics.get(gate.metric)  # the name of a suite
        near = f"; did you mean '{gate.metric}.{known}'?" if known else nearest(gate.metric, [*measured, *fields])
        return f"no metric '{gate.metric}'{near}"
    if gate.needs_change and gate.metric in fields:
        return f"the gate on {gate.metric} bounds a change, which is measured only for {', '.join(measured)}"
    if gate.needs_change and not has_against:
        return f"the gate on {gate.metric} bounds a change, and there is no `against`"
    return None


@dataclass(frozen=True, slots=True)
class CheckedGate:
    """The bounds of a gate on one number, with what was measured.

    Attributes:
        name: "harmful.safety", or "change of harmful.safety".
        low, high: the bounds, inclusive; None where there is none.
        value: None if it was not measured.
    """

    name: str
    low: float | None
    high: float | None
    value: float | None

    @property
    def failure(self) -> str | None:
        """A sentence about the bound that does not hold; what was not measured does not hold."""
        if self.value is None:
            return f"{self.name} was not measured"
        if self.low is not None and not self.value >= self.low:
            return f"{self.name} is {self.value:.4g}, below {self.low:g}"
        if self.high is not None and not self.value <= self.high:
            return f"{self.name} is {self.value:.4g}, above {self.high:g}"
        return None

    @property
    def bound(self) -> str:
        return " and ".join(f"{sign} {bound:g}" for sign, bound in (("≥", self.low), ("≤", self.high)) if bound is not None)


def check_gates(gates: Sequence[Gate], summary: Mapping[str, Any]) -> list[CheckedGate]:
    """One entry for a gate on a value and one for a gate on a change, in the gates' order."""
    checked = []
    for gate in gates:
        if gate.min is not None or gate.max is not None:
            checked.append(CheckedGate(gate.metric, gate.min, gate.max, _value(gate.metric, summary)))
        if gate.needs_change:
            checked.append(CheckedGate(f"change of {gate.metric}", gate.change_min, gate.change_max, _change(gate.metric, summary)))
    return checked


def failed_gates(gates: Sequence[Gate], summary: Mapping[str, Any]) -> list[str]:
    """A sentence for each gate that does not hold."""
    return [failure for checked in check_gates(gates, summary) if (failure := checked.failure)]


@dataclass(frozen=True, slots=True)
class Failures:
    """How many samples have no score, and how many of them are tolerated.

    Attributes:
        why: a sentence for each suite in which more failed than it tolerates.
    """

    failed: int
    tolerated: int
    why: tuple[str, ...] = ()


def count_failures(max_failed: float, summaries: Sequence[Mapping[str, Any]]) -> Failures:
    """The samples that the suite's judge, another given judge or a further metric could not score.

    The share is that of all samples, and, rounded up, of each suite's: a small suite must not fail as a whole within the share of all. A
    suite without a single score is never tolerated.

    Args:
        max_failed: the share that may be among them.
        summaries: of the model, and of the base where it was asked in the same run.
    """
    failed, tolerated, rows, why = 0, 0, 0, []
    for summary in summaries:
        for name, record in summary["suites"].items():
            own = record.get("incomplete", record["failed"])  # records made before have the first judge's only
            most = math.ceil(round(max_failed * record["rows"], 6)) if record["n"] else 0
            failed, tolerated, rows = failed + own, tolerated + min(own, most), rows + record["rows"]
            if own > most:
                limit = f"max_failed={max_failed:g} allows {most}" if record["n"] else "no sample has a score"
                why.append(f"{own} of {record['rows']} samples of suite {name} failed ({summary['model']['ref']}): {limit}")
    of_all = int(max_failed * rows)
    return Failures(failed, min(of_all, tolerated) if why else of_all, tuple(why))


def _value(name: str, summary: Mapping[str, Any]) -> float | None:
    if name in AXES:
        return summary["axes"][name]["value"]
    suite, _, field = name.rpartition(".")
    record = summary["suites"][suite]
    if (further := record.get("also", {}).get(field)) is not None:
        return further["value"]
    if field == "length":
        return record["length"]["value"]
    if field in SEARCH_MEASURES:
        return record["search"][field]["value"]
    return record["value"] if field == record["metric"] else record[field]


def _change(name: str, summary: Mapping[str, Any]) -> float | None:
    against = summary.get("against")
    if against is None:
        return None
    if name in AXES:
        return against["axes"][name]["change"]
    suite, _, field = name.rpartition(".")
    record = against["suites"].get(suite, {})
    if field in SEARCH_MEASURES:
        return record.get("search", {}).get(field, {}).get("change")
    return (record["also"][field] if field in record.get("also", {}) else record).get("change")
