"""XSTest's replies of five models with the labels of its annotators (Röttger et al., arXiv 2308.01263), as rows for verifiers.

Labels follow the annotation of the reply and whether the prompt is one of the unsafe contrasts (types ``contrast_…``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safework_cli.core.errors import InputError, nearest
from safework_cli.data.row import Message, Row
from safework_cli.data.suites.readers import in_dev_half
from safework_cli.data.suites.tables import read_table
from safework_data.build.sources_config import XSTestSource
from safework_data.build.text import words
from safework_data.files import refuse_missing

LABELS = {
    # (prompt asks for harm, final label) → class of the safety verifier
    (True, "2_full_refusal"): "Safe with refusal",
    (True, "3_partial_refusal"): "Safe with warning",
    (True, "1_full_compliance"): "Unsafe",
    (False, "1_full_compliance"): "Safe without risk",
    (False, "2_full_refusal"): "Unnecessary refusal",
    (False, "3_partial_refusal"): "Unnecessary refusal",
}
ANNOTATIONS = {"1_full_compliance": "full compliance", "2_full_refusal": "full refusal", "3_partial_refusal": "partial refusal"}
OFF_TOPIC = "Illogical completion"
COLUMNS = ("id", "type", "prompt", "completion", "final_label", "annotation_1", "annotation_2")


def xstest_rows(source: XSTestSource, files: Sequence[Path]) -> list[Row]:
    """The rows of a source, those with an answer to another prompt last in each half.

    Args:
        files: a table for each model whose replies were annotated.

    Raises:
        InputError: a table lacks a column or has an unknown label, or there is none of ``test_model``.
    """
    rows: list[Row] = []
    for path in files:
        for record in read_table(path):
            refuse_missing([column for column in COLUMNS if column not in record], list(record), str(path))
            rows.append(_row(source, path, record))
    sides = _halves(source, rows)
    if source.labels == "safety":
        sides = [[*side, *_off_topic(side, source.off_topic // len(sides))] for side in sides]
    rows = [row for side in sides for row in side]
    if source.test_model is not None:
        known = sorted({path.stem for path in files})
        if source.test_model not in known:
            what = f"source {source.name}: no table of '{source.test_model}'{nearest(source.test_model, known)}"
            raise InputError(what, f"tables: {', '.join(known)}", "correct test_model")
        for row in rows:  # the same prompts stand on both sides: what is new is who replies
            row.split = "test" if row.meta["model"] == source.test_model else "train"
            row.meta["group"] = f"{row.group}/{row.split}"
    return rows


def _halves(source: XSTestSource, rows: list[Row]) -> list[list[Row]]:
    """The rows that a source takes: all of them, those of the dev half, or those of both halves, the second with split "test".

    Prompts are taken in the order of a hash of their ids that no source's name enters, so that what one source skips another one takes.
    """
    halves: list[list[Row]] = [[], []]
    for row in rows:
        second = source.halves != "ignored" and not in_dev_half(_prompt_id(row))
        halves[second].append(replace(row, split="test") if second else row)
    taken = []
    for half, skip in zip(halves, (source.skip, 0), strict=True):
        order = sorted({_prompt_id(row) for row in half}, key=lambda one: hashlib.sha256(f"xstest/{one}".encode()).digest())
        kept = set(order[skip:] if source.prompts is None else order[skip : skip + source.prompts])
        taken.append([row for row in half if _prompt_id(row) in kept])
    return taken if source.halves == "split" else taken[:1]


def _prompt_id(row: Row) -> str:
    """XSTest's own id of a row's prompt."""
    return row.group.rpartition("/")[2]


def _row(source: XSTestSource, path: Path, record: dict[str, str]) -> Row:
    harmful = record["type"].startswith("contrast_")

    def label_of(annotation: str) -> str | None:
        return ANNOTATIONS.get(annotation) if source.labels == "refusal" else LABELS.get((harmful, annotation))

    label = label_of(record["final_label"])
    if label is None:
        known = ", ".join(ANNOTATIONS)
        raise InputError(f"{path}, prompt {record['id']}: unknown final_label '{record['final_label']}'", f"known labels: {known}")
    messages = [Message(role="user", content=record["prompt"])]
    if record["completion"].strip():
        messages.append(Message(role="assistant", content=record["completion"].strip()))
    meta: dict[str, Any] = {"group": f"{source.name}/{record['id']}", "label": label, "language": "en", "model": path.stem}
    people = [label_of(record[column]) for column in ("annotation_1", "annotation_2")]
    if all(people):
        meta["annotators"] = people
    return Row(
        id=f"{source.name}/{record['id']}/{path.stem}", task="safety", messages=messages, category=record["type"], harmful=harmful,
        source=source.name, licence="CC-BY-4.0", meta=meta,
    )  # fmt: skip


def _unrelated(a: Row, b: Row) -> bool:
    """Whether two prompts share no word of four letters or more: the set pairs prompts about the same thing."""
    return not {w for w in words(a.question) if len(w) > 3} & set(words(b.question))


def _off_topic(rows: list[Row], count: int) -> list[Row]:
    """Puts prompts under full answers to other, safe prompts; sets ``meta.group`` of a prompt that lends its answers.

    Only answers that comply are lent: a refusal would fit any prompt. A borrower is never a lender, each lends once, and the two
    become one group, so that a lent answer stands on one side of every split. The order is fixed by the prompts' ids.
    """
    by_group: dict[str, list[Row]] = {}
    for row in rows:
        by_group.setdefault(row.group, []).append(row)
    order = sorted(by_group, key=lambda group: hashlib.sha256(group.encode()).digest())
    lenders = [g for g in order if any(row.meta["label"] == "Safe without risk" and row.reply for row in by_group[g])]
    made: list[Row] = []
    used: set[str] = set()
    for borrower in order:
        if len(made) >= count or borrower in used:
            continue
        asked = by_group[borrower][0]
        lender = next((g for g in lenders if g not in used and g != borrower and _unrelated(asked, by_group[g][0])), None)
        if lender is None:
            break
        used |= {borrower, lender}
        answers = [row for row in by_group[lender] if row.meta["label"] == "Safe without risk" and row.reply]
        for answer in answers[: count - len(made)]:
            meta = asked.meta | {"label": OFF_TOPIC, "model": f"{answer.meta['model']} to another prompt"}
            messages = [*asked.prompt, Message(role="assistant", content=str(answer.reply))]
            made.append(replace(asked, id=f"{borrower}/off-topic/{answer.meta['model']}", messages=messages, meta=meta))
        for row in by_group[lender]:
            row.meta["group"] = borrower
    return made
