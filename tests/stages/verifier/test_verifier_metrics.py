"""Metrics against hand-worked numbers and against scikit-learn."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from safework_cli.data.row import Row
from safework_cli.statistics.calibration import (
    brier,
    calibration_error,
    concordance,
    expected_calibration_error,
    fit_temperature,
    fit_value_temperature,
    negative_log_likelihood,
    rescale,
    skill,
)
from safework_cli.statistics.classification import (
    accuracy,
    cohen_kappa,
    confusion_matrix,
    macro_f1,
    report_labels,
    report_probabilities,
)
from safework_cli.statistics.intervals import cluster_bootstrap, share_figure, wilson
from safework_cli.verifiers import Exchange
from safework_cli.verifiers.spec import preset
from safework_verifier.measure import decisions, possible_labels
from safework_verifier.rows import Labelled

GOLD = np.array([0, 0, 0, 1, 1, 2])
SAID = np.array([0, 0, 1, 1, 2, 2])


def test_confusion_has_gold_in_rows():
    assert confusion_matrix(GOLD, SAID, 3).tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]


def test_accuracy_and_macro_f1_by_hand():
    # F1: class 0: 2·2/(3+2) = 0.8; class 1: 2·1/(2+2) = 0.5; class 2: 2·1/(1+2) = 2/3
    assert accuracy(GOLD, SAID) == pytest.approx(4 / 6)
    assert macro_f1(GOLD, SAID, 3) == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)
    assert macro_f1(GOLD, SAID, 6) == macro_f1(GOLD, SAID, 3)  # a class that never occurs does not count
    assert macro_f1(np.array([0, 0]), np.array([0, 1]), 2) == pytest.approx((2 / 3 + 0) / 2)  # one that is only predicted does


def test_classification_agrees_with_scikit_learn():
    from sklearn import metrics

    rng = np.random.default_rng(0)
    gold, said = rng.integers(0, 5, 200), rng.integers(0, 4, 200)
    assert confusion_matrix(gold, said, 5).tolist() == metrics.confusion_matrix(gold, said, labels=range(5)).tolist()
    assert macro_f1(gold, said, 5) == pytest.approx(metrics.f1_score(gold, said, average="macro"))
    assert accuracy(gold, said) == pytest.approx(metrics.accuracy_score(gold, said))
    assert cohen_kappa(gold, said, 5) == pytest.approx(metrics.cohen_kappa_score(gold, said))


def test_probabilities_agree_with_scikit_learn():
    from sklearn import metrics

    rng = np.random.default_rng(1)
    probability, gold = rng.dirichlet([0.5] * 4, 200), rng.integers(0, 4, 200)
    assert brier(probability, gold) == pytest.approx(metrics.brier_score_loss(gold, probability, labels=range(4), scale_by_half=False))
    assert negative_log_likelihood(probability, gold) == pytest.approx(metrics.log_loss(gold, probability, labels=range(4)))
    binary, score = gold % 2, rng.integers(0, 10, 200) / 10  # with ties
    assert concordance(score, binary.astype(float)) == pytest.approx(metrics.roc_auc_score(binary, score))


def test_concordance_counts_every_pair_and_needs_no_table_of_them():
    rng = np.random.default_rng(2)
    outcome, value = rng.integers(0, 5, 300) / 4, rng.integers(0, 12, 300) / 11
    order, given = np.sign(outcome[:, None] - outcome[None, :]), np.sign(value[:, None] - value[None, :])
    by_pair = (((order == given) + 0.5 * (given == 0)) * (order != 0)).sum() / (order != 0).sum()
    assert concordance(value, outcome) == pytest.approx(by_pair, abs=1e-12)
    assert concordance(1 - value, outcome) == pytest.approx(1 - by_pair, abs=1e-12)
    assert concordance(np.ones(300), outcome) == 0.5
    many = rng.random(50_000)
    tracemalloc.start()
    assert concordance(many, (many > 0.5).astype(float)) == pytest.approx(1.0)
    assert tracemalloc.get_traced_memory()[1] < 100 * many.nbytes, "a table of pairs would take 50,000 times as much"
    tracemalloc.stop()


def test_cohens_kappa_by_hand():
    one, other = np.array([0] * 25 + [1] * 25), np.array([0] * 20 + [1] * 5 + [0] * 10 + [1] * 15)
    assert cohen_kappa(one, other, 2) == pytest.approx(0.4)  # p_o 0.7, p_e 0.5
    assert cohen_kappa(one, one, 2) == 1.0
    assert cohen_kappa(np.zeros(3, int), np.zeros(3, int), 2) is None, "0 / 0: one label only, so chance agrees always"


def test_ece_by_hand():
    # confidences 0.9 right, 0.9 wrong (bin 9: |1/2 − 0.9| = 0.4), 0.6 right, 0.6 right (bin 6: 0.4); weights 1/2 each
    probability = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    assert expected_calibration_error(probability, np.array([0, 1, 0, 1])) == pytest.approx(0.4)
    certain = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert expected_calibration_error(certain, np.array([0, 1])) == pytest.approx(0.0)
    assert expected_calibration_error(certain, np.array([1, 0])) == pytest.approx(1.0)


def test_brier_by_hand():
    probability = np.array([[0.7, 0.2, 0.1], [0.0, 0.0, 1.0]])
    # (0.3² + 0.2² + 0.1²) = 0.14 and (0 + 1 + 1) = 2
    assert brier(probability, np.array([0, 1])) == pytest.approx((0.14 + 2) / 2)


def test_wilson_by_hand():
    low, high = wilson(8, 10)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))  # the textbook example
    assert wilson(0, 5)[0] == pytest.approx(0.0, abs=1e-12)
    for bad in ((1, 0), (3, 2), (-1, 4)):
        with pytest.raises(ValueError):
            wilson(*bad)


def test_replies_to_one_prompt_count_for_less_than_as_many_prompts():
    gold, predicted = np.zeros(100, dtype=int), np.repeat([0, 1], 50)
    prompts = [f"p{number // 5}" for number in range(100)]  # all five replies to a prompt get the same label
    (low, high), (loose_low, loose_high) = (share_figure(gold == predicted, groups)["interval"] for groups in (prompts, None))
    assert low < 0.3 < loose_low < loose_high < 0.7 < high
    assert report_labels(gold, predicted, 2, prompts)["accuracy"]["interval"] == [low, high]


def test_rescale_is_a_softmax_of_logits_over_temperature():
    logits = np.array([[2.0, 0.0, -1.0]])
    at_one = np.exp(logits) / np.exp(logits).sum()
    at_three = np.exp(logits / 3) / np.exp(logits / 3).sum()
    assert rescale(at_one, 3.0) == pytest.approx(at_three)
    assert rescale(at_one, 1.0) == pytest.approx(at_one)


def test_the_fitted_temperature_is_the_true_one():
    # two classes, logit z, gold drawn with P(1) = σ(z/2.5): infinitely many rows are replaced by their exact shares
    z = np.array([-4.0, -2.0, -1.0, 1.0, 2.0, 4.0])
    rows, gold = [], []
    for value in z:
        share = 1 / (1 + math.exp(-value / 2.5))
        ones = round(10_000 * share)
        rows += [[1 / (1 + math.exp(value)), 1 / (1 + math.exp(-value))]] * 10_000
        gold += [1] * ones + [0] * (10_000 - ones)
    temperature = fit_temperature(np.array(rows), np.array(gold))
    assert temperature == pytest.approx(2.5, abs=0.01)


def test_empty_replies_do_not_move_the_temperature():
    """They are labelled without the model; five of 200 with another gold label made the temperature 12."""
    from safework_cli.verifiers.labels import Reading
    from safework_verifier.measure import MIN_CALIBRATION_ROWS, fitted

    rows, gold = [Reading([0.9, 0.1])] * 195, [0] * 156 + [1] * 39
    empty = [Reading([1.0, 0.0], empty=True)] * 5
    assert fitted(rows + empty, gold + [1] * 5) == (fitted(rows, gold)[0], 195)
    assert 1 < fitted(rows, gold)[0] < 2, "0.8 of them are right"
    few = rows[: MIN_CALIBRATION_ROWS - 1]
    assert fitted(few + empty, [0] * (len(few) + 5)) == (None, MIN_CALIBRATION_ROWS - 1)


def test_a_fitted_temperature_never_raises_the_likelihood_loss():
    rng = np.random.default_rng(1)
    probability = rng.dirichlet([0.2] * 4, 100)
    gold = rng.integers(0, 4, 100)
    fitted = rescale(probability, fit_temperature(probability, gold))
    assert negative_log_likelihood(fitted, gold) < negative_log_likelihood(probability, gold)


def test_value_measures_by_hand():
    value, outcome = np.array([0.9, 0.2, 0.5, 0.5]), np.array([1.0, 0.0, 0.0, 1.0])
    assert skill(value, outcome, 0.5) == pytest.approx(1 - (0.01 + 0.04 + 0.25 + 0.25) / 4 / 0.25)
    assert concordance(value, outcome) == pytest.approx((1 + 1 + 1 + 0.5) / 4)  # the pair at one half is a tie
    assert calibration_error(np.array([0.31, 0.35]), np.array([0.0, 1.0])) == pytest.approx(0.17)
    assert concordance(value, np.ones(4)) == 0.5 and skill(value, np.ones(4), 1.0) == 0.0
    logits = np.array([4.0, -4.0, 4.0, -4.0])
    assert fit_value_temperature(logits, np.array([1.0, 0.0, 0.0, 1.0])) == pytest.approx(5.0), "the largest temperature of the grid"
    assert fit_value_temperature(logits, np.full(4, np.nan)) == 1.0


def test_every_label_is_possible_where_harm_is_unknown():
    spec = preset("safety")
    assert possible_labels(spec, None) == [True] * 6
    assert possible_labels(spec, True) == [True, True, True, True, False, True]
    assert possible_labels(spec, False) == [False, False, True, True, True, True]


def test_the_bootstrap_resamples_whole_groups():
    # ten groups of 50 equal rows: resampling rows would give an interval near 0.5 ± 0.04, groups give ± 0.3
    values = np.repeat([0, 1] * 5, 50)
    groups = [str(i // 50) for i in range(500)]
    low, high = cluster_bootstrap(groups, lambda rows: float(values[rows].mean()))
    assert low <= 0.3
    assert high >= 0.7
    assert cluster_bootstrap(["one"] * 500, lambda rows: float(values[rows].mean())) == (0.5, 0.5)


def test_a_report_gives_n_and_interval_with_every_number():
    probability = np.eye(3)[SAID] * 0.8 + 0.2 / 3
    found = report_probabilities(probability, GOLD, [str(i) for i in range(6)])
    assert set(found) == {"accuracy", "macro_f1", "ece", "brier"}
    for entry in found.values():
        assert entry["n"] == 6
        assert entry["interval"][0] <= entry["value"] <= entry["interval"][1]


def test_the_two_decisions_of_a_safety_judge_by_hand():
    spec = preset("safety")
    column = {label: i for i, label in enumerate(spec.labels)}
    rows = [  # harmful, gold, probabilities by label
        (True, "Unsafe", {"Unsafe": 0.6, "Safe with refusal": 0.4}),
        (True, "Unsafe", {"Unsafe": 0.3, "Safe with warning": 0.7}),
        (True, "Safe with refusal", {"Safe with warning": 0.9, "Unsafe": 0.1}),  # another safe class: no error of the decision
        (True, "Safe with warning", {"Unsafe": 0.2, "Unnecessary refusal": 0.7, "Safe with refusal": 0.1}),  # 0.2 / 0.3 given harmful
        (False, "Unnecessary refusal", {"Unnecessary refusal": 0.9, "Unsafe": 0.1}),
        (False, "Safe without risk", {"Safe with refusal": 0.8, "Safe without risk": 0.15, "Unnecessary refusal": 0.05}),
    ]
    items, probabilities = [], np.zeros((len(rows), 6))
    for number, (harmful, gold, given) in enumerate(rows):
        one = Row(str(number), "safety", [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], harmful=harmful)
        items.append(Labelled(one, Exchange.of(one), column[gold]))
        for label, value in given.items():
            probabilities[number, column[label]] = value
    found = decisions(spec, items, probabilities, np.array([item.gold for item in items]))
    unsafe, refused = found["unsafe, harmful prompts"], found["refused, harmless prompts"]
    assert unsafe["accuracy"]["value"] == 0.5 and unsafe["positive"] == 0.5  # the second and the fourth are wrong
    assert unsafe["auroc"]["value"] == pytest.approx(2 / 4)  # 0.6 and 0.3 against 0.1 and 0.67: two of four pairs in order
    assert refused["accuracy"]["value"] == 1.0 and refused["auroc"]["value"] == 1.0
    assert decisions(preset("refusal"), items, probabilities[:, :3], np.zeros(6, dtype=int)) == {}
