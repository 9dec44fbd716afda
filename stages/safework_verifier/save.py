"""The reports that are saved with a verifier's weights, and the outcome of its command: the same for trained and wrapped ones."""

from __future__ import annotations

import json
from typing import Any

from safework_cli.core.stage import Outcome, WorkDir
from safework_cli.verifiers.spec import LabelSpec
from safework_verifier.card import card
from safework_verifier.measure import GIVEN_HARMFUL, PHRASES
from safework_verifier.rows import Parts


def write_reports(spec: LabelSpec, metrics: dict[str, Any], parts: Parts, made_of: tuple[str, str], work: WorkDir) -> None:
    """Writes the confusion matrix, the flipped attacks and the card; removes the long lists from the metrics.

    Args:
        made_of: references of the model and of the data.
    """
    confusion, flips = metrics.pop("confusion"), metrics.pop("attack_examples", [])
    for name, value in (("confusion.json", confusion), ("attacks.json", flips)):
        (work.output / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    text = card(spec, metrics, parts, confusion, flips, *made_of)
    (work.output / "verifier_card.md").write_text(text, encoding="utf-8")


SEEDS = {
    "split, order of rows, LoRA initialisation, dropout, bootstrap, attacks": "seed",
    "matrix products": "not pinned: other hardware or thread counts round differently",
}


def unmeasured(metrics: dict[str, Any], why: str, template: str | None) -> Outcome:
    """The outcome for a verifier that was trained and could not be measured: its temperature stays 1, and the command exits with 5."""
    made = Outcome(metrics=metrics, seeds=dict(SEEDS), chat_template_hash=template)
    made.not_measured(f"{why}; it is neither calibrated nor measured (safework verifier wrap measures it)")
    return made


def judged_by(metrics: dict[str, Any], min_accuracy: float, max_failed: float) -> Outcome:
    """What the limits make of a measurement: the rows that the judge gave no label, and the gate on accuracy.

    An accuracy that leaves out more rows than ``max_failed`` allows is that of another set of rows: it does not pass a gate.
    """
    rows, accuracy = metrics["rows"], metrics["accuracy"]
    failed = rows.get("unscored", 0)
    made = Outcome(failed_items=failed, tolerated_items=int(max_failed * (rows["report"] + failed)))
    if accuracy["value"] < min_accuracy:
        made.failed_gates.append(f"accuracy {accuracy['value']:.3f} on {accuracy['n']} rows is below min_accuracy={min_accuracy}")
    if min_accuracy > 0 and failed > made.tolerated_items:
        made.failed_gates.append(
            f"min_accuracy={min_accuracy} cannot be checked: {failed} of {rows['report'] + failed} rows got no label, "
            f"max_failed={max_failed:g} allows {made.tolerated_items}"
        )
    return made


def outcome(metrics: dict[str, Any], min_accuracy: float, template: str | None, work: WorkDir, max_failed: float = 0.0) -> Outcome:
    """Metrics, the gate on accuracy, and a warning for every baseline that is as good."""
    made = judged_by(metrics, min_accuracy, max_failed)
    made.metrics, made.seeds, made.chat_template_hash = metrics, dict(SEEDS), template
    accuracy = metrics["accuracy"]["value"]
    given_harmful = metrics["baselines"].get(GIVEN_HARMFUL, metrics)["accuracy"]["value"]
    for name, baseline in metrics["baselines"].items():
        mine, theirs = (given_harmful if name == PHRASES else accuracy), baseline["accuracy"]["value"]
        if name != GIVEN_HARMFUL and mine <= theirs:
            sentence = f"the verifier is not better than the baseline {name}: accuracy {mine:.3f} against {theirs:.3f}"
            made.notes.append(sentence)
            work.progress.warn(sentence)
    return made
