"""Sound rows on their way to the dataset, on disk: a build keeps what it compares in memory, never what it has read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc

from safework_cli.rows import Row, arrow_schema
from safework_data.drops import Candidate

BATCH_ROWS = 4096
BATCH_BYTES = 64 * 2**20
"""A batch ends at either bound: rows with pictures are large."""
_OWN = (("_subset", pa.string()), ("_source", pa.string()), ("_split_already", pa.bool_()))


class Staging:
    """Rows in the order in which they came, with what the build knows of each. Written once, then read as often as needed."""

    def __init__(self, path: Path):
        self.path = path
        self.count = 0
        self._schema = pa.schema([*arrow_schema(), *(pa.field(name, kind) for name, kind in _OWN)])
        self._writer: Any = pa.ipc.new_file(str(path), self._schema, options=pa.ipc.IpcWriteOptions(compression="lz4"))
        self._waiting: list[dict[str, Any]] = []
        self._bytes = 0

    def add(self, candidate: Candidate) -> None:
        row = candidate.row
        record = row.to_record()
        record |= {"_subset": candidate.subset, "_source": candidate.source, "_split_already": candidate.split_already}
        self._waiting.append(record)
        self._bytes += sum(len(message["content"]) for message in row.messages) + sum(len(image["bytes"] or b"") for image in row.images)
        self.count += 1
        if len(self._waiting) >= BATCH_ROWS or self._bytes >= BATCH_BYTES:
            self._flush()

    def close(self) -> None:
        """Ends the writing; reading is possible from then on."""
        self._flush()
        self._writer.close()

    def __iter__(self) -> Iterator[Candidate]:
        with pa.memory_map(str(self.path)) as source:
            reader = pa.ipc.open_file(source)
            for number in range(reader.num_record_batches):
                for record in reader.get_batch(number).to_pylist():
                    subset, name, split_already = (record.pop(key) for key, _ in _OWN)
                    yield Candidate(Row.from_record(record), subset, name, split_already)

    def ids(self, places: Iterable[int]) -> dict[int, str]:
        """The ids of the rows at some places, read without the rest of them."""
        wanted = sorted(set(places))
        found: dict[int, str] = {}
        with pa.memory_map(str(self.path)) as source:
            reader = pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=[self._schema.get_field_index("id")]))
            start, upcoming = 0, iter(wanted)
            place = next(upcoming, None)
            for number in range(reader.num_record_batches):
                column = reader.get_batch(number).column(0)
                while place is not None and place < start + len(column):
                    found[place] = column[place - start].as_py()
                    place = next(upcoming, None)
                start += len(column)
        return found

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._waiting, schema=self._schema))
            self._waiting, self._bytes = [], 0
