"""How well a score ranks positives above negatives (AUROC), with its interval, pure.

Considered and not used: scikit-learn's ``roc_auc_score`` (for its cost: see ``classification``; the tests hold ours against it), and a
bootstrap, whose interval has no width where the ranking of a small sample is perfect.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from safework_cli.statistics.calibration import concordance
from safework_cli.statistics.intervals import Estimate, by_group, normal_quantile, numbered

METHOD = "newcombe"


def auroc(score_N: NDArray[np.float64], positive_N: NDArray[np.bool_]) -> float | None:
    """Share of pairs of a positive and a negative in which the positive has the higher score, ties counted half; None without a pair."""
    if positive_N.all() or not positive_N.any():
        return None
    return concordance(score_N, positive_N.astype(np.float64))


def auroc_interval(value: float, positives: float, negatives: float) -> tuple[float, float]:
    """The score interval of an AUROC at 95 % (R. G. Newcombe 2006, Statistics in Medicine 25, 559-573, method 5).

    The bounds are the θ with |value − θ| = z·√V(θ), V(θ) = θ(1−θ)/(m·n) · [1 + N·((1−θ)/(2−θ) + θ/(1+θ))], N = (m+n)/2 − 1.

    Args:
        positives, negatives: m and n; effective numbers of samples are rarely whole numbers.

    Raises:
        ValueError: one of them is not above 0, or the value is outside [0, 1].
    """
    if positives <= 0 or negatives <= 0 or not 0 <= value <= 1:
        raise ValueError(f"no AUROC of {value} with {positives} positives and {negatives} negatives")
    z, more = normal_quantile(0.95), max(0.0, (positives + negatives) / 2 - 1)

    def excess(theta: float) -> float:
        """(value − θ)² less z² times its variance: negative inside the interval."""
        variance = theta * (1 - theta) / (positives * negatives) * (1 + more * ((1 - theta) / (2 - theta) + theta / (1 + theta)))
        return (value - theta) ** 2 - z * z * variance

    step = 1e-9  # away from the value itself, where the variance may be 0
    low = 0.0 if value <= step else brentq(excess, 0.0, value - step)
    high = 1.0 if value >= 1 - step else brentq(excess, value + step, 1.0)
    return float(low), float(high)


def auroc_estimate(scores: Sequence[float], positive: Sequence[bool], groups: Sequence[Hashable] | None = None) -> Estimate:
    """An AUROC with its interval. Where groups have several members, the interval counts groups and not samples, which is the widest that
    the groups can make it.

    Args:
        groups: of each sample; samples of one group are not independent. Where not given, every sample is its own group.
    """
    positive_N = np.asarray(positive, dtype=bool)
    n = len(positive_N)
    group_N = numbered(groups, n)
    count = int(group_N.max()) + 1 if n else 0
    value = auroc(np.asarray(scores, dtype=np.float64), positive_N) if n else None
    if value is None:
        return Estimate(n, None, None, None, "none", count)
    above = int(positive_N.sum())
    low, high = auroc_interval(value, max(1.0, above * count / n), max(1.0, (n - above) * count / n))
    return Estimate(n, value, low, high, by_group(METHOD, count, n), count)


def auroc_change(first: Estimate, second: Estimate) -> dict[str, object]:
    """The difference of two AUROCs, first minus second. Its interval takes the two for independent (G. Y. Zou & A. Donner 2008): it is too
    wide rather than too narrow where both ranked the same questions."""
    change: float | None = None
    interval: list[float] | None = None
    if first.value is not None and second.value is not None:
        change = first.value - second.value
        if None not in (first.low, first.high, second.low, second.high):
            assert first.low is not None and first.high is not None and second.low is not None and second.high is not None
            below = math.hypot(first.value - first.low, second.high - second.value)
            above = math.hypot(first.high - first.value, second.value - second.low)
            interval = [max(-1.0, change - below), min(1.0, change + above)]
    return {"n": min(first.n, second.n), "change": change, "interval": interval, "method": METHOD if interval else "none"}
