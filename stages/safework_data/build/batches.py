"""What is done with a batch of rows, in whatever process: it is checked, noticed for comparison, and sifted.

Each function here takes what all batches share and one piece of work, and returns what the build needs to know of it (``crew.py``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from safework_data.build.checks import Fault, examined, settle, template_check, with_whole_characters
from safework_data.build.config import BuildConfig
from safework_data.build.contamination import LeakIndex, known_by
from safework_data.build.drops import Candidate
from safework_data.build.sources import Arrived
from safework_data.build.splits import HoldOut, is_held_out
from safework_data.build.staging import as_batch, from_batch, opened, without_own
from safework_data.build.tally import Part, written
from safework_data.build.traits import Traits, digest64

PIECE_ROWS = 512
PIECE_WEIGHT, PICTURE_WEIGHT = 16 * 2**20, 2**20
"""Characters and bytes of a piece at most, about, and of what a picture counts for that lies in a file of its own: rows with pictures are
large, and each process has a piece."""


class Piece(NamedTuple):
    """Items of a source, and what makes rows of them."""

    candidate: Callable[[Any], Candidate]
    items: list[Any]


def pieces(source: Arrived) -> Iterator[Piece]:
    """A source's items, cut into pieces of bounded size."""
    items: list[Any] = []
    weight = 0
    for item in source.items:
        items.append(item)
        weight += _weight(item, source.pictures)
        if len(items) >= PIECE_ROWS or weight >= PIECE_WEIGHT:
            yield Piece(source.candidate, items)
            items, weight = [], 0
    if items:
        yield Piece(source.candidate, items)


def _weight(item: Any, pictures: Sequence[str]) -> int:
    if isinstance(item, Candidate):
        texts = sum(len(message["content"]) for message in item.row.messages)
        return texts + sum(len(image["bytes"] or b"") or PICTURE_WEIGHT for image in item.row.images)
    _, record = item
    weight = sum(len(cell) if isinstance(cell, str) else size_of(cell) for cell in record.values())
    for cell in map(record.get, pictures):
        weight += PICTURE_WEIGHT * (len(cell) if isinstance(cell, list) else bool(cell))
    return weight


