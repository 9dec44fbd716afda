"""Kept rows on their way to Parquet: written batch by batch, and counted for the card and the manifest."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from safework_cli.core.artifacts.manifest import HELDOUT
from safework_cli.data.row import SPLITS, Row, arrow_schema
from safework_data.build.traits import digest64

ROW_GROUP_ROWS = 10_000
ROW_GROUP_BYTES = 64 * 2**20


@dataclass(slots=True)
class Part:
    """The rows of one split of one subset, counted."""

    subset: str
    split: str
    rows: int = 0
    replies: int = 0
    characters: int = 0
    counted: dict[str, Counter[str]] = field(default_factory=lambda: {"task": Counter(), "language": Counter(), "category": Counter()})
    _groups: array[int] = field(default_factory=lambda: array("Q"))

    @classmethod
    def of(cls, subset: str, split: str, rows: Iterable[Row]) -> Part:
        """These rows, counted."""
        part = cls(subset, split)
        for row in rows:
            part.add(row)
        return part

    def add(self, row: Row) -> None:
        self.rows += 1
        self.replies += row.reply is not None
        self.characters += sum(len(message["content"]) for message in row.messages)
        self.counted["task"][row.task] += 1
        self.counted["language"][str(row.meta.get("language", ""))] += 1
        self.counted["category"][row.category or "(none)"] += 1
        self._groups.append(digest64(row.group))

    def extend(self, other: Part) -> None:
        """Counts what another part has counted."""
        self.rows += other.rows
        self.replies += other.replies
        self.characters += other.characters
        for name, counter in other.counted.items():
            self.counted[name].update(counter)
        self._groups.extend(other._groups)

    @property
    def groups(self) -> int:
        return len(np.unique(np.frombuffer(self._groups, dtype=np.uint64))) if self.rows else 0


class Output:
    """Writes ``<subset>/<split>.parquet`` below a folder, a row group at a time."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._parts: dict[tuple[str, str], Part] = {}
        self._writers: dict[tuple[str, str], pq.ParquetWriter] = {}
        self._waiting: dict[tuple[str, str], list[pa.RecordBatch]] = {}

    def __enter__(self) -> Output:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for key in list(self._writers):
            if kind is None:
                self._flush(key)
            self._writers.pop(key).close()

    def add(self, rows: pa.RecordBatch, part: Part) -> None:
        """Adds rows of one part, and what was counted of them."""
        key = part.subset, part.split
        if key not in self._parts:
            self._parts[key], self._waiting[key] = Part(*key), []
            (self.folder / key[0]).mkdir(exist_ok=True)
            self._writers[key] = pq.ParquetWriter(self.folder / key[0] / f"{key[1]}.parquet", arrow_schema())
        self._parts[key].extend(part)
        self._waiting[key].append(rows)
        waiting = self._waiting[key]
        if sum(map(len, waiting)) >= ROW_GROUP_ROWS or sum(batch.nbytes for batch in waiting) >= ROW_GROUP_BYTES:
            self._flush(key)

    @property
    def parts(self) -> list[Part]:
        """In the order of their first rows, what is held out after the rest, and a subset's training split before its test split."""
        subsets = list(dict.fromkeys(subset for subset, _ in sorted(self._parts, key=lambda key: key[0] == HELDOUT)))
        return [self._parts[subset, split] for subset in subsets for split in SPLITS if (subset, split) in self._parts]

    def of_subset(self, subset: str) -> int:
        return sum(part.rows for part in self._parts.values() if part.subset == subset)

    def _flush(self, key: tuple[str, str]) -> None:
        if self._waiting[key]:
            self._writers[key].write_table(pa.Table.from_batches(self._waiting[key]))
            self._waiting[key] = []


def written(rows: Iterable[Row]) -> pa.RecordBatch:
    """Rows as the dataset's files hold them."""
    return pa.RecordBatch.from_pylist([row.to_record() for row in rows], schema=arrow_schema())


def by_subset(parts: list[Part]) -> dict[str, list[Part]]:
    """Subset → its parts."""
    found: dict[str, list[Part]] = {}
    for part in parts:
        found.setdefault(part.subset, []).append(part)
    return found


def total(parts: list[Part], what: str) -> Counter[str]:
    """One of the counts over several parts."""
    return sum((part.counted[what] for part in parts), Counter())


def languages(parts: list[Part]) -> Iterator[str]:
    yield from sorted(set(total(parts, "language")) - {""})
