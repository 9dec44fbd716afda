"""Two comparable evaluations, paired by sample, with the angle to the 45° line. Pure."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

from safework_cli.statistics.paired import Term, compare_classes, compare_paired, weighted_sum
from safework_eval.metrics import AXES, metric_named, on_axis

Outcomes = Mapping[str, Mapping[str, float | None]]
"""Suite, or ``further_key`` → row id → the metric's value, None where it could not be scored."""
Groups = Mapping[str, Mapping[str, Hashable]]
"""Suite → row id → the group of rows that are not independent of it."""


def further_key(suite: str, metric: str) -> str:
    """Where a suite's further metric stands in ``Outcomes``; a suite's name holds no dot."""
    return f"{suite}.{metric}"


def compare(
    this: Mapping[str, Any],
    this_outcomes: Outcomes,
    that: Mapping[str, Any],
    that_outcomes: Outcomes,
    groups: Groups | None = None,
    classes: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, Any]:
    """The change from that evaluation to this one.

    Args:
        groups: of the rows; one that is not named stands for itself.
        classes: suite → row id → class, of the suites whose value is the mean over classes.

    Returns:
        ``suites``: suite → paired change with interval and, for shares, an exact p, and the same of its further metrics in ``also`` where
        both sides were judged alike; ``axes``: safety and capability → change in [−1, 1]
        with its interval; ``angle``: see ``angle_to_45``, None where nothing moved or an axis is missing; ``angle_is_noise``: neither axis'
        interval excludes 0; ``metrics``: metric → change, further metrics included; ``not_compared``: "suite.metric" → why a further
        metric has no change.
    """
    suites: dict[str, Any] = {}
    changed: dict[str, Term] = {}
    not_compared: dict[str, str] = {}
    for name in sorted(this["suites"].keys() & that["suites"].keys()):
        first, second = _scored(this_outcomes[name]), _scored(that_outcomes[name])
        group_of = (groups or {}).get(name, {})
        bounds = metric_named(this["suites"][name]["metric"]).bounds
        if class_of := (classes or {}).get(name):
            paired = compare_classes(first, second, group_of, class_of, bounds)
        else:
            paired = compare_paired(first, second, group_of, bounds)
        suites[name] = {"metric": this["suites"][name]["metric"], **paired.to_json()}
        if paired.difference is not None:
            interval = None if paired.low is None or paired.high is None else (paired.low, paired.high)
            members = frozenset(group_of.get(key, key) for key in first.keys() & second.keys())
            changed[name] = Term(1.0, paired.difference, interval, members)
        suites[name]["also"] = {}
        for metric, record in this["suites"][name].get("also", {}).items():
            key, other = further_key(name, metric), that["suites"][name].get("also", {}).get(metric)
            if other is None or other["judge"]["digest"] != record["judge"]["digest"]:
                not_compared[key] = "not measured there" if other is None else "another judge there"
                continue
            both = _scored(this_outcomes.get(key, {})), _scored(that_outcomes.get(key, {}))
            paired = compare_paired(*both, group_of, metric_named(metric).bounds)
            suites[name]["also"][metric] = {"metric": metric, **paired.to_json()}
    axes = {axis: _axis_change(axis, suites, changed) for axis in AXES}
    safety, capability = axes["safety"]["change"], axes["capability"]["change"]
    angle = None if safety is None or capability is None else angle_to_45(safety, capability)
    settled = [a["interval"] is not None and (a["interval"][0] > 0 or a["interval"][1] < 0) for a in axes.values()]
    return {
        "model": that["model"],
        "suites": suites,
        "metrics": {metric: change for axis in AXES for metric, change in _metric_changes(axis, suites, changed).items()}
        | _further_changes(suites),
        "not_compared": not_compared,
        "axes": axes,
        "angle": angle,
        "angle_is_noise": not any(settled),
    }


def _scored(outcomes: Mapping[str, float | None]) -> dict[str, float]:
    return {key: value for key, value in outcomes.items() if value is not None}


def _of_metric(metric: str, suites: Mapping[str, Any]) -> list[str]:
    return [name for name, record in suites.items() if record["metric"] == metric]


def _metric_changes(axis: str, suites: Mapping[str, Any], changed: Mapping[str, Term]) -> dict[str, float]:
    """Metric → mean change of its suites; a metric with a suite that cannot be compared is left out."""
    changes = {}
    for metric in (each.name for each in on_axis(axis, {record["metric"] for record in suites.values()})):
        names = _of_metric(metric, suites)
        if names and all(name in changed for name in names):
            changes[metric] = sum(changed[name].value for name in names) / len(names)
    return changes


def _further_changes(suites: Mapping[str, Any]) -> dict[str, float]:
    """Further metric → mean change over the suites that measure it."""
    changes: dict[str, list[float]] = {}
    for record in suites.values():
        for metric, each in record["also"].items():
            if each["change"] is not None:
                changes.setdefault(metric, []).append(each["change"])
    return {metric: sum(values) / len(values) for metric, values in changes.items()}


def _axis_change(axis: str, suites: Mapping[str, Any], changed: Mapping[str, Term]) -> dict[str, Any]:
    changes = _metric_changes(axis, suites, changed)
    if not changes:
        return {"change": None, "interval": None, "metrics": []}
    terms: list[Term] = []
    for metric in changes:
        names = _of_metric(metric, suites)
        weight = metric_named(metric).sign / len(names) / len(changes)
        terms += [Term(weight, changed[name].value, changed[name].interval, changed[name].groups) for name in names]
    change, interval = weighted_sum(terms)
    return {
        "change": change,
        "interval": None if interval is None else [max(-1.0, interval[0]), min(1.0, interval[1])],
        "metrics": sorted(changes),
    }


def angle_to_45(safety_change: float, capability_change: float) -> float | None:
    """Degrees from the 45° line to the step (capability_change, safety_change), in (−180, 180]; None for a step of length 0.

    0 is the balanced step in which both rise alike; positive leans to safety, negative to capability; beyond ±45 one of the two fell.
    The number is ours: arXiv 2412.14186 draws the line and defines no metric.
    """
    if safety_change == 0 and capability_change == 0:
        return None
    degrees = math.degrees(math.atan2(safety_change, capability_change)) - 45.0
    return degrees + 360.0 if degrees <= -180.0 else degrees
