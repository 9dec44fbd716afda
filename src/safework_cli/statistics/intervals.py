"""Intervals at 95 %, pure: what every rate that is measured here rests on.

Samples of one group (questions about one passage, replies to one prompt) are not independent: where groups have several members, each
interval goes by the variance between groups, and no interval is narrower than independent samples would give. Every interval says what it
is by ``method``:

    wilson      a share (E. B. Wilson 1927)
    t           any other mean: Student's t. Where the values have bounds, one value at each bound is added to the variance, as the score
                intervals of shares do in effect: two equal scores, or one, do not make a mean certain
    … by group  the same from the effective number of samples, n / design effect (L. Kish 1965), with the t quantile of the number of groups

Shapes: N values, K groups.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.special import stdtrit

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its interval at ``LEVEL``.

    Attributes:
        n: how many samples it rests on.
        value: None where n is 0: nothing measured is not zero.
        low, high: None where nothing bounds the value and there are fewer than two groups.
        method: see the module; "none" where there is no interval.
        groups: how many groups the samples fall into; n where each stands for itself.
    """

    n: int
    value: float | None
    low: float | None
    high: float | None
    method: str
    groups: int

    def to_json(self) -> dict[str, object]:
        interval = None if self.low is None else [self.low, self.high]
        return {"n": self.n, "groups": self.groups, "value": self.value, "interval": interval, "method": self.method}


def wilson(successes: float, n: float, level: float = LEVEL, z: float | None = None) -> tuple[float, float]:
    """The Wilson score interval of a share (E. B. Wilson 1927, without continuity correction).

    Args:
        successes, n: need not be whole numbers: an effective number of samples is none.
        z: the quantile; the normal one of ``level`` where not given.

    Raises:
        ValueError: n is 0 or successes lie outside 0..n.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"no share of {successes} in {n}")
    z = normal_quantile(level) if z is None else z
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low = 0.0 if successes == 0 else max(0.0, centre - half)  # rounding would leave 1e-17
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def estimate(values: Sequence[float], groups: Sequence[Hashable] | None = None, bounds: tuple[float, float] = (0.0, 1.0)) -> Estimate:
    """The mean of values with its interval: a share where they are scores, and each of them is 0 or 1.

    Args:
        groups: of each value; values of one group are not independent. Each stands for itself where none are given.
        bounds: between which every value lies by definition: those of a score, or (0, ∞) for a length.

    Raises:
        ValueError: a value outside the bounds.
    """
    if not values:
        return Estimate(0, None, None, None, "none", 0)
    value_N = np.asarray(values, dtype=np.float64)
    if not ((value_N >= bounds[0]) & (value_N <= bounds[1])).all():  # NaN fails this test too
        raise ValueError(f"a value outside {bounds}")
    group_N = numbered(groups, len(value_N))
    mean, count = float(value_N.mean()), int(group_N.max()) + 1
    if bounds == (0.0, 1.0) and np.isin(value_N, (0.0, 1.0)).all():
        size, z = effective_samples(value_N, group_N, mean * (1 - mean) / len(value_N))
        low, high = wilson(mean * size, size, z=z)
        return Estimate(len(value_N), mean, low, high, by_group("wilson", count, len(value_N)), count)
    interval = t_interval(value_N, group_N, bounds)
    if interval is None:
        return Estimate(len(value_N), mean, None, None, "none", count)
    return Estimate(len(value_N), mean, *interval, by_group("t", count, len(value_N)), count)


# ---------------------------------------------------------------- groups


def numbered(groups: Sequence[Hashable] | None, n: int) -> np.ndarray:
    """Each value's group as a number from 0, (n,)."""
    if groups is None:
        return np.arange(n)
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups])


def by_group(method: str, groups: int, n: int) -> str:
    return method if groups == n else f"{method} by group"


def _variance(value_N: np.ndarray, group_N: np.ndarray) -> float:
    """Of the mean, from the groups' deviations from it: K/(K − 1) Σ_g (Σ_i∈g (x_i − mean))² / n². For at least two groups."""
    deviation_K = np.bincount(group_N, value_N - value_N.mean())
    return float(len(deviation_K) / (len(deviation_K) - 1) * (deviation_K**2).sum() / len(value_N) ** 2)


def effective_samples(value_N: np.ndarray, group_N: np.ndarray, independent: float) -> tuple[float, float]:
    """The number of independent samples that would tell as much, and the quantile that goes with it.

    Args:
        independent: the variance of the mean if the samples were independent.
    """
    n, count = len(value_N), int(group_N.max()) + 1
    if count == n:
        return n, normal_quantile(LEVEL)
    if count == 1:
        return 1.0, normal_quantile(LEVEL)  # what a group has in common cannot be told from one group: it counts as one sample
    if independent == 0:
        return count, student_quantile(count - 1)  # all alike: the groups might be alike as a whole
    effect = max(1.0, _variance(value_N, group_N) / independent)
    return max(1.0, n / effect), student_quantile(count - 1)


def t_interval(value_N: np.ndarray, group_N: np.ndarray, bounds: tuple[float, float]) -> tuple[float, float] | None:
    """Student's interval of a mean, from the groups' deviations and, where there are bounds, a group of middling size at each of them."""
    n, count = len(value_N), int(group_N.max()) + 1
    mean = float(value_N.mean())
    deviation_K = np.bincount(group_N, value_N - mean)
    low, high = bounds
    if math.isfinite(low) and math.isfinite(high):
        size = n / count
        deviation_K = np.append(deviation_K, [size * (low - mean), size * (high - mean)])
    freedom = len(deviation_K) - 1
    if freedom < 1:
        return None
    half = student_quantile(freedom) * math.sqrt(float((deviation_K**2).sum()) * count / freedom) / n
    return max(low, mean - half), min(high, mean + half)


def normal_quantile(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)


def student_quantile(freedom: int) -> float:
    """The quantile of Student's t for ``LEVEL``."""
    return float(stdtrit(freedom, (1 + LEVEL) / 2))
