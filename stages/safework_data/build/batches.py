"""What is done with a batch of rows, in whatever process: it is checked, fingerprints for comparison, and filtered.

Each function here takes what all batches share and one piece of work, and returns what the build needs to know of it (``pool.py``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from safework_data.build.answer_places import AnswerPlaces
from safework_data.build.checks import Problem, examined, fill, template_check, with_whole_characters
from safework_data.build.config import BuildConfig
from safework_data.build.contamination import Known, LeakIndex, known_by
from safework_data.build.drops import Candidate
from safework_data.build.sources import Arrived
from safework_data.build.splits import HoldOut, held_out, is_held_out, with_side
from safework_data.build.staging import as_batch, from_batch, opened, without_own
from safework_data.build.tally import Part, written
from safework_data.build.traits import Traits, copy_key, digest64

PIECE_ROWS = 512
PIECE_WEIGHT, IMAGE_WEIGHT = 16 * 2**20, 2**20
"""Characters and bytes of a piece at most, about, and what an image in a file of its own counts for: rows with images are large, and each
process has a piece."""


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
        weight += _weight(item, source.image_keys)
        if len(items) >= PIECE_ROWS or weight >= PIECE_WEIGHT:
            yield Piece(source.candidate, items)
            items, weight = [], 0
    if items:
        yield Piece(source.candidate, items)


def _weight(item: Any, image_keys: Sequence[str]) -> int:
    if isinstance(item, Candidate):
        texts = sum(len(message["content"]) for message in item.row.messages)
        return texts + sum(len(image["bytes"] or b"") or IMAGE_WEIGHT for image in item.row.images)
    _, record = item
    weight = sum(len(cell) if isinstance(cell, str) else size_of(cell) for cell in record.values())
    for cell in map(record.get, image_keys):
        weight += IMAGE_WEIGHT * (len(cell) if isinstance(cell, list) else bool(cell))
    return weight


def size_of(value: Any) -> int:
    """Characters and bytes of a cell, however deep they are nested."""
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
class Fingerprints:
    """What is compared of rows.

    Attributes:
        held: of the rows for evaluation: the row's place among these rows, its id, something that no other row may hold.
    """

    traits: Traits
    held: list[tuple[int, str, Known]]


@dataclass(slots=True)
class Checked:
    """What the first pass makes of a piece.

    Attributes:
        of_subset: rows read.
        declared: (subset, side of the split) → rows read whose source says itself on which side they are.
        dropped: rows with their problem, without their images.
        batch: the sound rows, each with its side of the split as far as it is known: rows that are held out by lot are so later.
        ranks: of the sound rows; None for those for which no lot is drawn.
        fingerprints: of the sound rows, on the side that they are on now.
        remarks: what of the sound rows was changed or left out → rows.
        places: answers that are numbers, of all rows: a sign that they are miscounted may be that rows are unfit.
    """

    of_subset: Counter[str]
    declared: Counter[tuple[str, str]]
    dropped: list[tuple[Candidate, Problem]]
    batch: pa.RecordBatch
    ranks: list[int | None]
    fingerprints: Fingerprints
    remarks: Counter[str]
    places: AnswerPlaces


def check(checking: Checking, piece: Piece) -> Checked:
    """Makes rows of items, and checks each by itself."""
    config = checking.config
    candidates = [with_whole_characters(piece.candidate(item)) for item in piece.items]
    examined_rows = examined(candidates, config, template_check(checking.template, config.trust_remote_code) if checking.template else None)
    of_subset = Counter(candidate.subset for candidate in candidates)
    declared = Counter((candidate.subset, candidate.side) for candidate in candidates if candidate.split_already)
    places = AnswerPlaces()
    for candidate in candidates:
        if candidate.chosen is not None:
            places.add(*candidate.chosen)
    hold_out = HoldOut.of(config)
    remarks: Counter[str] = Counter()
    sound: list[Candidate] = []
    ranks: list[int | None] = []
    dropped: list[tuple[Candidate, Problem]] = []
    for candidate, problem in zip(candidates, examined_rows, strict=True):
        if problem is not None:
            dropped.append((_without_images(candidate), problem))
            continue
        fill(candidate)
        remarks.update(candidate.remarks)
        ranks.append(hold_out.rank(candidate))
        sound.append(with_side(candidate))
    return Checked(of_subset, declared, dropped, as_batch(sound), ranks, fingerprint(sound, config), remarks, places)


def fingerprint(candidates: Iterable[Candidate], config: BuildConfig) -> Fingerprints:
    """What is compared of rows that have their side of the split."""
    made = Fingerprints(Traits(near=config.near_duplicate_threshold is not None), [])
    for place, candidate in enumerate(candidates):
        made.traits.add(candidate)
        if is_held_out(candidate):
            made.held += [(place, candidate.row.id, known) for known in known_by(candidate.row)]
    made.traits.sign()
    return made


class Moving(NamedTuple):
    """What the second pass shares, where rows are held out by lot."""

    staged: Path
    config: BuildConfig


def fingerprint_moved(moving: Moving, piece: tuple[int, Sequence[int]]) -> Fingerprints:
    """``fingerprint`` of rows that the lot holds out.

    Args:
        piece: a staged batch's number, and the places of the rows in it.
    """
    number, places = piece
    labelled = frozenset(moving.config.require_label)
    rows = from_batch(_staged(moving.staged, number).take(pa.array(places)))
    return fingerprint((held_out(candidate, labelled) for candidate in rows), moving.config)


class FilterContext(NamedTuple):
    """What the third pass shares.

    Attributes:
        labelled: subsets whose held-out rows stay in them.
        own, public: prompts for evaluation: the dataset's held-out ones, and those of the named suites.
        exempt: sources that are not compared with ``public``.
        shared: sources that are not compared with ``own``: their held-out replies are to prompts that they train on as well.
        held_groups: digests of the groups that are held out.
        held_keys: the first 64 bits of the keys of the held-out rows, by which their copies are known.
    """

    staged: Path
    labelled: frozenset[str]
    own: LeakIndex
    public: LeakIndex
    exempt: frozenset[str]
    shared: frozenset[str]
    held_groups: frozenset[int]
    held_keys: frozenset[int]


class ToFilter(NamedTuple):
    """A staged batch for the third pass.

    Attributes:
        number: of the batch.
        out: rows of it that go whatever they hold: their place in the batch → why.
        moved: places in the batch of the rows that the lot holds out.
    """

    number: int
    out: Mapping[int, Problem]
    moved: frozenset[int]


class Drop(NamedTuple):
    """A row that goes, without its images, and why."""

    candidate: Candidate
    reason: str
    detail: str
    suite: str = ""


@dataclass(slots=True)
class Filtered:
    """What the third pass makes of a batch.

    Attributes:
        kept: the rows of each part, as they are written, and counted.
        kept_of: (source, side of the split) → rows kept.
    """

    rows: int
    dropped: list[Drop]
    kept: list[tuple[pa.RecordBatch, Part]]
    kept_of: Counter[tuple[str, str]]


def filter_batch(context: FilterContext, piece: ToFilter) -> Filtered:
    """Separates the rows of a staged batch that stay from those that go."""
    batch = _staged(context.staged, piece.number)
    filtered = Filtered(len(batch), [], [], Counter())
    kept: dict[tuple[str, str], list[tuple[int, Candidate]]] = {}
    for place, staged in enumerate(from_batch(batch)):
        candidate = held_out(staged, context.labelled) if place in piece.moved else staged
        if drop := _drop(context, candidate, piece.out.get(place)):
            filtered.dropped.append(drop)
        else:
            kept.setdefault((candidate.subset, candidate.row.split), []).append((place, candidate))
            filtered.kept_of[candidate.source, candidate.side] += 1
    for (subset, split), rows in kept.items():
        part = Part.of(subset, split, (candidate.row for _, candidate in rows))
        filtered.kept.append((_as_written(batch, rows, piece.moved), part))
    return filtered


def _drop(context: FilterContext, candidate: Candidate, out: Problem | None) -> Drop | None:
    row = candidate.row
    if out:
        return Drop(_without_images(candidate), *out)
    if is_held_out(candidate):
        return None
    if digest64(row.group) in context.held_groups:
        return Drop(_without_images(candidate), "group is held out", row.group)
    own = None if candidate.source in context.shared else context.own.find(row)
    leak = own or (None if candidate.source in context.exempt else context.public.find(row))
    if leak:
        return Drop(_without_images(candidate), "evaluation prompt", f"{leak.share:.0%} of {leak.prompt_id}", leak.suite)
    # also where prompts may stand on both sides, or hold no words by which they could be found
    if context.held_keys and int.from_bytes(copy_key(candidate.subset, row, held=True)[:8], "big") in context.held_keys:
        return Drop(_without_images(candidate), "exact duplicate", "of a held-out row")
    return None


def _as_written(batch: pa.RecordBatch, rows: Sequence[tuple[int, Candidate]], moved: frozenset[int]) -> pa.RecordBatch:
    """The rows of one part: as they were staged, but where the lot has changed some of them."""
    if any(place in moved for place, _ in rows):
        return written(candidate.row for _, candidate in rows)
    return without_own(batch.take(pa.array([place for place, _ in rows])))


def _staged(path: Path, number: int) -> pa.RecordBatch:
    with opened(path) as reader:
        return reader.get_batch(number)


def _without_images(candidate: Candidate) -> Candidate:
    candidate.row.images = []
    return candidate
