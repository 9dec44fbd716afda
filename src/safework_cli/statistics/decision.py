"""A decision between two classes by a score: how well the score orders them, and where the threshold belongs. Pure.

Shapes: N rows. Scores are (N,) log-odds: above the threshold a row is called positive.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safework_cli.statistics.intervals import bootstrap_figure, share_figure

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


def area_under_roc(score_N: Floats, positive_N: Flags) -> float:
    """The share of pairs of both classes that the score puts in the right order, ties counted half (Mann and Whitney 1947); 0.5 where a
    class is missing. By ranks: ``calibration.concordance``, for outcomes of any value, compares all pairs, too slow for resamples."""
    positive = int(positive_N.sum())
    pairs = positive * (len(positive_N) - positive)
    if not pairs:
        return 0.5
    _, place_N, counts = np.unique(score_N, return_inverse=True, return_counts=True)
    rank_N = (np.cumsum(counts) - (counts - 1) / 2)[place_N]
    return float((rank_N[positive_N].sum() - positive * (positive + 1) / 2) / pairs)


def balanced_accuracy(score_N: Floats, positive_N: Flags, threshold: float = 0.0) -> float:
    """The mean of the shares of both classes that are called right."""
    called_N = score_N > threshold
    return float((called_N[positive_N].mean() + (~called_N[~positive_N]).mean()) / 2)


def best_threshold(score_N: Floats, positive_N: Flags) -> float:
    """The threshold with the highest balanced accuracy: the middle between two neighbouring scores, or 1 beyond the last; of several
    equally good ones that with the widest gap, then the one nearest to 0.

    Both classes must occur.
    """
    edges = np.unique(score_N)
    low, high = np.concatenate([[edges[0] - 2], edges]), np.concatenate([edges, [edges[-1] + 2]])
    candidates = (low + high) / 2
    accuracy = [balanced_accuracy(score_N, positive_N, threshold) for threshold in candidates]
    inner = (high - low) * np.concatenate([[0], np.ones(len(edges) - 1), [0]])  # beyond the last score nothing is known of a gap
    order = sorted(range(len(candidates)), key=lambda i: (-round(accuracy[i], 12), -inner[i], abs(candidates[i])))
    return float(candidates[order[0]])


def decision_figures(score_N: Floats, positive_N: Flags, groups: Sequence[str], threshold: float = 0.0, seed: int = 0) -> dict[str, Any]:
    """AUC, and the share of each class that is called positive at a threshold, each with n and interval.

    Args:
        groups: rows of one group are not independent.
    """

    def area(rows: NDArray[np.int64]) -> float:
        return area_under_roc(score_N[rows], positive_N[rows])

    groups_of = np.asarray(groups, dtype=object)
    called = {
        name: share_figure(score_N[of_class] > threshold, groups_of[of_class].tolist())
        for name, of_class in (("positive", positive_N), ("negative", ~positive_N))
    }
    return {"auc": bootstrap_figure(groups, area, seed), "called_positive": called}
