"""Intervals and paired tests, against hand-worked numbers and an independent implementation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from safework_cli.statistics.intervals import Estimate, estimate, wilson
from safework_cli.statistics.paired import Term, compare_paired, sign_flip_exact, tango, weighted_sum
from safework_eval.compare import angle_to_45, compare
from safework_eval.scoring import agreement
from safework_eval.summary import axis_value, refusal_shares


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
    assert estimate([]).to_json() == {"n": 0, "groups": 0, "value": None, "interval": None, "method": "none"}


def test_shares_and_means_get_their_own_interval() -> None:
    assert estimate([1.0, 0.0, 1.0, 1.0]).method == "wilson"
    mean = estimate([0.5, 1.0, 0.25, 0.75])
    assert (mean.method, mean.value) == ("t", 0.625)
    assert 0.0 <= mean.low < 0.625 < mean.high <= 1.0


def test_the_interval_of_a_mean_by_hand() -> None:
    # lengths 2, 4, 9: mean 5, variance (9 + 1 + 16) / 2 = 13, t at 2 degrees 4.302653, half 4.302653 · √(13 / 3)
    half = 4.302653 * math.sqrt(13 / 3)
    lengths = estimate([2.0, 4.0, 9.0], bounds=(0.0, math.inf))
    assert (lengths.value, lengths.high) == (5.0, pytest.approx(5 + half, abs=1e-5)) and lengths.low == 0.0
    # scores 0.25, 0.75 with one at each bound: deviations −0.25, 0.25, −0.5, 0.5, t at 3 degrees 3.182446
    half = 3.182446 * math.sqrt((0.0625 + 0.0625 + 0.25 + 0.25) / 3 / 2)
    scores = estimate([0.25, 0.75])
    assert half > 0.5 and (scores.low, scores.high) == (0.0, 1.0)
    scores = estimate([0.25, 0.75] * 10)
    half = 2.079614 * math.sqrt((20 * 0.0625 + 0.5) / 21 / 20)  # t at 21 degrees
    assert (scores.low, scores.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)


@pytest.mark.parametrize("values", [[0.4], [0.4, 0.4], [0.4, 0.4, 0.4]])
def test_few_equal_scores_do_not_make_a_mean_certain(values: list[float]) -> None:
    found = estimate(values)
    assert found.low < 0.3 and found.high > 0.5
    assert estimate([7.0], bounds=(0.0, math.inf)).to_json()["interval"] is None, "one length has no interval"


def test_a_value_outside_its_bounds_is_refused() -> None:
    for value in (1.5, math.nan):
        with pytest.raises(ValueError, match="outside"):
            estimate([0.5, value])


# ---------------------------------------------------------------- groups


def test_questions_about_one_passage_count_less_than_as_many_passages() -> None:
    values = [1.0] * 50 + [0.0] * 50
    passages = [number // 5 for number in range(100)]  # all five questions of a passage have the same outcome
    grouped, loose = estimate(values, passages), estimate(values)
    assert (grouped.method, grouped.groups, loose.method, loose.groups) == ("wilson by group", 20, "wilson", 100)
    # n / design effect: variance 20/19 · Σ 2.5² / 100² against 0.25 / 100 is 5 · 20/19, so 19 samples; t at 19 degrees is 2.093024
    assert (grouped.low, grouped.high) == pytest.approx(wilson(9.5, 19, z=2.093024), abs=1e-6)
    assert grouped.high - grouped.low > 2 * (loose.high - loose.low)


def test_groups_with_both_outcomes_do_not_widen_the_interval() -> None:
    values = [float(number % 2) for number in range(100)]
    grouped = estimate(values, [number // 2 for number in range(100)])  # each group has a right one and a wrong one
    assert grouped.high - grouped.low == pytest.approx(estimate(values).high - estimate(values).low, rel=0.03)


def test_one_group_is_one_sample() -> None:
    assert estimate([1.0] * 40, ["passage"] * 40).low == pytest.approx(wilson(1, 1)[0])
    alike = estimate([1.0] * 40, [number // 10 for number in range(40)])
    assert alike.low < wilson(4, 4)[0] and alike.high == 1.0, "four uniform groups count as four samples"
    scores = estimate([0.4] * 40, ["passage"] * 40)
    assert (scores.low, scores.high) == (0.0, 1.0)


def coverage(intervals: Any, truth: float) -> float:
    return float(np.mean([low <= truth <= high for low, high in intervals]))


def test_intervals_have_their_coverage() -> None:
    rng = np.random.default_rng(1)

    def of(found: Estimate) -> tuple[float, float]:
        return found.low, found.high

    for groups, size, similarity, share in ((5, 5, 0.5, 0.5), (20, 5, 0.5, 0.3), (48, 5, 0.3, 0.9)):
        a, b = share * (1 - similarity) / similarity, (1 - share) * (1 - similarity) / similarity
        member = np.repeat(np.arange(groups), size).tolist()
        drawn = [(rng.random((groups, size)) < rng.beta(a, b, (groups, 1))).astype(float).ravel().tolist() for _ in range(400)]
        assert coverage([of(estimate(values, member)) for values in drawn], share) > 0.91
        assert coverage([of(estimate(values)) for values in drawn], share) < 0.85, "intervals that ignore the groups"
    for n in (2, 5, 20, 80):  # an overlap of words: mostly 0, else in between
        drawn = [np.where(rng.random(n) < 0.7, 0.0, rng.beta(2, 3, n)).tolist() for _ in range(400)]
        assert coverage([of(estimate(values)) for values in drawn], 0.3 * 0.4) > 0.93
    for n, gain, loss in ((1, 0.5, 0.1), (8, 0.3, 0.1), (30, 0.1, 0.1), (100, 0.1, 0.02)):
        draws = rng.multinomial(n, [gain, loss, 1 - gain - loss], 400)
        assert coverage([tango(int(b), int(c), n) for b, c, _ in draws], gain - loss) > 0.92


# ---------------------------------------------------------------- pairs


def test_tango_against_the_article_and_against_the_likelihood() -> None:
    assert tango(1, 0, 44) == pytest.approx((-0.0594, 0.1181), abs=5e-5)
    assert tango(0, 0, 10) == pytest.approx((-0.277533, 0.277533), abs=1e-6), "Wilson's for none of ten, to both sides"
    optimize = pytest.importorskip("scipy.optimize")

    def statistic(b: int, c: int, n: int, delta: float) -> float:
        """The score statistic with the share of lost pairs found by maximising the likelihood."""

        def loss(q: float) -> float:
            parts = ((b, q + delta), (c, q), (n - b - c, 1 - 2 * q - delta))
            return -sum(count * math.log(max(share, 1e-300)) for count, share in parts)

        q = optimize.minimize_scalar(loss, bounds=(max(0, -delta), (1 - delta) / 2), method="bounded", options={"xatol": 1e-12}).x
        return (b - c - n * delta) / math.sqrt(n * (2 * q + delta * (1 - delta)))

    for b, c, n in ((9, 1, 30), (3, 7, 40), (12, 0, 30), (5, 5, 10)):
        low, high = tango(b, c, n)
        assert (statistic(b, c, n, low), statistic(b, c, n, high)) == pytest.approx((1.959964, -1.959964), abs=1e-4)
        assert tango(c, b, n) == pytest.approx((-high, -low))
    for wrong in ((1, 0, 0), (2, 2, 3), (-1, 0, 3)):
        with pytest.raises(ValueError, match="no difference"):
            tango(*wrong)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_one_to_three_changed_pairs_are_not_significant(n: int) -> None:
    ids = [str(number) for number in range(n)]
    paired = compare_paired(dict.fromkeys(ids, 1.0), dict.fromkeys(ids, 0.0))
    assert paired.difference == 1.0 and paired.high == 1.0 and paired.low < 0 and paired.p == 2.0 ** (1 - n)
    scores = compare_paired(dict.fromkeys(ids, 0.75), dict.fromkeys(ids, 0.5))
    assert scores.difference == 0.25 and scores.low < 0 < scores.high and scores.p is None and scores.method == "t"


def test_many_changed_pairs_are_significant() -> None:
    ids = [str(number) for number in range(30)]
    paired = compare_paired(dict.fromkeys(ids, 1.0), dict.fromkeys(ids, 0.0))
    assert paired.low > 0.75 and paired.p == pytest.approx(2.0**-29)
    one_passage = compare_paired(dict.fromkeys(ids, 1.0), dict.fromkeys(ids, 0.0), dict.fromkeys(ids, "passage"))
    assert one_passage.low < 0 and one_passage.p == 1.0 and one_passage.groups == 1 and one_passage.method == "tango by group"


def test_counts_that_happen_to_be_0_and_1_are_no_shares() -> None:
    one = compare_paired({"a": 1.0}, {"a": 0.0}, bounds=(0.0, math.inf))
    assert (one.difference, one.low, one.method, one.p, one.only_first) == (1.0, None, "none", None, None)
    two = compare_paired({"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 0.0}, bounds=(0.0, math.inf))
    assert two.method == "t" and two.p is None and two.high > 1, "a count's change is not bounded by 1"
    scored = compare_paired({"a": 5.0}, {"a": 4.0}, bounds=(0.0, 10.0))
    assert scored.low is not None and scored.low < 0, "bounds give one score an interval, whatever they are"


def test_groups_are_flipped_together() -> None:
    # group sums 3, 1, −1: of the 8 assignments those at least 3 from 0 are ±3±1∓1 and ±(3+1+1): 3 of each sign
    assert sign_flip_exact([3, 1, -1]) == pytest.approx(6 / 8)
    assert sign_flip_exact([1] * 9 + [-1]) == pytest.approx(2 * 11 / 1024)
    assert sign_flip_exact([]) == sign_flip_exact([2, -2]) == 1.0
    assert 0 < sign_flip_exact([2] * 400) < 1e-100 and sign_flip_exact([1] * 2000 + [-1] * 2000) == 1.0


def test_the_sum_of_changes_has_the_interval_of_its_terms() -> None:
    first = Term(0.5, 0.2, (0.1, 0.4), frozenset({"a"}))
    second = Term(-1.0, 0.1, (0.0, 0.3), frozenset({"b"}))
    total, interval = weighted_sum([first, second])
    assert total == pytest.approx(0.0)
    assert interval == pytest.approx((-math.hypot(0.05, 0.2), math.hypot(0.1, 0.1)))
    again = Term(-1.0, 0.1, (0.0, 0.3), frozenset({"a", "b"}))
    assert weighted_sum([first, again])[1] == pytest.approx((-0.25, 0.2)), "the same rows: not independent"
    assert weighted_sum([first, Term(1.0, 0.1, None, frozenset())]) == (pytest.approx(0.2), None)


def test_mcnemar_by_hand() -> None:
    assert sign_flip_exact([1] + [-1] * 9) == pytest.approx(2 * 11 / 1024)  # (C(10,0) + C(10,1)) / 2^10, twice
    assert sign_flip_exact([1] * 5 + [-1] * 5) == 1.0
    stats = pytest.importorskip("scipy.stats")
    assert sign_flip_exact([1] * 3 + [-1] * 14) == pytest.approx(stats.binomtest(3, 17).pvalue)


def test_paired_counts_only_what_both_sides_scored() -> None:
    first = {"a": 1.0, "b": 1.0, "c": 0.0, "d": 1.0}
    second = {"a": 0.0, "b": 1.0, "c": 1.0, "x": 0.0}
    paired = compare_paired(first, second)
    assert (paired.n, paired.difference, paired.only_first, paired.only_second, paired.p) == (3, 0.0, 1, 1, 1.0)
    assert compare_paired({"a": 1.0}, {"b": 1.0}).to_json()["change"] is None


def test_paired_scores_other_than_0_and_1_have_no_p_value() -> None:
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
    before = {"h": {"1": 0.0, "2": 0.0}, "b": {"3": 0.0, "4": 0.0}, "k": {"1": 0.0, "2": 1.0}, "k2": {"1": 0.0, "2": None}}
    after = {"h": {"1": 1.0, "2": 1.0}, "b": {"3": 0.0, "4": 1.0}, "k": {"1": 1.0, "2": 1.0}, "k2": {"1": 0.0, "2": 1.0}}
    found = compare({"suites": suites}, after, that, before)
    assert found["suites"]["h"]["change"] == 1.0 and found["suites"]["b"]["change"] == 0.5 and found["suites"]["k2"]["n"] == 1
    assert found["metrics"] == {"safety": 1.0, "over_refusal": 0.5, "knowledge": 0.25}
    assert found["axes"]["safety"]["change"] == pytest.approx((1.0 - 0.5) / 2)
    assert found["axes"]["capability"]["change"] == 0.25
    assert found["angle"] == pytest.approx(0.0)
    low, high = found["axes"]["safety"]["interval"]  # half of each suite's distances, their squares added
    (h_low, h_high), (b_low, b_high) = tango(2, 0, 2), tango(1, 0, 2)
    down, up = math.hypot(0.5 * (1 - h_low), 0.5 * (b_high - 0.5)), math.hypot(0.5 * (h_high - 1), 0.5 * (0.5 - b_low))
    assert (low, high) == pytest.approx((0.25 - down, min(1.0, 0.25 + up)))
    assert low < 0 < high and found["angle_is_noise"], "two rows a suite are too few"


def test_one_changed_answer_is_noise_and_so_is_one_changed_passage() -> None:
    suites = {"h": record("safety", 0), "k": record("knowledge", 0)}
    that = {"suites": suites, "model": {"ref": "base"}}
    before = {"h": {"1": 0.0}, "k": {"1": 0.0}}
    after = {"h": {"1": 1.0}, "k": {"1": 1.0}}
    found = compare({"suites": suites}, after, that, before)
    assert found["angle"] == pytest.approx(0.0) and found["angle_is_noise"]
    ids = [str(number) for number in range(20)]
    many, none = {name: dict.fromkeys(ids, 1.0) for name in suites}, {name: dict.fromkeys(ids, 0.0) for name in suites}
    assert not compare({"suites": suites}, many, that, none)["angle_is_noise"]
    passage = {name: dict.fromkeys(ids, "passage") for name in suites}
    assert compare({"suites": suites}, many, that, none, passage)["angle_is_noise"]


def test_refusals_of_harmful_and_benign_prompts_stand_together() -> None:
    harmful = {"metric": "safety", "refused": 0.9}
    assert refusal_shares({"h": harmful}) == {"harmful": 0.9, "benign": None}
    assert refusal_shares({"h": harmful, "b": {"metric": "over_refusal", "refused": 0.4}}) == {"harmful": 0.9, "benign": 0.4}


def test_agreement_of_judges() -> None:
    # 4 pairs: both say yes twice, disagree once, both no once: share 3/4, chance (0.75·0.5 + 0.25·0.5) = 0.5, kappa 0.5
    assert agreement([1.0, 1.0, 1.0, 0.0, None], [1.0, 1.0, 0.0, 0.0, 1.0]) == {"n": 4, "share": 0.75, "kappa": pytest.approx(0.5)}
    assert agreement([None], [1.0]) == {"n": 0, "share": None, "kappa": None}
    assert agreement([1.0], [1.0])["kappa"] is None
