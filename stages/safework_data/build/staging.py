"""Sound rows on their way to the dataset, on disk: a build keeps what it compares in memory, never what it has read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from safework_cli.data.row import Row, arrow_schema
from safework_data.build.drops import Candidate

_OWN = (("_subset", pa.string()), ("_source", pa.string()))


def staged_schema() -> pa.Schema:
    """A row's own columns, and what the build knows of it."""
    return pa.schema([*arrow_schema(), *(pa.field(name, kind) for name, kind in _OWN)], metadata=arrow_schema().metadata)


def as_batch(candidates: Sequence[Candidate]) -> pa.RecordBatch:
    """Rows as they are staged."""
    records = [c.row.to_record() | {"_subset": c.subset, "_source": c.source} for c in candidates]
    return pa.RecordBatch.from_pylist(records, schema=staged_schema())


def from_batch(batch: pa.RecordBatch) -> list[Candidate]:
    """The inverse of ``as_batch``."""
    found = []
    for record in batch.to_pylist():
        subset, name = (record.pop(key) for key, _ in _OWN)
        found.append(Candidate(Row.from_record(record), subset, name))
    return found


def without_own(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The rows without what the build knows of them."""
    return batch.select(arrow_schema().names).replace_schema_metadata(arrow_schema().metadata)


class Staging:
    """Batches of rows in the order in which they came. Written once, then read as often as needed."""

    def __init__(self, path: Path):
        self.path = path
        self._writer: Any = pa.ipc.new_file(str(path), staged_schema(), options=pa.ipc.IpcWriteOptions(compression="lz4"))
        self._ends: list[int] = []

    @property
    def count(self) -> int:
        """Rows."""
        return self._ends[-1] if self._ends else 0

    @property
    def starts(self) -> list[int]:
        """The place of each batch's first row."""
        return [0, *self._ends[:-1]] if self._ends else []

    def add(self, batch: pa.RecordBatch) -> None:
        """Adds rows; a batch of none is left out."""
        if len(batch):
            self._writer.write_batch(batch)
            self._ends.append(self.count + len(batch))

    def close(self) -> None:
        """Ends the writing; reading is possible from then on."""
        self._writer.close()

    def by_batch(self, places: Iterable[int] | NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """(a batch's number, places in it) of rows at some places, in order; batches without any are left out."""
        wanted = np.array(sorted(set(places)), dtype=np.int64)
        for number, (start, end) in enumerate(zip(self.starts, self._ends, strict=True)):
            here = wanted[slice(*np.searchsorted(wanted, (start, end)))]
            if len(here):
                yield number, here - start

    def at(self, places: Iterable[int]) -> Iterator[tuple[int, Candidate]]:
        """Rows at some places, in order; no others are made."""
        starts = self.starts
        with opened(self.path) as reader:
            for number, here in self.by_batch(places):
                rows = from_batch(reader.get_batch(number).take(pa.array(here)))
                yield from zip((here + starts[number]).tolist(), rows, strict=True)

    def ids(self, places: Iterable[int]) -> dict[int, str]:
        """The ids of the rows at some places, read without the rest of them."""
        ids: dict[int, str] = {}
        starts = self.starts
        with opened(self.path, ["id"]) as reader:
            for number, here in self.by_batch(places):
                column = reader.get_batch(number).column(0).take(pa.array(here))
                ids |= zip((here + starts[number]).tolist(), column.to_pylist(), strict=True)
        return ids


@contextmanager
def opened(path: Path, columns: Sequence[str] | None = None) -> Iterator[Any]:
    """A reader of staged batches by their number."""
    fields = [staged_schema().get_field_index(name) for name in columns] if columns else None
    with pa.memory_map(str(path)) as source:
        yield pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=fields))
