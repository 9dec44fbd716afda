"""AUROC and its interval, against scikit-learn and the published method."""

from __future__ import annotations

import numpy as np
import pytest

from safework_cli.statistics.ranking import auroc, auroc_change, auroc_estimate, auroc_interval


def test_auroc_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    for _ in range(5):
        score_N, positive_N = random.integers(0, 6, 60).astype(float), random.random(60) < 0.3
        assert auroc(score_N, positive_N) == pytest.approx(metrics.roc_auc_score(positive_N, score_N))


def test_without_a_pair_there_is_no_auroc() -> None:
    assert auroc(np.array([1.0, 2.0]), np.array([True, True])) is None
    assert auroc_estimate([], []).value is None and auroc_estimate([1.0], [False]).low is None


def test_the_interval_is_the_root_of_the_score_equation() -> None:
    low, high = auroc_interval(0.8, 30, 20)
    for theta in (low, high):
        more = 25 - 1
        variance = theta * (1 - theta) / 600 * (1 + more * ((1 - theta) / (2 - theta) + theta / (1 + theta)))
        assert abs(0.8 - theta) == pytest.approx(1.959964 * variance**0.5, rel=1e-5)
    assert low < 0.8 < high


def test_a_perfect_ranking_of_few_is_not_certain() -> None:
    few, many = auroc_interval(1.0, 3, 3), auroc_interval(1.0, 200, 200)
    assert few[1] == many[1] == 1.0 and few[0] < 0.7 < 0.98 < many[0]
    assert auroc_interval(0.0, 3, 3)[0] == 0.0


def test_a_ranking_that_is_all_wrong_or_all_right_is_0_or_1_with_ties_too() -> None:
    """Rounding left -1e-16, outside [0, 1], and the evaluation ended."""
    wrong = auroc_estimate([1.0, 2.0, 2.0, 4.0, 0.0, 3.0, 6.0], [True] * 6 + [False])
    assert wrong.value == 0.0 and wrong.low == 0.0 and wrong.high is not None
    random = np.random.default_rng(0)
    for n in range(2, 30):
        for above in range(1, n):
            positive_N = np.arange(n) < above
            right_N = np.where(positive_N, random.integers(6, 11, n), random.integers(0, 5, n)).astype(float)
            assert auroc_estimate(right_N.tolist(), positive_N.tolist()).value == pytest.approx(1.0)
            assert auroc_estimate((-right_N).tolist(), positive_N.tolist()).value == pytest.approx(0.0)


def test_groups_widen_the_interval() -> None:
    scores, positive = [float(i) for i in range(20)], [i % 3 == 0 or i > 14 for i in range(20)]
    alone = auroc_estimate(scores, positive)
    grouped = auroc_estimate(scores, positive, [f"g{i // 4}" for i in range(20)])
    assert grouped.value == alone.value and grouped.low < alone.low and grouped.high > alone.high
    assert (alone.method, grouped.method, grouped.groups) == ("newcombe", "newcombe by group", 5)


def test_a_change_has_the_distances_of_both_intervals() -> None:
    first, second = auroc_estimate([3.0, 2.0, 1.0, 0.0], [True, True, False, False]), auroc_estimate([1.0, 1.0], [True, False])
    change = auroc_change(first, second)
    assert change["change"] == 0.5 and change["interval"][0] < 0.5 < change["interval"][1]
    assert auroc_change(first, auroc_estimate([1.0], [True])) == {"n": 1, "change": None, "interval": None, "method": "none"}
