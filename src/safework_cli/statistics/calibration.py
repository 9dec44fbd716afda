"""Probabilities against what happened, pure: calibration error, Brier score, skill, ranking, temperature.

Considered and not used: scikit-learn's ``brier_score_loss`` (for its cost: see ``classification``) and ``calibration_curve`` (binary, and
without the weights that an ECE needs), ``scipy.stats.somersd`` (slow on distinct values), ``scipy.optimize.minimize_scalar`` for the
temperature (the last saved digit would depend on scipy's version). The tests hold ours against the first.

Shapes: N rows, C labels. Probabilities are (N, C) with rows that sum to 1, labels are (N,) integers, soft outcomes (N,) in [0, 1].
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

BINS = 10
LABEL_TEMPERATURES = (0.05, 20.0)
VALUE_TEMPERATURES = np.exp(np.linspace(np.log(0.2), np.log(5.0), 61))

Labels = NDArray[np.int64]
Floats = NDArray[np.float64]


# ---------------------------------------------------------------- labels


def expected_calibration_error(probability_NC: Floats, gold_N: Labels, bins: int = BINS) -> float:
    """ECE: mean distance between confidence and accuracy over equal bins of the top probability, weighted by rows (Guo et al. 2017)."""
    correct_N = probability_NC.argmax(1) == gold_N
    return calibration_error(probability_NC.max(1), correct_N.astype(np.float64), bins)


def brier(probability_NC: Floats, gold_N: Labels) -> float:
    """Mean squared distance between the probability vector and the one-hot gold label, in [0, 2] (Brier 1950)."""
    one_hot_NC = np.eye(probability_NC.shape[1])[gold_N]
    return float(((probability_NC - one_hot_NC) ** 2).sum(1).mean())


def rescale(probability_NC: Floats, temperature: float) -> Floats:
    """The probabilities that the same logits give at another temperature: p^(1/T), normalised."""
    return softmax(np.log(np.clip(probability_NC, 1e-30, None)) / temperature, axis=1)


def negative_log_likelihood(probability_NC: Floats, gold_N: Labels) -> float:
    """Mean over rows, in nats."""
    return float(-np.log(np.clip(probability_NC[np.arange(len(gold_N)), gold_N], 1e-30, None)).mean())


def fit_temperature(probability_NC: Floats, gold_N: Labels) -> float:
    """The temperature within ``LABEL_TEMPERATURES`` that minimises the negative log-likelihood (Guo et al. 2017), by golden section
    over log T. The objective is convex in 1/T and has one minimum over log T."""
    low, high = math.log(LABEL_TEMPERATURES[0]), math.log(LABEL_TEMPERATURES[1])
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


# ---------------------------------------------------------------- values


def calibration_error(probability_N: Floats, outcome_N: Floats, bins: int = BINS) -> float:
    """Mean distance between mean probability and mean outcome over equal bins of probability, weighted by rows: ECE, also for soft
    outcomes."""
    bin_N = np.minimum((probability_N * bins).astype(np.int64), bins - 1)
    gap = np.bincount(bin_N, weights=probability_N - outcome_N, minlength=bins)
    return float(np.abs(gap).sum() / len(outcome_N))


def squared_error(probability_N: Floats, outcome_N: Floats) -> float:
    """Mean squared error."""
    return float(((probability_N - outcome_N) ** 2).mean())


def skill(probability_N: Floats, outcome_N: Floats, mean: float) -> float:
    """1 - squared error over that of the constant ``mean``: the share of the variance that is explained; below 0 is worse than ``mean``.
    0 where every outcome equals ``mean``."""
    spread = float(((outcome_N - mean) ** 2).mean())
    return 1 - squared_error(probability_N, outcome_N) / spread if spread > 0 else 0.0


def concordance(probability_N: Floats, outcome_N: Floats) -> float:
    """Share of pairs with different outcomes that are in the right order, ties counted half (Harrell's C; for outcomes 0 and 1 the area
    under the ROC curve, Mann and Whitney 1947); 0.5 where no outcomes differ, and chance.

    From Kendall's τ, which scipy counts in N·log N: τ·√((all − tied scores)·(all − tied outcomes)) is the number of pairs in the right
    order less that in the wrong one.
    """
    from scipy.stats import kendalltau  # a third of a second, for those who rank only

    pairs = len(outcome_N) * (len(outcome_N) - 1) / 2
    known, differ = (pairs - _tied(values_N) for values_N in (probability_N, outcome_N))
    if not known or not differ:
        return 0.5
    tau = float(kendalltau(probability_N, outcome_N).statistic)
    return min(1.0, max(0.0, (1 + tau * math.sqrt(known / differ)) / 2))  # rounding would leave -1e-16 where all pairs are wrong


def _tied(value_N: Floats) -> float:
    """Pairs of equal values."""
    counts = np.unique(value_N, return_counts=True)[1].astype(np.float64)
    return float((counts * (counts - 1) / 2).sum())


def fit_value_temperature(logit_N: Floats, outcome_N: Floats) -> float:
    """The temperature among ``VALUE_TEMPERATURES`` that minimises the binary cross-entropy of σ(logit / T) against soft outcomes; rows
    whose outcome is NaN are left out, and 1 is returned where none remains."""
    known_N = ~np.isnan(outcome_N)
    if not known_N.any():
        return 1.0
    z_N, y_N = logit_N[known_N], outcome_N[known_N]
    losses = [float((np.logaddexp(0, z_N / t) - y_N * z_N / t).mean()) for t in VALUE_TEMPERATURES]
    return float(VALUE_TEMPERATURES[int(np.argmin(losses))])
