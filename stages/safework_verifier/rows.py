"""Which rows a verifier is trained on and which it is measured on. Torch-free: ``plan`` and the run use the same functions."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from safework_cli.core.errors import ConfigError, InputError, nearest
from safework_cli.data.row import Row
from safework_cli.verifiers.contract import Exchange
from safework_cli.verifiers.rules.refusal import RefusalLabel, refusal_label
from safework_cli.verifiers.spec import LabelSpec


@dataclass(frozen=True, slots=True)
class Labelled:
    """A row with its gold label, as index into the spec's labels."""

    row: Row
    exchange: Exchange
    gold: int


@dataclass(slots=True)
class Parts:
    """The data, split by prompt group: what is trained on, what the temperature is fitted on, what is reported."""

    train: list[Labelled] = field(default_factory=list)
    calibration: list[Labelled] = field(default_factory=list)
    report: list[Labelled] = field(default_factory=list)
    missing: int = 0

    def counts(self, spec: LabelSpec) -> dict[str, dict[str, int]]:
        """Rows by part and label."""
        parts = {"train": self.train, "calibration": self.calibration, "report": self.report}
        return {
            name: {label: count for label, count in zip(spec.labels, _count(part, len(spec.labels)), strict=True) if count}
            for name, part in parts.items()
        }


def _count(items: Sequence[Labelled], classes: int) -> list[int]:
    counts = Counter(item.gold for item in items)
    return [counts[c] for c in range(classes)]


def labelled_rows(rows: Sequence[Row], spec: LabelSpec, tolerated_missing: float) -> tuple[list[Labelled], int]:
    """The rows that have a reply and a label of the spec, and the number of the others.

    Raises:
        InputError: no rows, an unknown label, more rows without label or reply than tolerated, or a single class.
    """
    if not rows:
        raise InputError("the dataset has no rows", "there is nothing to train on", "safework artifacts show the dataset")
    labelled, missing = [], []
    for row in rows:
        label = row.meta.get("label")
        if label is None or row.reply is None:
            missing.append(row.id)
            continue
        if label not in spec.labels:
            raise InputError(
                f"row '{row.id}' has the label '{label}', which is unknown to the {spec.task} verifier{nearest(str(label), spec.labels)}",
                f"its labels: {', '.join(spec.labels)}",
                "fix meta.label in the data",
            )
        for annotated in row.meta.get("annotators") or []:
            if annotated not in spec.labels:
                raise InputError(
                    f"row '{row.id}': an annotator's label is '{annotated}', which is unknown to the {spec.task} verifier",
                    f"its labels: {', '.join(spec.labels)}",
                    "fix meta.annotators in the data",
                )
        labelled.append(Labelled(row, Exchange.of(row), spec.labels.index(label)))
    if len(missing) > tolerated_missing * len(rows):
        raise InputError(
            f"{len(missing)} of {len(rows)} rows have no meta.label or no reply, such as '{missing[0]}'",
            f"tolerated_missing_labels={tolerated_missing:g}",
            "name the subset with labelled replies, or raise tolerated_missing_labels",
        )
    classes = {item.gold for item in labelled}
    if len(classes) < 2:
        only = spec.labels[next(iter(classes))] if classes else "none"
        raise InputError(f"the rows have only one label: '{only}'", "there is nothing to distinguish", "give rows of at least two labels")
    return labelled, len(missing)


def split_by_prompt(
    items: Sequence[Labelled], missing: int, eval_fraction: float, seed: int, *, calibrate_on: Literal["held_out", "train"] = "held_out"
) -> Parts:
    """Splits by prompt group. Rows whose split is "test" are held out; where there are none, ``eval_fraction`` of the groups are.

    Half of what is held out fits the temperature, the other half is reported. With ``calibrate_on="train"`` all rows of split "test" are
    reported, and ``eval_fraction`` of the other groups fits the temperature.

    Raises:
        InputError: a group is on both sides of the data's own split, or a side would be empty or have one class.
    """
    own = [item.row.split == "test" for item in items]
    if any(own):
        both = {i.row.group for i, held in zip(items, own, strict=True) if held} & {
            i.row.group for i, held in zip(items, own, strict=True) if not held
        }
        if both:
            raise InputError(f"prompt group '{sorted(both)[0]}' is in train and test", "it would be tested on prompts it was trained on")
        held_out = own
    else:
        held_out = _hold_out(items, eval_fraction, seed)
    outside = [item for item, held in zip(items, held_out, strict=True) if held]
    inside = [item for item, held in zip(items, held_out, strict=True) if not held]
    if calibrate_on == "train" and any(own):
        calibrating = _hold_out(inside, eval_fraction, seed + 1)
        calibration, report = [item for item, kept in zip(inside, calibrating, strict=True) if kept], outside
        inside = [item for item, kept in zip(inside, calibrating, strict=True) if not kept]
    else:
        reported = _hold_out(outside, 0.5, seed + 1)
        calibration = [item for item, kept in zip(outside, reported, strict=True) if not kept]
        report = [item for item, kept in zip(outside, reported, strict=True) if kept]
    parts = Parts(inside, calibration, report, missing)
    if len({item.gold for item in parts.train}) < 2 or not parts.report or not parts.calibration:
        groups = len({item.row.group for item in items})
        raise InputError(
            f"{len(items)} rows in {groups} prompt groups cannot be split into training, calibration and report",
            f"they would get {len(parts.train)}, {len(parts.calibration)} and {len(parts.report)} rows",
            "give rows of more prompts, or raise eval_fraction",
        )
    return parts


