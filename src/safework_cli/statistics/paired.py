"""Paired comparisons and sums of changes, pure. For the effect of groups on an interval see ``safework_cli.statistics.intervals``.

tango       a difference of two paired shares: the score interval (T. Tango 1998, Statistics in Medicine 17, 891-908)
t           a difference of other paired means
… by group  the same where pairs of one group are not independent

Considered and not used: ``scipy.stats.binomtest`` for McNemar's test (no groups) and ``scipy.stats.permutation_test`` for sign flips
(random where the groups are many; the convolution here is exact). scipy has no score interval of a paired difference; its root finder is
used.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from safework_cli.statistics.intervals import LEVEL, by_group, effective_samples, mean_of_classes, normal_quantile, numbered, t_interval


def tango(gained: float, lost: float, n: float, level: float = LEVEL, z: float | None = None) -> tuple[float, float]:
    """The score interval of the difference of two paired shares (T. Tango 1998).

    The bounds are the differences δ at which (gained − lost − n·δ) / √(n·(2q + δ(1 − δ))) is ±z, where q is the likeliest share of lost
    pairs under δ: the larger root of 2n·q² + (−gained − lost + (2n − gained + lost)·δ)·q − lost·δ·(1 − δ) = 0.

    Args:
        gained, lost: pairs that only the first side has, or only the second; not necessarily whole numbers.
        n: all pairs.

    Raises:
        ValueError: n is 0, or gained and lost are more than n or below 0.
    """
    if n <= 0 or gained < 0 or lost < 0 or gained + lost > n * (1 + 1e-12):
        raise ValueError(f"no difference of {gained} and {lost} in {n}")
    z = normal_quantile(level) if z is None else z
    difference = (gained - lost) / n

    def excess(delta: float) -> float:
        """(gained − lost − n·δ)² less z² times its variance: negative inside the interval."""
        b = -gained - lost + (2 * n - gained + lost) * delta
        q = (math.sqrt(max(0.0, b * b + 8 * n * lost * delta * (1 - delta))) - b) / (4 * n)
        variance = n * (2 * q + delta * (1 - delta))
        distance = gained - lost - n * delta
        return distance * distance - z * z * max(variance, 0.0)

    step = 1e-9  # away from the difference itself, where the variance may be 0
    low = -1.0 if difference - step <= -1 or excess(-1.0) <= 0 else brentq(excess, -1.0, difference - step)
    high = 1.0 if difference + step >= 1 or excess(1.0) <= 0 else brentq(excess, difference + step, 1.0)
    return float(low), float(high)


def sign_flip_exact(sums: Sequence[int]) -> float:
    """Two-sided exact p-value that a sum of differences is not 0: the share of all ± assignments whose sum is at least as far from 0.

    With differences of −1, 0 and 1 it is McNemar's exact test (Q. McNemar 1947); with the sums of groups it flips each group as a whole
    (R. A. Fisher 1935).
    """
    sizes = [abs(value) for value in sums if value]
    total = sum(sizes)
    chance = np.zeros(2 * total + 1)  # of each sum from −total to total
    chance[total] = 1.0
    reach = 0
    for size in sizes:
        inner = chance[total - reach : total + reach + 1] / 2
        reach += size
        chance[total - reach : total + reach + 1] = 0.0
        chance[total - reach : total + reach + 1 - 2 * size] += inner
        chance[total - reach + 2 * size : total + reach + 1] += inner
    observed = abs(sum(sums))
    return min(1.0, float(chance[: total - observed + 1].sum() + chance[total + observed :].sum())) if observed else 1.0


@dataclass(frozen=True, slots=True)
class Paired:
    """A per-sample difference, first minus second.

    Attributes:
        n: pairs in which both sides were scored; the others are left out.
        difference, low, high: mean difference and its interval; None where n is 0, the interval also where the values have no bounds and
            there is one group.
        method: of the interval; see the module.
        groups: how many groups the pairs fall into.
        p: where both sides hold only 0 and 1, else None: McNemar's exact p-value, with groups flipped as a whole.
        only_first, only_second: the discordant pairs, where both sides hold only 0 and 1.
    """

    n: int
    difference: float | None
    low: float | None
    high: float | None
    method: str
    groups: int
    p: float | None
    only_first: int | None
    only_second: int | None

    def to_json(self) -> dict[str, object]:
        return {
            "n": self.n,
            "groups": self.groups,
            "change": self.difference,
            "interval": None if self.low is None else [self.low, self.high],
            "method": self.method,
            "p": self.p,
            "gained": self.only_first,
            "lost": self.only_second,
        }


def compare_paired(
    first: Mapping[str, float],
    second: Mapping[str, float],
    groups: Mapping[str, Hashable] | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Paired:
    """Compares two scorings of the same samples, by sample id.

    Args:
        groups: sample id → group; a sample that is not named is its own group.
        bounds: of the values, as in ``estimate``: counts that happen to be 0 and 1 are no shares.
    """
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return Paired(0, None, None, None, "none", 0, None, None, None)
    difference_N = np.array([first[key] - second[key] for key in shared])
    group_N = numbered([(groups or {}).get(key, key) for key in shared], len(shared))
    count, mean = int(group_N.max()) + 1, float(difference_N.mean())
    if bounds == (0.0, 1.0) and all(side[key] in (0, 1) for key in shared for side in (first, second)):
        gained, lost = int((difference_N > 0).sum()), int((difference_N < 0).sum())
        size, z = effective_samples(difference_N, group_N, float(difference_N.var()) / len(shared))
        low, high = tango(gained / len(shared) * size, lost / len(shared) * size, size, z=z)
        p = sign_flip_exact(np.bincount(group_N, difference_N).round().astype(int).tolist())
        return Paired(len(shared), mean, low, high, by_group("tango", count, len(shared)), count, p, gained, lost)
    interval = t_interval(difference_N, group_N, (bounds[0] - bounds[1], bounds[1] - bounds[0]))
    method = "none" if interval is None else by_group("t", count, len(shared))
    low_bound, high_bound = interval or (None, None)
    return Paired(len(shared), mean, low_bound, high_bound, method, count, None, None, None)


def compare_classes(
    first: Mapping[str, float],
    second: Mapping[str, float],
    groups: Mapping[str, Hashable] | None,
    class_of: Mapping[str, str],
    bounds: tuple[float, float],
) -> Paired:
    """The same for a value that is the mean over classes, each with the same weight however many samples it has: the change is that of
    this value.

    Args:
        class_of: sample id → class; the change is None where a class has no pair.
        bounds: of the values, finite ones.
    """
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return Paired(0, None, None, None, "none", 0, None, None, None)
    found = mean_of_classes(
        [first[key] - second[key] for key in shared],
        [class_of[key] for key in shared],
        sorted(set(class_of.values())),
        [(groups or {}).get(key, key) for key in shared],
        (bounds[0] - bounds[1], bounds[1] - bounds[0]),
    )
    return Paired(len(shared), found.value, found.low, found.high, found.method, found.groups, None, None, None)


@dataclass(frozen=True, slots=True)
class Term:
    """A part of a weighted sum: its weight, value and interval, and the groups that its samples belong to."""

    weight: float
    value: float
    interval: tuple[float, float] | None
    groups: frozenset[Hashable]


def weighted_sum(terms: Sequence[Term]) -> tuple[float, tuple[float, float] | None]:
    """Σ weight·value with its interval, None where a term has none.

    The interval is recovered from those of the terms (G. Y. Zou & A. Donner 2008): its distances from the sum are the root of the sum of
    the terms' squared distances. Terms that share a group are not independent: their distances are added, which gives the widest interval.
    """
    total = math.fsum(term.weight * term.value for term in terms)
    clusters: list[tuple[set[Hashable], float, float]] = []
    for term in terms:
        if term.interval is None:
            return total, None
        below, above = term.value - term.interval[0], term.interval[1] - term.value
        if term.weight < 0:
            below, above = above, below
        groups, down, up = set(term.groups), abs(term.weight) * below, abs(term.weight) * above
        for other in [cluster for cluster in clusters if cluster[0] & groups]:
            clusters.remove(other)
            groups, down, up = groups | other[0], down + other[1], up + other[2]
        clusters.append((groups, down, up))
    return total, (total - math.hypot(*(down for _, down, _ in clusters)), total + math.hypot(*(up for _, _, up in clusters)))