def size_of(value: Any) -> int:
    """Characters and bytes of a cell, however deep they lie."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(size_of, value.values()))
    return sum(map(size_of, value)) if isinstance(value, list | tuple) else 8


class Checking(NamedTuple):
    """What the first pass shares.

    Attributes:
        template: the folder of a model whose chat template is to keep every reply.
    """

    config: BuildConfig
    template: Path | None


@dataclass(slots=True)
class Noticed:
    """What is compared of rows.

    Attributes:
        held: id and text of those that are for evaluation.
    """

    traits: Traits
    held: list[tuple[str, str]]


@dataclass(slots=True)
class Checked:
    """A piece behind the first pass.

    Attributes:
        of_subset: rows read.
        dropped: rows with their fault, without their pictures.
        batch: the sound rows.
        ranks: of the sound rows; None for those for which no lot is drawn.
        noticed: of the sound rows, where their side of the split is known already.
        remarks: what of the sound rows was changed or left out → rows.
    """

    of_subset: Counter[str]
    dropped: list[tuple[Candidate, Fault]]
    batch: pa.RecordBatch
    ranks: list[int | None]
    noticed: Noticed | None
    remarks: Counter[str]


def check(checking: Checking, piece: Piece) -> Checked:
    """Makes rows of items and looks at each alone."""
    config = checking.config
    candidates = [with_whole_characters(piece.candidate(item)) for item in piece.items]
    faults = examined(candidates, config, template_check(checking.template, config.trust_remote_code) if checking.template else None)
    of_subset = Counter(candidate.subset for candidate in candidates)
    remarks = Counter(remark for candidate, fault in zip(candidates, faults, strict=True) if fault is None for remark in candidate.remarks)
    sound: list[Candidate] = []
    dropped: list[tuple[Candidate, Fault]] = []
    for candidate, fault in zip(candidates, faults, strict=True):
        if fault is None:
            settle(candidate)
            sound.append(candidate)
        else:
            dropped.append((_light(candidate), fault))
    hold_out = HoldOut.of(config)
    ranks = [hold_out.rank(candidate) for candidate in sound]
    noticed = None
    if not config.heldout:  # its side is known now, and not only when all rows have been seen
        for candidate in sound:
            hold_out.place(candidate)
        noticed = notice(sound, config)
    return Checked(of_subset, dropped, as_batch(sound), ranks, noticed, remarks)


def notice(candidates: Iterable[Candidate], config: BuildConfig) -> Noticed:
    """What is compared of rows that stand on their side of the split."""
    noticed = Noticed(Traits(near=config.near_duplicate_threshold is not None), [])
    for candidate in candidates:
        noticed.traits.add(candidate)
        if is_held_out(candidate):
            noticed.held += [(candidate.row.id, text) for text in known_by(candidate.row)]
    noticed.traits.sign()
    return noticed


class Sided(NamedTuple):
    """What the second pass shares, where rows are held out by lot."""

    staged: Path
    hold_out: HoldOut
    config: BuildConfig


def notice_staged(sided: Sided, number: int) -> Noticed:
    """``notice`` of a staged batch."""
    return notice(map(sided.hold_out.place, from_batch(_staged(sided.staged, number))), sided.config)


class Sieve(NamedTuple):
    """What the third pass shares.

    Attributes:
        own, public: prompts for evaluation: the dataset's held-out ones, and those of the named suites.
        exempt: sources that are not compared with ``public``.
        shared: sources that are not compared with ``own``: their held-out replies are to prompts that they train on as well.
        held_groups: digests of the groups that are held out.
    """

    staged: Path
    hold_out: HoldOut
    own: LeakIndex
    public: LeakIndex
    exempt: frozenset[str]
    shared: frozenset[str]
    held_groups: frozenset[int]


class Drop(NamedTuple):
    """A row that goes, without its pictures, and why."""

    candidate: Candidate
    reason: str
    detail: str
    suite: str = ""


@dataclass(slots=True)
class Sifted:
    """A batch behind the third pass.

    Attributes:
        kept: the rows of each part, as they are written, and counted.
        kept_of: source → rows kept.
    """

    rows: int
    dropped: list[Drop]
    kept: list[tuple[pa.RecordBatch, Part]]
    kept_of: Counter[str]


def sift(sieve: Sieve, piece: tuple[int, Mapping[int, Fault]]) -> Sifted:
    """Parts the rows of a staged batch into those that stay and those that go.

    Args:
        piece: the batch's number, and rows of it that go whatever they hold: their place in the batch → why.
    """
    number, out = piece
    batch = _staged(sieve.staged, number)
    sifted = Sifted(len(batch), [], [], Counter())
    kept: dict[tuple[str, str], list[tuple[int, Candidate]]] = {}
    for place, candidate in enumerate(map(sieve.hold_out.place, from_batch(batch))):
        if drop := _drop(sieve, candidate, out.get(place)):
            sifted.dropped.append(drop)
        else:
            kept.setdefault((candidate.subset, candidate.row.split), []).append((place, candidate))
            sifted.kept_of[candidate.source] += 1
    for (subset, split), rows in kept.items():
        part = Part.of(subset, split, (candidate.row for _, candidate in rows))
        sifted.kept.append((_as_written(sieve, batch, rows), part))
    return sifted


def _drop(sieve: Sieve, candidate: Candidate, out: Fault | None) -> Drop | None:
    row = candidate.row
    if out:
        return Drop(_light(candidate), *out)
    if is_held_out(candidate):
        return None
    if digest64(row.group) in sieve.held_groups:
        return Drop(_light(candidate), "group is held out", row.group)
    own = None if candidate.source in sieve.shared else sieve.own.find(row)
    leak = own or (None if candidate.source in sieve.exempt else sieve.public.find(row))
    if leak:
        return Drop(_light(candidate), "evaluation prompt", f"{leak.share:.0%} of {leak.prompt_id}", leak.suite)
    return None


def _as_written(sieve: Sieve, batch: pa.RecordBatch, rows: Sequence[tuple[int, Candidate]]) -> pa.RecordBatch:
    if not sieve.hold_out.share:  # rows were staged with their side: nothing of them has changed since
        return without_own(batch.take(pa.array([place for place, _ in rows])))
    return written(candidate.row for _, candidate in rows)


def _staged(path: Path, number: int) -> pa.RecordBatch:
    with opened(path) as reader:
        return reader.get_batch(number)


def _light(candidate: Candidate) -> Candidate:
    candidate.row.images = []
    return candidate