def unused_calibration(calibrate_on: Literal["held_out", "train"], items: Sequence[Labelled]) -> str:
    """What to say where ``calibrate_on`` has nothing to act on; empty where it has."""
    if calibrate_on == "held_out" or any(item.row.split == "test" for item in items):
        return ""
    return "calibrate_on=train does not act: the data has no rows of split test, and half of what is held out is reported"


def _hold_out(items: Sequence[Labelled], fraction: float, seed: int) -> list[bool]:
    return hold_out([i.gold for i in items], [i.row.group for i in items], [i.row.source for i in items], fraction, seed)


def hold_out(labels: Sequence[int], groups: Sequence[str], sources: Sequence[str], fraction: float, seed: int) -> list[bool]:
    """Which rows are held out: whole groups, so that each label of each source comes as close to its share as groups allow.

    Groups are sorted by their rarest label, then source, then label counts, and shuffled by the seed within that order. A group is held out
    where that brings the counts closer to ``fraction`` of every label passed so far (squared distance, each label relative to its total).
    The target is a share of the rows passed so far, not of all rows: otherwise the first groups would all be held out, and none of the last
    ones, which are of another kind.
    """
    total = Counter(labels)
    members: dict[str, Counter[int]] = {}
    source_of: dict[str, set[str]] = {}
    for label, group, source in zip(labels, groups, sources, strict=True):
        members.setdefault(group, Counter())[label] += 1
        source_of.setdefault(group, set()).add(source)
    order = sorted(members)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda group: (min(total[label] for label in members[group]), sorted(source_of[group]), sorted(members[group].items())))
    taken: Counter[int] = Counter()
    passed: Counter[int] = Counter()
    chosen: set[str] = set()
    for group in order:
        passed.update(members[group])
        gain = 0.0
        for label, count in members[group].items():
            missing = fraction * passed[label] - taken[label]
            gain += (missing**2 - (missing - count) ** 2) / total[label] ** 2
        if gain > 0:
            chosen.add(group)
            taken.update(members[group])
    return [group in chosen for group in groups]


def class_weights(golds: Sequence[int], classes: int, scheme: str) -> list[float]:
    """The weight of each class's rows in the loss, mean 1 over the rows given; a class without rows gets 0.

    Args:
        scheme: "none" (all 1), "balanced" (∝ 1/n_c) or "sqrt" (∝ 1/√n_c, between the two).
    """
    counts = Counter(golds)
    power = {"none": 0.0, "sqrt": 0.5, "balanced": 1.0}[scheme]
    raw = [counts[c] ** -power if counts[c] else 0.0 for c in range(classes)]
    mean = sum(raw[g] for g in golds) / len(golds)
    return [weight / mean for weight in raw]


REFUSAL_WORDS = {"refusal": "full refusal", "partial": "partial refusal", "compliance": "full compliance", "empty": "full refusal"}


def phrase_label(harmful: bool, kind: RefusalLabel) -> str:
    """The six-class label of the refusal-phrase baseline, given whether the prompt is harmful."""
    if kind == "empty":
        return "Illogical completion"
    if harmful:
        return {"refusal": "Safe with refusal", "partial": "Safe with warning", "compliance": "Unsafe"}[kind]
    return "Safe without risk" if kind == "compliance" else "Unnecessary refusal"


def phrase_predictions(items: Sequence[Labelled], spec: LabelSpec) -> list[int | None]:
    """The baseline's label of each row; None where it is unknown whether the prompt is harmful, or the spec has other labels."""
    predictions: list[int | None] = []
    for item in items:
        harmful, kind = item.exchange.harmful, refusal_label(item.exchange.final)
        if spec.task == "refusal":
            label: str | None = REFUSAL_WORDS[kind]
        else:
            label = None if harmful is None else phrase_label(harmful, kind)
        predictions.append(spec.labels.index(label) if label in spec.labels else None)
    return predictions


def check_layers(layers: int | None, keep: int | None, train: int | None) -> None:
    """Raises ConfigError where more layers are requested than the backbone has."""
    available = layers if layers is not None else keep
    for name, asked, most in (("keep_layers", keep, layers), ("train_layers", train, keep if keep is not None else available)):
        if asked is not None and most is not None and asked > most:
            raise ConfigError(f"{name}={asked}, but there are {most} layers", "", f"{name}={most}")
