"""What a label verifier is measured by, pure: accuracy, macro-F1, confusion, calibration, intervals, temperature.

Shapes: N rows, C labels, R resamples. Probabilities are (N, C) with rows that sum to 1, labels are (N,) integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safework_cli.statistics.intervals import LEVEL
from safework_cli.statistics.intervals import estimate as interval_estimate
from safework_cli.statistics.intervals import wilson as wilson

RESAMPLES = 1000
BINS = 10
TEMPERATURES = (0.05, 20.0)

Labels = NDArray[np.int64]
Floats = NDArray[np.float64]


def confusion_matrix(gold_N: Labels, predicted_N: Labels, classes: int) -> NDArray[np.int64]:
    """Counts, (C, C): rows are gold labels, columns predictions."""
    return np.bincount(gold_N * classes + predicted_N, minlength=classes * classes).reshape(classes, classes)


def accuracy(gold_N: Labels, predicted_N: Labels) -> float:
    return float((gold_N == predicted_N).mean())


def macro_f1(gold_N: Labels, predicted_N: Labels, classes: int) -> float:
    """Unweighted mean of F1 over the classes that occur, as gold or as prediction."""
    counts_CC = confusion_matrix(gold_N, predicted_N, classes)
    both_C = counts_CC.sum(0) + counts_CC.sum(1)
    occurs_C = both_C > 0
    return float((2 * counts_CC.diagonal()[occurs_C] / both_C[occurs_C]).mean())


def cohen_kappa(one_N: Labels, other_N: Labels, classes: int) -> float:
    """Agreement beyond chance, (p_o - p_e) / (1 - p_e) (Cohen 1960); 1 where both say one and the same label throughout."""
    counts_CC = confusion_matrix(one_N, other_N, classes) / len(one_N)
    chance = float((counts_CC.sum(0) * counts_CC.sum(1)).sum())
    return 1.0 if chance == 1.0 else (float(np.trace(counts_CC)) - chance) / (1 - chance)


def expected_calibration_error(probability_NC: Floats, gold_N: Labels, bins: int = BINS) -> float:
    """ECE: mean distance between confidence and accuracy over equal bins of the top probability, weighted by rows (Guo et al. 2017)."""
    confidence_N = probability_NC.max(1)
    correct_N = probability_NC.argmax(1) == gold_N
    bin_N = np.minimum((confidence_N * bins).astype(np.int64), bins - 1)
    gap = np.bincount(bin_N, weights=correct_N - confidence_N, minlength=bins)
    return float(np.abs(gap).sum() / len(gold_N))


def brier(probability_NC: Floats, gold_N: Labels) -> float:
    """Mean squared distance between the probability vector and the one-hot gold label, in [0, 2] (Brier 1950)."""
    one_hot_NC = np.eye(probability_NC.shape[1])[gold_N]
    return float(((probability_NC - one_hot_NC) ** 2).sum(1).mean())


def cluster_bootstrap(groups: Sequence[str], statistic: Callable[[NDArray[np.int64]], float], seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of row indices, resampling whole groups: replies to one prompt are not independent."""
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    index_lists = [np.array(rows) for _, rows in sorted(members.items())]
    rng = np.random.default_rng(seed)
    values_R = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, len(index_lists), len(index_lists))
        values_R.append(statistic(np.concatenate([index_lists[i] for i in drawn])))
    low, high = np.quantile(values_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def rescale(probability_NC: Floats, temperature: float) -> Floats:
    """The probabilities that the same logits give at another temperature: p^(1/T), normalised."""
    logits_NC = np.log(np.clip(probability_NC, 1e-30, None)) / temperature
    shifted_NC = np.exp(logits_NC - logits_NC.max(1, keepdims=True))
    return shifted_NC / shifted_NC.sum(1, keepdims=True)


def negative_log_likelihood(probability_NC: Floats, gold_N: Labels) -> float:
    """Mean over rows, in nats."""
    return float(-np.log(np.clip(probability_NC[np.arange(len(gold_N)), gold_N], 1e-30, None)).mean())


def fit_temperature(probability_NC: Floats, gold_N: Labels) -> float:
    """The temperature within ``TEMPERATURES`` that minimises the negative log-likelihood (Guo et al. 2017), by golden section over log T.

    The objective is convex in 1/T, so it has one minimum over log T.
    """
    low, high = math.log(TEMPERATURES[0]), math.log(TEMPERATURES[1])
    ratio = (math.sqrt(5) - 1) / 2

    def loss(log_t: float) -> float:
        return negative_log_likelihood(rescale(probability_NC, math.exp(log_t)), gold_N)

    while high - low > 1e-4:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if loss(left) <= loss(right):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)


def estimate(n: int, value: float, interval: tuple[float, float]) -> dict[str, Any]:
    """A measured number as it stands in manifests: value, n, 95 % interval."""
    return {"n": n, "value": round(value, 4), "interval": [round(interval[0], 4), round(interval[1], 4)]}


def share_estimate(gold_N: Labels, predicted_N: Labels, groups: Sequence[str] | None = None) -> dict[str, Any]:
    """The share of right predictions; those about one group (replies to one prompt) are not independent."""
    found = interval_estimate((gold_N == predicted_N).astype(float).tolist(), groups)
    assert found.value is not None and found.low is not None and found.high is not None  # a share of at least one prediction
    return estimate(found.n, found.value, (found.low, found.high))


def report_hard(gold_N: Labels, predicted_N: Labels, classes: int, groups: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Accuracy and macro-F1 of given predictions, each with n and interval."""
    interval = cluster_bootstrap(groups, lambda rows: macro_f1(gold_N[rows], predicted_N[rows], classes), seed)
    return {
        "accuracy": share_estimate(gold_N, predicted_N, groups),
        "macro_f1": estimate(len(gold_N), macro_f1(gold_N, predicted_N, classes), interval),
    }


def report(probability_NC: Floats, gold_N: Labels, groups: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Accuracy, macro-F1, ECE and Brier score of probabilities, each with n and interval."""
    found = report_hard(gold_N, probability_NC.argmax(1), probability_NC.shape[1], groups, seed)
    for name, statistic in (("ece", expected_calibration_error), ("brier", brier)):
        interval = cluster_bootstrap(groups, lambda rows, f=statistic: f(probability_NC[rows], gold_N[rows]), seed)  # type: ignore[misc]
        found[name] = estimate(len(gold_N), statistic(probability_NC, gold_N), interval)
    return found
