"""How good a verifier is: on rows that it has not seen, beside baselines, people, and attacks. Trained and wrapped ones take one path."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from safework_cli.core.errors import InputError
from safework_cli.core.stage import WorkDir
from safework_cli.statistics.classification import (
    cohen_kappa,
    confusion_matrix,
    estimate,
    fit_temperature,
    report,
    report_hard,
    rescale,
    share_estimate,
    wilson,
)
from safework_cli.verifiers.contract import Exchange, Verifier, judged
from safework_cli.verifiers.labels import LabelVerifier
from safework_cli.verifiers.spec import LabelSpec
from safework_verifier.rows import Labelled, Parts, phrase_predictions
from safework_verifier.train.attacks import summary, tried

MIN_CALIBRATION_ROWS = 20
"""Fewer rows say nothing about a temperature: it stays 1."""
SHOWN_FLIPS = 3


def measure(verifier: LabelVerifier, parts: Parts, attack_rows: int, seed: int, work: WorkDir) -> dict[str, Any]:
    """Fits the temperature on one half of the held-out rows (into the verifier's spec) and measures on the other.

    Args:
        attack_rows: rows that each attack of the sheet is tried on; 0 leaves the sheet out.
    """
    spec = verifier.spec
    with work.progress.phase("calibrate", len(parts.calibration)):
        calibration_NC, calibration_gold_N = _probabilities(verifier, parts.calibration)
    with work.progress.phase("evaluate", len(parts.report)):
        raw_NC, gold_N = _probabilities(verifier, parts.report)
    truncated, held_out = verifier.truncated, verifier.judged
    if len(parts.calibration) >= MIN_CALIBRATION_ROWS:
        spec.temperature = round(fit_temperature(calibration_NC, calibration_gold_N), 4)
    else:
        work.progress.warn(f"only {len(parts.calibration)} rows to calibrate on: the temperature stays 1")
    probability_NC = rescale(raw_NC, spec.temperature)
    groups = [item.row.group for item in parts.report]
    predicted_N = probability_NC.argmax(1)
    found = report(probability_NC, gold_N, groups, seed)
    found["ece_before_temperature"] = report(raw_NC, gold_N, groups, seed)["ece"]
    found["temperature"] = spec.temperature
    found["rows"] = {
        "train": len(parts.train),
        "calibration": len(parts.calibration),
        "report": len(parts.report),
        "held_out_truncated": f"{truncated} of {held_out}",
    }
    found["by_source"] = _by_source(parts.report, gold_N, predicted_N)
    found["baselines"] = _baselines(spec, parts, probability_NC, gold_N, groups, seed)
    found |= _annotators(spec, parts.report, predicted_N)
    if attack_rows:
        found["attacks"], found["attack_examples"] = _attacks(verifier, parts.report, predicted_N == gold_N, attack_rows, seed, work)
    found["confusion"] = {"labels": spec.labels, "gold_by_predicted": confusion_matrix(gold_N, predicted_N, len(spec.labels)).tolist()}
    return found


def measure_verdicts(verifier: Verifier, spec: LabelSpec, parts: Parts, seed: int, work: WorkDir) -> dict[str, Any]:
    """The same for a judge that only says a label: accuracy, macro-F1, confusion, agreement; rows that it could not judge are counted."""
    with work.progress.phase("evaluate", len(parts.report)):
        verdicts = judged(verifier, [item.exchange for item in parts.report])
    items = [item for item, verdict in zip(parts.report, verdicts, strict=True) if verdict.label in spec.labels]
    predicted_N = np.array([spec.labels.index(v.label) for v in verdicts if v.label in spec.labels], dtype=np.int64)
    if not items:
        why = next((verdict.error for verdict in verdicts if verdict.error), None)
        raise InputError(f"{verifier.name} judged none of {len(verdicts)} rows", why or "", "see that it is served, and what it answers")
    gold_N = np.array([item.gold for item in items])
    groups = [item.row.group for item in items]
    found = report_hard(gold_N, predicted_N, len(spec.labels), groups, seed)
    found["rows"] = {"train": 0, "calibration": 0, "report": len(items), "unscored": len(verdicts) - len(items)}
    found["by_source"] = _by_source(items, gold_N, predicted_N)
    found["baselines"] = _phrase_baseline(spec, items, gold_N, groups, seed)
    found |= _annotators(spec, items, predicted_N)
    found["confusion"] = {"labels": spec.labels, "gold_by_predicted": confusion_matrix(gold_N, predicted_N, len(spec.labels)).tolist()}
    return found


def _by_source(items: list[Labelled], gold_N: Any, predicted_N: Any) -> dict[str, Any]:
    return {
        source: share_estimate(gold_N[rows], predicted_N[rows], [items[i].row.group for i in rows])
        for source in sorted({item.row.source for item in items})
        for rows in [np.array([i for i, item in enumerate(items) if item.row.source == source])]
    }


def _probabilities(verifier: LabelVerifier, items: list[Labelled]) -> tuple[Any, Any]:
    """Label probabilities (N, C) and gold labels (N,) of rows."""
    readings = verifier.read([item.exchange for item in items])
    return np.array([r.probabilities for r in readings], dtype=np.float64), np.array([item.gold for item in items])


def _baselines(spec: LabelSpec, parts: Parts, probability_NC: Any, gold_N: Any, groups: list[str], seed: int) -> dict[str, Any]:
    """What it must beat: always the most frequent training label; and refusal phrases, which are told whether the prompt is harmful.

    The phrase baseline and the verifier with the same knowledge are measured on the rows that say so.
    """
    classes = len(spec.labels)
    frequent = Counter(item.gold for item in parts.train or parts.calibration).most_common(1)[0][0]
    found = {"most_frequent_label": report_hard(gold_N, np.full_like(gold_N, frequent), classes, groups, seed)}
    found |= _phrase_baseline(spec, parts.report, gold_N, groups, seed)
    if "refusal_phrases_told_harmful" in found:
        known = _told(spec, parts.report)
        allowed_NC = np.array([[parts.report[i].exchange.harmful in spec.possible[label] for label in spec.labels] for i in known])
        told_N = np.where(allowed_NC, probability_NC[known], -1.0).argmax(1)
        found["verifier_told_harmful"] = report_hard(gold_N[known], told_N, classes, [groups[i] for i in known], seed)
    return found


def _told(spec: LabelSpec, items: list[Labelled]) -> Any:
    """Places of the rows that the phrase baseline has a word for: (K,)."""
    return np.array([i for i, label in enumerate(phrase_predictions(items, spec)) if label is not None], dtype=np.int64)


def _phrase_baseline(spec: LabelSpec, items: list[Labelled], gold_N: Any, groups: list[str], seed: int) -> dict[str, Any]:
    known = _told(spec, items)
    if not len(known):
        return {}
    phrases = phrase_predictions(items, spec)
    phrase_N = np.array([phrases[i] for i in known])
    return {"refusal_phrases_told_harmful": report_hard(gold_N[known], phrase_N, len(spec.labels), [groups[i] for i in known], seed)}


def _annotators(spec: LabelSpec, items: list[Labelled], predicted_N: Any) -> dict[str, Any]:
    """Agreement with people who labelled the rows one by one (``meta.annotators``), and theirs with one another."""
    both = [i for i, item in enumerate(items) if len(item.row.meta.get("annotators") or []) == 2]
    if not both:
        return {}
    first_N, second_N = (np.array([spec.labels.index(items[i].row.meta["annotators"][who]) for i in both]) for who in (0, 1))
    mine_N = predicted_N[both]
    pairs = {"verifier and annotator 1": (mine_N, first_N), "verifier and annotator 2": (mine_N, second_N)}
    pairs["annotator 1 and annotator 2"] = (first_N, second_N)
    groups = [items[i].row.group for i in both]
    agreed = {
        name: {"agreement": share_estimate(a_N, b_N, groups), "cohen_kappa": round(cohen_kappa(a_N, b_N, len(spec.labels)), 4)}
        for name, (a_N, b_N) in pairs.items()
    }
    return {"annotators": agreed}


def _attacks(verifier: LabelVerifier, items: list[Labelled], right_N: Any, rows: int, seed: int, work: WorkDir) -> tuple[Any, Any]:
    """The attack sheet: flips by attack, and a few of them in full."""
    labels = verifier.spec.labels

    def judge(exchanges: list[Exchange]) -> list[str]:
        return [labels[int(np.argmax(reading.probabilities))] for reading in verifier.read(exchanges)]

    with work.progress.phase("attacks"):
        found = tried(items, right_N.tolist(), verifier.spec, judge, rows, seed)
    examples = [
        {"attack": t.attack.name, "id": item.row.id, "reply": item.exchange.reply, "gold": labels[item.gold], "said": label}
        for t in found
        for item, label in t.flipped[:SHOWN_FLIPS]
    ]
    return summary(found, lambda flips, n: estimate(n, flips / n, wilson(flips, n))), examples
