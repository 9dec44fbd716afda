"""How good a value model is on prompts that it was not trained on.

Shapes: N prefixes, K of them with a value of the principle, P principles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import expit

from safework_cli.core.stage import WorkDir
from safework_cli.data.row import Row
from safework_cli.statistics.calibration import calibration_error, concordance, fit_value_temperature, skill, squared_error
from safework_cli.statistics.intervals import bootstrap_figure
from safework_cli.verifiers.contract import Exchange
from safework_cli.verifiers.values import ValueModel
from safework_verifier.values.prefixes import Prefixes, mean_values, routing_targets


def measure(values: ValueModel, parts: Prefixes, seed: int, work: WorkDir) -> dict[str, Any]:
    """Fits each principle's temperature on one half of the held-out prompts (into the model's spec), and measures on the other.

    Of each principle: squared error, skill over the constant mean of the training values, share of pairs in the right order (0.5 is
    chance) and calibration error. Of the routing: how often the largest weight is that of the principle with the largest target.
    """
    spec = values.spec
    with work.progress.phase("calibrate", len(parts.calibration)):
        logits_NP, _ = _logits(values, parts.calibration)
        spec.temperatures = [
            round(fit_value_temperature(logits_NP[:, p], _targets(parts.calibration, name)), 4) for p, name in enumerate(spec.principles)
        ]
    with work.progress.phase("evaluate", len(parts.report)):
        logits_NP, routing_NP = _logits(values, parts.report)
    means = mean_values(parts.train, spec.principles)
    principles = {}
    for p, name in enumerate(spec.principles):
        target_N = _targets(parts.report, name)
        known_K = np.flatnonzero(~np.isnan(target_N))
        groups = [parts.report[i].group for i in known_K]
        value_K = expit(logits_NP[known_K, p] / spec.temperatures[p])
        principles[name] = {"temperature": spec.temperatures[p], **_of_principle(value_K, target_N[known_K], means[p], groups, seed)}
    targets = routing_targets(parts.report, spec.principles)
    hit_N = np.array([np.argmax(targets[row.group]) == chosen for row, chosen in zip(parts.report, routing_NP.argmax(1), strict=True)])
    return {
        "principles": principles,
        "rows": {"train": len(parts.train), "calibration": len(parts.calibration), "report": len(parts.report)},
        "routing": bootstrap_figure([row.group for row in parts.report], lambda rows: float(hit_N[rows].mean()), seed),
    }


def _of_principle(value_K: Any, target_K: Any, mean: float, groups: list[str], seed: int) -> dict[str, Any]:
    statistics = {
        "squared_error": squared_error,
        "skill": lambda value, target: skill(value, target, mean),
        "ranking": concordance,
        "calibration_error": calibration_error,
    }
    figures: dict[str, dict[str, Any]] = {
        name: bootstrap_figure(groups, lambda rows, f=statistic: f(value_K[rows], target_K[rows]), seed)  # type: ignore[misc]
        for name, statistic in statistics.items()
    }
    if len(np.unique(target_K)) == 1:  # without a pair to put in order
        figures["ranking"] |= {"value": None, "interval": None}
    return {"mean_value": round(float(target_K.mean()), 4), **figures}


def _logits(values: ValueModel, rows: Sequence[Row]) -> tuple[Any, Any]:
    logits_NP, routing_NP = values.logits([values.writer.write(Exchange.of(row)) for row in rows])
    return logits_NP.double().numpy(), routing_NP.double().numpy()


def _targets(rows: Sequence[Row], name: str) -> Any:
    """Monte-Carlo values of a principle, NaN where a row has none, (N,)."""
    return np.array([row.meta["values"].get(name, np.nan) for row in rows])
