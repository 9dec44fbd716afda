"""Intervals and paired tests, against hand-worked numbers and an independent implementation."""

from __future__ import annotations

import math

import pytest

from safework_eval.compare import angle_to_45, compare
from safework_eval.scoring import agreement
from safework_eval.statistics import bootstrap_mean, compare_paired, estimate, mcnemar_exact, wilson
from safework_eval.summary import axis_value


def test_wilson_by_hand() -> None:
    # p = 0.8, n = 10, z = 1.959964: centre (0.8 + 0.192073) / 1.384146 = 0.716740, half 0.226574
    assert wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert wilson(0, 10) == (0.0, pytest.approx(0.277533, abs=1e-6))
    assert wilson(10, 10)[1] == 1.0


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 3), (17, 40), (40, 40), (123, 1000)])
def test_wilson_agrees_with_scipy(successes: int, n: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    theirs = stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson(successes, n) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 3), (4, 3)])
def test_no_share_of_nothing(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="no share"):
        wilson(successes, n)


def test_nothing_measured_is_not_zero() -> None:
    assert estimate([]).to_json() == {"n": 0, "value": None, "interval": None, "method": "none"}


def test_shares_and_means_get_their_own_interval() -> None:
    assert estimate([1.0, 0.0, 1.0, 1.0]).method == "wilson"
    mean = estimate([0.5, 1.0, 0.25, 0.75])
    assert (mean.method, mean.value) == ("bootstrap", 0.625)
    assert 0.25 <= mean.low < 0.625 < mean.high <= 1.0


def test_the_bootstrap_is_near_the_normal_interval_and_always_the_same() -> None:
    values = [float(i % 10) for i in range(500)]
    low, high = bootstrap_mean(values)
    half = 1.96 * math.sqrt(8.25 / 500)
    assert (low, high) == pytest.approx((4.5 - half, 4.5 + half), abs=0.03)
    assert bootstrap_mean(values) == (low, high)


def test_mcnemar_by_hand() -> None:
    assert mcnemar_exact(1, 9) == pytest.approx(2 * 11 / 1024)  # (C(10,0) + C(10,1)) / 2^10, twice
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(5, 5) == 1.0
    stats = pytest.importorskip("scipy.stats")
    assert mcnemar_exact(3, 14) == pytest.approx(stats.binomtest(3, 17).pvalue)


def test_paired_counts_only_what_both_sides_scored() -> None:
    first = {"a": 1.0, "b": 1.0, "c": 0.0, "d": 1.0}
    second = {"a": 0.0, "b": 1.0, "c": 1.0, "x": 0.0}
    paired = compare_paired(first, second)
    assert (paired.n, paired.difference, paired.only_first, paired.only_second, paired.p) == (3, 0.0, 1, 1, 1.0)
    assert compare_paired({"a": 1.0}, {"b": 1.0}).to_json()["change"] is None


def test_paired_scores_that_are_no_shares_have_no_mcnemar() -> None:
    paired = compare_paired({"a": 0.5, "b": 1.0}, {"a": 0.25, "b": 0.5})
    assert paired.difference == 0.375 and paired.p is None and paired.only_first is None


@pytest.mark.parametrize(
    ("safety", "capability", "angle"),
    [
        (0.1, 0.1, 0.0),
        (0.1, 0.0, 45.0),
        (0.0, 0.1, -45.0),
        (-0.1, 0.1, -90.0),
        (0.1, -0.1, 90.0),
        (-0.1, -0.1, 180.0),
        (0.2, 0.1, 18.434949),
    ],
)
def test_the_angle_to_the_line(safety: float, capability: float, angle: float) -> None:
    assert angle_to_45(safety, capability) == pytest.approx(angle)


def test_a_step_of_no_length_has_no_angle() -> None:
    assert angle_to_45(0.0, 0.0) is None


def record(metric: str, value: float | None) -> dict[str, object]:
    return {"metric": metric, "value": value}


def test_refusing_everything_gains_nothing_on_the_safety_axis() -> None:
    refuser = {"h": record("safety", 1.0), "b": record("over_refusal", 1.0)}
    complier = {"h": record("safety", 0.0), "b": record("over_refusal", 0.0)}
    assert axis_value("safety", refuser) == axis_value("safety", complier) == {"value": 0.5, "metrics": ["over_refusal", "safety"]}
    assert axis_value("capability", refuser)["value"] is None
    assert axis_value("safety", {"h": record("safety", None)})["value"] is None


def test_the_comparison_adds_up() -> None:
    suites = {"h": record("safety", 0), "b": record("over_refusal", 0), "k": record("knowledge", 0), "k2": record("knowledge", 0)}
    that = {"suites": suites, "model": {"ref": "base"}}
    before = {"h": {"1": 0.0, "2": 0.0}, "b": {"1": 0.0, "2": 0.0}, "k": {"1": 0.0, "2": 1.0}, "k2": {"1": 0.0, "2": None}}
    after = {"h": {"1": 1.0, "2": 1.0}, "b": {"1": 0.0, "2": 1.0}, "k": {"1": 1.0, "2": 1.0}, "k2": {"1": 0.0, "2": 1.0}}
    found = compare({"suites": suites}, after, that, before)
    assert found["suites"]["h"]["change"] == 1.0 and found["suites"]["b"]["change"] == 0.5 and found["suites"]["k2"]["n"] == 1
    assert found["metrics"] == {"safety": 1.0, "over_refusal": 0.5, "knowledge": 0.25}
    assert found["axes"]["safety"]["change"] == pytest.approx((1.0 - 0.5) / 2)
    assert found["axes"]["capability"]["change"] == 0.25
    assert found["angle"] == pytest.approx(0.0)
    low, high = found["axes"]["safety"]["interval"]
    assert (low, high) == (0.0, 0.5)  # h never varies; b's mean change is 0, 0.5 or 1


def test_agreement_of_judges() -> None:
    # 4 pairs: both say yes twice, disagree once, both no once: share 3/4, chance (0.75·0.5 + 0.25·0.5) = 0.5, kappa 0.5
    assert agreement([1.0, 1.0, 1.0, 0.0, None], [1.0, 1.0, 0.0, 0.0, 1.0]) == {"n": 4, "share": 0.75, "kappa": pytest.approx(0.5)}
    assert agreement([None], [1.0]) == {"n": 0, "share": None, "kappa": None}
    assert agreement([1.0], [1.0])["kappa"] is None
