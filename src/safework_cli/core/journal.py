"""Append-only files of JSON lines, of which a kill can truncate only the last line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TextIO

from safework_cli.core.errors import InputError


def read_journal(path: Path, *, broken: list[InputError] | None = None) -> list[dict[str, Any]]:
    """The records of a journal in order, without a last line that a kill truncated; empty where the file is missing.

    Args:
        broken: takes the errors of lines that are not JSON objects and of a file that cannot be read, for a reader who can do without.

    Raises:
        InputError: another line is not a JSON object, and ``broken`` is not given: no kill does that, and a run
            that resumes needs every line.
    """
    if not path.exists():
        return []
    try:
        content = path.read_bytes()
    except OSError as error:
        if broken is None:
            raise
        broken.append(InputError(f"{path} cannot be read", str(error.strerror), "check its permissions and the disk"))
        return []
    *whole, last = content.split(b"\n")
    records = []
    for number, line in enumerate(whole, 1):
        try:
            records.append(_record(line))
        except ValueError as error:
            why = "the file was edited, or the disk is failing"
            failure = InputError(f"{path}: line {number} is not a record ({error})", why, "run again with --fresh")
            if broken is None:
                raise failure from None
            broken.append(failure)
    return [*records, _record(last)] if _is_record(last) else records


def open_journal(path: Path) -> TextIO:
    """Opens a journal to append lines to. A truncated last line is removed, so that the next record starts on its own line."""
    if path.exists():
        content = path.read_bytes()
        tail = content.rpartition(b"\n")[2]
        if tail:
            with path.open("r+b") as handle:
                handle.truncate(len(content) - len(tail))
                if _is_record(tail):  # whole but for its line feed
                    handle.seek(0, 2)
                    handle.write(tail + b"\n")
    # a lone surrogate becomes \udXXX, which is how JSON spells it
    return path.open("a", encoding="utf-8", errors="backslashreplace", newline="\n")


def _record(line: bytes) -> dict[str, Any]:
    """A line's JSON object. Raises ValueError where it is none."""
    try:
        record = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError(f"a {type(record).__name__}, not an object")
    return record


def _is_record(line: bytes) -> bool:
    try:
        _record(line)
    except ValueError:
        return False
    return True


def write_line(handle: TextIO, record: dict[str, Any]) -> None:
    """Writes one record and flushes it to the operating system: a killed process loses at most the line it was writing.

    Raises:
        TypeError: the record holds bytes, which JSON has no form for: they would be read back as the text of a Python literal.
    """
    handle.write(json.dumps(record, ensure_ascii=False, default=_text) + "\n")
    handle.flush()


def _text(value: Any) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        raise TypeError("a journal holds text, and this record has bytes")
    return str(value)
