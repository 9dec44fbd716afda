"""The first two passes: rows are read, checked and staged, and the lot says which of them are held out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from safework_cli.core.artifacts.manifest import HELDOUT
from safework_cli.data.row import Row
from safework_data.build.answer_places import AnswerPlaces, how_read, refuse_miscounted
from safework_data.build.batches import Checked, Checking, Moving, check, fingerprint_moved, pieces
from safework_data.build.config import BuildConfig
from safework_data.build.contamination import Known, LeakIndex
from safework_data.build.drops import Drops
from safework_data.build.sources import Arrived, source_name
from safework_data.build.splits import HoldOut, held_out
from safework_data.build.staging import Staging
from safework_data.build.traits import Traits
from safework_data.build.workers import WorkerPool


class Read:
    """What the first two passes leave: rows that pass every check, on disk, what was counted on the way, and what is compared of them.

    Attributes:
        traits: of all rows.
        own: the held-out prompts.
        moved: places of the rows that are held out by lot, in order.
        declared: source → (subset, side of the split) → rows of which the source says itself on which side they are.
        places: source → its answers that are numbers.
        remarks: what of the rows was changed or left out → rows.
    """

    def __init__(self, staging: Staging, config: BuildConfig):
        settings = config.decontaminate
        self.staging = staging
        self.hold_out = HoldOut.of(config)
        self.labelled = frozenset(config.require_label)
        self.moved: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.traits = Traits(near=config.near_duplicate_threshold is not None)
        self.own = LeakIndex(settings.ngram, settings.overlap)
        self._held: list[tuple[int, str, Known]] = []
        self.arrived: list[Arrived] = []
        self.of_source: Counter[str] = Counter()
        self.of_subset: Counter[str] = Counter()
        self.declared: dict[str, Counter[tuple[str, str]]] = {}
        self.places: dict[str, AnswerPlaces] = {}
        self.remarks: Counter[str] = Counter()

    @property
    def rows(self) -> int:
        return self.of_source.total()

    def through(self, source: Arrived, checking: Checking, drops: Drops, pool: WorkerPool) -> Iterator[int]:
        """Checks and stages a source's rows, and yields how many were read since.

        Raises:
            ConfigError: the answers that are numbers do not count the choices as the source's settings say.
        """
        self.arrived.append(source)
        for checked in pool.in_order(check, checking, pieces(source)):
            yield self._take(source.name, checked, drops)
        if (places := self.places.get(source.name)) and places.rows:
            answers_from = next((getattr(s, "answers_from", None) for s in checking.config.sources if source_name(s) == source.name), None)
            refuse_miscounted(source.name, places, answers_from)
            source.notes.append(how_read(source.name, places, answers_from))

    def _take(self, name: str, checked: Checked, drops: Drops) -> int:
        rows = checked.of_subset.total()
        self.of_source[name] += rows
        self.of_subset += checked.of_subset
        self.declared.setdefault(name, Counter()).update(checked.declared)
        self.places.setdefault(name, AnswerPlaces()).extend(checked.places)
        self.remarks += checked.remarks
        for candidate, problem in checked.dropped:
            drops.add(candidate, *problem)
        first = self.staging.count
        self.staging.add(checked.batch)
        self.hold_out.note(name, checked.ranks)
        self.traits.extend(checked.fingerprints.traits)
        self._held += [(first + place, row_id, known) for place, row_id, known in checked.fingerprints.held]
        return rows

    def draw(self, config: BuildConfig, pool: WorkerPool) -> None:
        """The second pass: which rows are held out by lot is known only when all have been read. Then all held-out prompts are known."""
        self.moved = self.hold_out.moved()
        pieces_of_moved = [(number, places.tolist()) for number, places in self.staging.by_batch(self.moved)]
        moved = Traits(near=config.near_duplicate_threshold is not None)
        work = pool.in_order(fingerprint_moved, Moving(self.staging.path, config), pieces_of_moved)
        for (number, places), made in zip(pieces_of_moved, work, strict=True):
            moved.extend(made.traits)
            self._held += [(self.staging.starts[number] + places[place], row_id, known) for place, row_id, known in made.held]
        self.traits.replace(self.moved, moved)
        for _, row_id, known in sorted(self._held, key=lambda held: held[0]):  # stable: what a row is known by keeps its order
            self.own.add(HELDOUT, row_id, known)
        self._held.clear()

    def at(self, places: Iterable[int]) -> Iterator[tuple[int, Row]]:
        """Rows at some places, on their side of the split, in order."""
        moved = frozenset(self.moved.tolist())
        for place, candidate in self.staging.at(places):
            yield place, (held_out(candidate, self.labelled) if place in moved else candidate).row
