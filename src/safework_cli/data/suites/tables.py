"""Reads tables as people publish them (CSV, JSON Lines, JSON, Parquet), strictly: what is broken is named by file and line.

Nothing is repaired here: a file that is half read would end in a run that looks whole.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from safework_cli.core.errors import ConfigError, InputError

MAX_LINE_BYTES = 100 * 2**20
"""A longer line is a broken file (a missing newline, an archive under a wrong name), and would take memory without end."""
MAX_EXPANSION = 200
"""A compressed file that grows by more is a bomb: text shrinks to a tenth, rarely to a fiftieth."""
FREE_EXPANSION_BYTES = 64 * 2**20
MAX_COLUMNS = 10_000
MAX_NESTING = 100
"""Lists and objects inside each other, in one value: deeper ones are no data, and would end the processes that pass rows on."""
FORMATS = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet"}
PARQUET_BATCH_ROWS = 32
"""Few: a kilobyte of Parquet may say one long text a million times, and a batch is unpacked as a whole."""


def format_of(path: Path, given: str | None = None) -> str:
    """Returns "csv", "jsonl", "json" or "parquet", also of a gzip file. Raises ConfigError where neither name nor ``given`` says which."""
    plain = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    found = given or FORMATS.get(plain.suffix.lower())
    if found is None:
        why = f"known formats: {', '.join(sorted(set(FORMATS.values())))}"
        raise ConfigError(f"{path}: the name does not say what format the file has", why, "add format: jsonl (or another)")
    return found


def read_table(path: Path, format: str | None = None) -> Iterator[dict[str, Any]]:
    """Yields one dict a row, in file order, without holding the file in memory (a JSON array excepted).

    Raises:
        InputError: the file is missing or unreadable, not UTF-8, has a line over 100 MB, a broken row or a line that does not parse.
        ConfigError: the format is unknown.
    """
    readers = {"csv": _read_csv, "jsonl": _read_jsonl, "json": _read_json, "parquet": _read_parquet}
    kind = format_of(path, format)
    if not path.is_file():
        raise InputError(f"the file {path} does not exist" if not path.exists() else f"{path} is not a file", "", f"ls {path.parent}")
    try:
        yield from readers[kind](path)
    except OSError as error:
        raise InputError(f"{path} cannot be read", error.strerror or str(error), f"ls -l {path}") from None


def _lines(path: Path) -> Iterator[str]:
    """Lines with their endings, decoded one by one so that a wrong byte is named by its line."""
    with _opened(path) as handle:
        for number, line in enumerate(_guarded(handle, path), start=1):
            if len(line) > MAX_LINE_BYTES:
                raise InputError(
                    f"{path}, line {number}: longer than {MAX_LINE_BYTES // 2**20} MB",
                    "a line of this length is a broken file",
                    "check that the file is what its name says, and that rows end in a newline",
                )
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}, line {number}: not UTF-8",
                    f"byte 0x{line[error.start]:02x} at position {error.start + 1} of the line",
                    f"iconv -f GB18030 -t UTF-8 '{path}' > fixed{path.suffix}    (with the encoding that the file has)",
                ) from None
            yield text.removeprefix("\ufeff") if number == 1 else text


def _opened(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix.lower() == ".gz" else path.open("rb")


def _guarded(handle: BinaryIO, path: Path) -> Iterator[bytes]:
    """Lines of a file, none much longer than the limit; of a compressed one only as many as an honest file of its size can hold."""
    most = max(FREE_EXPANSION_BYTES, MAX_EXPANSION * path.stat().st_size) if isinstance(handle, gzip.GzipFile) else None
    read = 0
    try:
        while line := handle.readline(MAX_LINE_BYTES + 1):
            read += len(line)
            if most is not None and read > most:
                why = f"{path.stat().st_size:,} bytes have grown to {read:,}: more than {MAX_EXPANSION} times"
                raise InputError(f"{path}: unpacks to far more than text does", why, "if it is sound, unpack it yourself: gunzip -k")
            yield line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: not a whole gzip file", str(error), "copy it again, or check it: gzip -t") from None


def _read_csv(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(MAX_LINE_BYTES)  # the library's own limit of 128 kB is shorter than a long document
    reader = csv.reader(_lines(path), strict=True)
    header: list[str] | None = None
    while True:
        started = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            why = "a quoted field is never closed" if "unexpected end" in str(error) else str(error)
            raise InputError(f"{path}, line {started}: broken CSV row", why, f"sed -n '{started}p' '{path}'") from None
        if not fields:  # an empty line
            continue
        if header is None:
            header = fields
            _refuse_columns(path, len(header))
            twice = next((name for name, count in Counter(header).items() if count > 1), None)
            if twice is not None:
                why = "which one is meant is not guessed"
                raise InputError(f"{path}: the header names column '{twice}' twice", why, "rename one of the two")
            continue
        if len(fields) != len(header):
            raise InputError(
                f"{path}, line {started}: broken CSV row",
                f"it has {len(fields)} fields, the header names {len(header)}",
                f"sed -n '{started}p' '{path}'",
            )
        yield dict(zip(header, fields, strict=True))


def _refuse_columns(path: Path, count: int) -> None:
    if count > MAX_COLUMNS:
        why = f"{MAX_COLUMNS:,} are read at most"
        raise InputError(f"{path}: {count:,} columns", why, "is it a matrix of numbers? Keep the columns that the recipe names")


def _refuse_nesting(value: Any, text: str | None, where: str) -> None:
    """Refuses a value that is nested too deep. (Most texts do not hold so many brackets, and are not looked at further.)"""
    if text is not None and text.count("[") + text.count("{") <= MAX_NESTING:
        return
    level = [value]
    for _ in range(MAX_NESTING):
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item) if isinstance(inner, dict | list)]
        if not level:
            return
    raise InputError(f"{where}: nested deeper than {MAX_NESTING}", "no row is written so", "check what wrote the file")


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            yield _object(line, f"{path}, line {number}")


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        why = f"{error.msg} at column {error.colno}"
        raise InputError(f"{where}: not JSON", why, "write one JSON object a line, or set format:") from None
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, brackets nested ten thousand deep
        raise InputError(f"{where}: not usable JSON", str(error)) from None
    _refuse_nesting(value, text, where)
    if not isinstance(value, dict):
        what = f"{where}: a JSON {type(value).__name__}, not an object"
        raise InputError(what, "", 'write one JSON object a line, such as {"prompt": "…"}')
    return value


def _read_json(path: Path) -> Iterator[dict[str, Any]]:
    value = load_json(path)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InputError(f"{path}: not an array of JSON objects", "", "if it holds one object a line, set format: jsonl")
    for number, item in enumerate(value, 1):
        _refuse_nesting(item, None, f"{path}, object {number}")
    yield from value


def load_json(path: Path) -> Any:
    """Reads one JSON document of any shape. Raises InputError as ``read_table`` does."""
    if not path.is_file():
        raise InputError(f"the file {path} does not exist", "", f"ls {path.parent}")
    text = "".join(_lines(path))
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; if it holds one object a line, set format: jsonl" if error.msg == "Extra data" else ""
        raise InputError(f"{path}, line {error.lineno}: not JSON", f"{error.msg} at column {error.colno}{hint}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not usable JSON", str(error)) from None


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            _refuse_columns(path, len(table.schema_arrow))
            short = [field.name for field in table.schema_arrow if pa.types.is_float32(field.type) or pa.types.is_float16(field.type)]
            for batch in table.iter_batches(batch_size=PARQUET_BATCH_ROWS):
                records = batch.to_pylist()
                for name in short:  # 0.1 was written, and not 0.10000000149011612
                    for record, number in zip(records, batch.column(name).to_numpy(zero_copy_only=False), strict=True):
                        record[name] = record[name] if record[name] is None else float(str(number))
                yield from records
    except pa.ArrowException as error:
        raise InputError(f"{path}: not a readable Parquet file", str(error).splitlines()[0], "check that it was copied whole") from None
    except UnicodeDecodeError as error:
        do = "write the column's text as UTF-8, or as binary where it is none"
        raise InputError(f"{path}: a text that is not UTF-8", f"{error.reason}: {error.object[:40]!r}", do) from None
