"""Intervals and paired tests, pure: what every rate and every comparison of an evaluation rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its interval at ``LEVEL``.

    Attributes:
        n: how many samples it rests on.
        value, low, high: None where n is 0: nothing measured is not zero.
        method: "wilson", "bootstrap" or "none".
    """

    n: int
    value: float | None
    low: float | None
    high: float | None
    method: str

    def to_json(self) -> dict[str, object]:
        return {"n": self.n, "value": self.value, "interval": None if self.low is None else [self.low, self.high], "method": self.method}


def wilson(successes: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """The Wilson score interval of a share (E. B. Wilson 1927, without continuity correction).

    Raises:
        ValueError: n is 0 or successes lie outside 0..n.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"no share of {successes} in {n}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low = 0.0 if successes == 0 else max(0.0, centre - half)  # rounding would leave 1e-17
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def bootstrap_mean(values: Sequence[float], level: float = LEVEL, seed: int = 0) -> tuple[float, float]:
    """The percentile bootstrap interval of a mean (B. Efron 1979), ``RESAMPLES`` resamples. Raises ValueError for no values."""
    if not values:
        raise ValueError("no mean of no values")
    means_R = _resampled_means(values, np.random.default_rng(seed))
    low, high = np.quantile(means_R, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of values: with Wilson's interval where each is 0 or 1, a bootstrap interval otherwise."""
    if not values:
        return Estimate(0, None, None, None, "none")
    mean = math.fsum(values) / len(values)
    if all(value in (0, 1) for value in values):
        low, high = wilson(round(math.fsum(values)), len(values))
        return Estimate(len(values), mean, low, high, "wilson")
    low, high = bootstrap_mean(values)
    return Estimate(len(values), mean, low, high, "bootstrap")


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value that two paired shares differ (Q. McNemar 1947; the binomial test on the discordant pairs).

    Args:
        only_first, only_second: pairs in which the first alone, or the second alone, is 1.
    """
    discordant = only_first + only_second
    if discordant == 0:
        return 1.0
    tail = sum(math.comb(discordant, k) for k in range(min(only_first, only_second) + 1)) / 2**discordant
    return min(1.0, 2 * tail)


@dataclass(frozen=True, slots=True)
class Paired:
    """A per-sample difference, first minus second.

    Attributes:
        n: pairs in which both sides were scored; the others are not guessed.
        difference, low, high: mean difference and its bootstrap interval over pairs; None where n is 0.
        p: McNemar's exact p-value where both sides hold only 0 and 1, else None.
        only_first, only_second: the discordant pairs, where both sides hold only 0 and 1.
    """

    n: int
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    only_first: int | None
    only_second: int | None

    def to_json(self) -> dict[str, object]:
        return {
            "n": self.n,
            "change": self.difference,
            "interval": None if self.low is None else [self.low, self.high],
            "p": self.p,
            "gained": self.only_first,
            "lost": self.only_second,
        }


def compare_paired(first: Mapping[str, float], second: Mapping[str, float]) -> Paired:
    """Compares two scorings of the same samples, by sample id."""
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return Paired(0, None, None, None, None, None, None)
    differences = [first[key] - second[key] for key in shared]
    low, high = bootstrap_mean(differences)
    binary = all(side[key] in (0, 1) for key in shared for side in (first, second))
    gained = sum(d > 0 for d in differences) if binary else None
    lost = sum(d < 0 for d in differences) if binary else None
    p = mcnemar_exact(gained, lost) if gained is not None and lost is not None else None
    return Paired(len(shared), math.fsum(differences) / len(shared), low, high, p, gained, lost)


def bootstrap_means(groups: Mapping[str, Sequence[float]], seed: int = 0) -> dict[str, np.ndarray]:
    """Resampled means of several independent groups, (RESAMPLES,) each, so that a function of all of them gets an interval."""
    rng = np.random.default_rng(seed)
    means: dict[str, np.ndarray] = {}
    for name in sorted(groups):
        means[name] = _resampled_means(groups[name], rng)
    return means


def _resampled_means(values: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """Means of ``RESAMPLES`` resamples, (RESAMPLES,), drawn in blocks of about a million numbers."""
    values_N = np.asarray(values, dtype=np.float64)
    block = max(1, 1_000_000 // len(values_N))
    sizes = [min(block, RESAMPLES - start) for start in range(0, RESAMPLES, block)]
    return np.concatenate([values_N[rng.integers(0, len(values_N), (size, len(values_N)))].mean(axis=1) for size in sizes])
