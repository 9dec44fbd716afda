"""Intervals at 95%, pure: the basis of every rate that the tool reports.

Samples of one group (questions about one passage, replies to one prompt) are not independent. Where groups have several members, the
interval uses the variance between groups, and it is never narrower than independent samples would give. ``method`` names each interval:

    wilson      a share (E. B. Wilson 1927)
    t           any other mean: Student's t. Where the values have bounds, one value at each bound is added to the variance, as score
                intervals of shares do in effect: two equal scores, or one, do not make a mean certain
    … by group  the same from the effective number of samples, n / design effect (L. Kish 1965), with the t quantile of the number of groups

Considered and not used: ``scipy.stats.binomtest(…).proportion_ci("wilson")`` (whole counts and normal quantiles only; here both are
effective ones), ``scipy.stats.bootstrap`` (resamples rows, not groups). The tests hold ours against the first.

Shapes: N values, K groups, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

LEVEL = 0.95
RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its interval at ``LEVEL``.

    Attributes:
        n: the number of samples.
        value: None where n is 0: a value that was not measured is not zero.
        low, high: None where the value has no bounds and there are fewer than two groups.
        method: see the module; "none" without an interval.
        groups: the number of groups; n where every sample is its own group.
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
        successes, n: real numbers: an effective number of samples is rarely a whole number.
        z: the quantile; the normal one of ``level`` where not given.

    Raises:
        ValueError: n is 0, or successes are outside 0..n.
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
    """The mean of values with its interval: that of a share where the bounds are 0 and 1 and every value is 0 or 1.

    Args:
        groups: of each value; values of one group are not independent. Where not given, every value is its own group.
        bounds: the range that values have by definition: (0, 1) for a score, (0, ∞) for a length.

    Raises:
        ValueError: a value is outside the bounds.
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


def mean_of_classes(
    values: Sequence[float], classes: Sequence[str], expected: Sequence[str], groups: Sequence[Hashable], bounds: tuple[float, float]
) -> Estimate:
    """The mean over classes of the mean of their values, each class with the same weight however many values it has. The interval rests on
    the groups' deviations, each value's weighted as the mean weights it; groups may have members in several classes.

    Args:
        expected: all classes; the mean is None where one of them has no value.
        bounds: finite ones.
    """
    weight = {name: 1 / (len(expected) * classes.count(name)) for name in set(classes)}
    if set(expected) - weight.keys():
        return Estimate(len(values), None, None, None, "none", len(set(groups)))
    if len(expected) == 1:
        return estimate(values, groups, bounds)
    group_N, value_N = numbered(groups, len(values)), np.asarray(values, dtype=np.float64)
    weight_N = np.array([weight[name] for name in classes])
    mean_N = np.array([value_N[np.array([own == name for own in classes])].mean() for name in classes])
    mean, count = float((weight_N * value_N).sum()), int(group_N.max()) + 1
    low, high = bounds
    size = 1 / count  # a group at each bound, as `t_interval` has them
    deviation_K = np.append(np.bincount(group_N, weight_N * (value_N - mean_N)), [size * (low - mean), size * (high - mean)])
    freedom = len(deviation_K) - 1
    half = student_quantile(freedom) * math.sqrt(float((deviation_K**2).sum()) * len(deviation_K) / freedom)
    return Estimate(len(values), mean, max(low, mean - half), min(high, mean + half), "t of class means by group", count)


# ---------------------------------------------------------------- groups


def numbered(groups: Sequence[Hashable] | None, n: int) -> np.ndarray:
    """The group of each value as a number from 0, (n,)."""
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
    """The number of independent samples with the same variance of the mean, and the quantile to use with it.

    Args:
        independent: the variance of the mean if the samples were independent.
    """
    n, count = len(value_N), int(group_N.max()) + 1
    if count == n:
        return n, normal_quantile(LEVEL)
    if count == 1:
        return 1.0, normal_quantile(LEVEL)  # the variance between groups is unknown: one group counts as one sample
    if independent == 0:
        return count, student_quantile(count - 1)  # all values are equal, perhaps because each group is uniform: a group is one sample
    effect = max(1.0, _variance(value_N, group_N) / independent)
    return max(1.0, n / effect), student_quantile(count - 1)


def t_interval(value_N: np.ndarray, group_N: np.ndarray, bounds: tuple[float, float]) -> tuple[float, float] | None:
    """Student's interval of a mean, from the groups' deviations and, where there are bounds, a group of average size at each of them."""
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


def cluster_bootstrap(groups: Sequence[str], statistic: Callable[[NDArray[np.int64]], float], seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of row indices; whole groups are resampled.

    Args:
        groups: of each row.
        statistic: a function of row indices, in which a row can occur several times.
    """
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


def normal_quantile(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)


def student_quantile(freedom: int) -> float:
    """The quantile of Student's t for ``LEVEL``."""
    return float(stdtrit(freedom, (1 + LEVEL) / 2))


# ---------------------------------------------------------------- in manifests


def figure(n: int, value: float, interval: tuple[float, float]) -> dict[str, Any]:
    """A measured number as manifests of verifiers store it: value, n, 95% interval."""
    return {"n": n, "value": round(value, 4), "interval": [round(interval[0], 4), round(interval[1], 4)]}


def share_figure(hit_N: Any, groups: Sequence[str] | None = None) -> dict[str, Any]:
    """The share of rows that are True, (N,) with N ≥ 1; rows of one group are not independent."""
    share = estimate(np.asarray(hit_N, dtype=float).tolist(), groups)
    assert share.value is not None and share.low is not None and share.high is not None  # a share of at least one row
    return figure(share.n, share.value, (share.low, share.high))


def bootstrap_figure(groups: Sequence[str], statistic: Callable[[NDArray[np.int64]], float], seed: int) -> dict[str, Any]:
    """A statistic of all rows with its ``cluster_bootstrap`` interval."""
    return figure(len(groups), statistic(np.arange(len(groups))), cluster_bootstrap(groups, statistic, seed))
