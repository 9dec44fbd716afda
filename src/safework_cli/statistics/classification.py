"""Predicted labels against gold labels, pure: accuracy, macro-F1, confusion, agreement.

scikit-learn (``confusion_matrix``, ``f1_score``, ``cohen_kappa_score``) was considered: its import takes several times as long as that of
this module, and its argument checks take most of the time of an interval's thousand resamples. The tests hold ours against it.

Shapes: N rows, C labels. Labels are (N,) integers from 0 to C − 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safework_cli.statistics.calibration import brier, expected_calibration_error
from safework_cli.statistics.intervals import bootstrap_figure, share_figure

Labels = NDArray[np.int64]


def confusion_matrix(gold_N: Labels, predicted_N: Labels, classes: int) -> NDArray[np.int64]:
    """Counts, (C, C): rows are gold labels, columns predictions."""
    return np.bincount(gold_N * classes + predicted_N, minlength=classes * classes).reshape(classes, classes)


def accuracy(gold_N: Labels, predicted_N: Labels) -> float:
    return float((gold_N == predicted_N).mean())


def macro_f1(gold_N: Labels, predicted_N: Labels, classes: int) -> float:
    """Unweighted mean of F1 over the classes that occur, as gold or as prediction."""
    counts_CC = confusion_matrix(gold_N, predicted_N, classes)
    both_C = counts_CC.sum(0) + counts_CC.sum(1)
    occurs_C = both_C > 0
    return float((2 * counts_CC.diagonal()[occurs_C] / both_C[occurs_C]).mean())


def cohen_kappa(one_N: Labels, other_N: Labels, classes: int) -> float | None:
    """Agreement beyond chance, (p_o - p_e) / (1 - p_e) (J. Cohen 1960); None where both give one and the same label to every row: 0 / 0."""
    counts_CC = confusion_matrix(one_N, other_N, classes) / len(one_N)
    chance = float((counts_CC.sum(0) * counts_CC.sum(1)).sum())
    return None if chance == 1.0 else (float(np.trace(counts_CC)) - chance) / (1 - chance)


def report_labels(gold_N: Labels, predicted_N: Labels, classes: int, groups: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Accuracy and macro-F1 of predicted labels, each with n and interval."""
    return {
        "accuracy": share_figure(gold_N == predicted_N, groups),
        "macro_f1": bootstrap_figure(groups, lambda rows: macro_f1(gold_N[rows], predicted_N[rows], classes), seed),
    }


def report_probabilities(probability_NC: NDArray[np.float64], gold_N: Labels, groups: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Accuracy, macro-F1, ECE and Brier score of label probabilities, each with n and interval."""
    measured = report_labels(gold_N, probability_NC.argmax(1), probability_NC.shape[1], groups, seed)
    for name, statistic in (("ece", expected_calibration_error), ("brier", brier)):
        measured[name] = bootstrap_figure(groups, lambda rows, f=statistic: f(probability_NC[rows], gold_N[rows]), seed)  # type: ignore[misc]
    return measured
