"""Two like evaluations beside each other: paired by sample, with the angle to the 45° line. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from safework_eval.statistics import LEVEL, bootstrap_means, compare_paired
from safework_eval.summary import AXES

Outcomes = Mapping[str, Mapping[str, float | None]]
"""Suite → row id → the metric's value, None where it could not be scored."""


def compare(this: Mapping[str, Any], this_outcomes: Outcomes, that: Mapping[str, Any], that_outcomes: Outcomes) -> dict[str, Any]:
    """The change from that evaluation to this one.

    Returns:
        ``suites``: suite → paired change with interval and, for shares, McNemar's exact p; ``axes``: safety and capability → change in
        [−1, 1] with its paired bootstrap interval; ``angle``: see ``angle_to_45``, None where nothing moved or an axis is missing;
        ``angle_is_noise``: neither axis' interval excludes 0; ``metrics``: metric → change.
    """
    suites: dict[str, Any] = {}
    differences: dict[str, list[float]] = {}
    for name in sorted(this["suites"].keys() & that["suites"].keys()):
        first, second = _scored(this_outcomes[name]), _scored(that_outcomes[name])
        suites[name] = {"metric": this["suites"][name]["metric"], **compare_paired(first, second).to_json()}
        shared = sorted(first.keys() & second.keys())
        if shared:
            differences[name] = [first[key] - second[key] for key in shared]
    resampled = bootstrap_means(differences)
    axes = {axis: _axis_change(axis, suites, differences, resampled) for axis in AXES}
    safety, capability = axes["safety"]["change"], axes["capability"]["change"]
    angle = None if safety is None or capability is None else angle_to_45(safety, capability)
    settled = [a["interval"] is not None and (a["interval"][0] > 0 or a["interval"][1] < 0) for a in axes.values()]
    return {
        "model": that["model"],
        "suites": suites,
        "metrics": {metric: change for axis in AXES for metric, change in _metric_changes(axis, suites, differences).items()},
        "axes": axes,
        "angle": angle,
        "angle_is_noise": not any(settled),
    }


def _scored(outcomes: Mapping[str, float | None]) -> dict[str, float]:
    return {key: value for key, value in outcomes.items() if value is not None}


def _metric_changes(axis: str, suites: Mapping[str, Any], differences: Mapping[str, Sequence[float]]) -> dict[str, float]:
    changes = {}
    for metric in AXES[axis]:
        names = [name for name, record in suites.items() if record["metric"] == metric]
        if names and all(name in differences for name in names):
            changes[metric] = sum(suites[name]["change"] for name in names) / len(names)
    return changes


def _axis_change(
    axis: str, suites: Mapping[str, Any], differences: Mapping[str, Sequence[float]], resampled: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    changes = _metric_changes(axis, suites, differences)
    if not changes:
        return {"change": None, "interval": None, "metrics": []}
    total_R = np.zeros(len(next(iter(resampled.values()))))
    for metric in changes:
        names = [name for name, record in suites.items() if record["metric"] == metric]
        for name in names:
            total_R += AXES[axis][metric] * resampled[name] / len(names) / len(changes)
    low, high = np.quantile(total_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    change = sum(AXES[axis][metric] * value for metric, value in changes.items()) / len(changes)
    return {"change": change, "interval": [float(low), float(high)], "metrics": sorted(changes)}


def angle_to_45(safety_change: float, capability_change: float) -> float | None:
    """Degrees from the 45° line to the step (capability_change, safety_change), in (−180, 180]; None for a step of length 0.

    0 is the balanced step in which both rise alike; positive leans to safety, negative to capability; beyond ±45 one of the two fell.
    The number is ours: arXiv 2412.14186 draws the line and defines no metric.
    """
    if safety_change == 0 and capability_change == 0:
        return None
    degrees = math.degrees(math.atan2(safety_change, capability_change)) - 45.0
    return degrees + 360.0 if degrees <= -180.0 else degrees
