"""What the first process of a run shows, on the display of the command that started it: its own output goes to a log file."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, TextIO

from safework_cli.core.journal import write_line
from safework_cli.core.progress import Display

FILE = "display.jsonl"
CALLS = ("phase_started", "advanced", "phase_ended", "metrics", "line")
INTERVAL_SECONDS = 0.2
"""Between two reports of how far a phase is."""


class RelayDisplay:
    """A display that writes down what it is to show."""

    def __init__(self, path: Path):
        self._out: TextIO = path.open("w", encoding="utf-8", errors="backslashreplace")
        self._last = 0.0

    def phase_started(self, name: str, total: int | None) -> None:
        self._write("phase_started", name, total)

    def advanced(self, name: str, done: int, total: int | None) -> None:
        if done == total or time.monotonic() - self._last >= INTERVAL_SECONDS:
            self._last = time.monotonic()
            self._write("advanced", name, done, total)

    def phase_ended(self, name: str, seconds: float, done: int) -> None:
        self._write("phase_ended", name, seconds, done)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self._write("metrics", step, values)

    def line(self, text: str, level: str) -> None:
        self._write("line", text, level)

    def close(self) -> None:
        self._out.close()

    def _write(self, call: str, *arguments: Any) -> None:
        write_line(self._out, {"call": call, "arguments": arguments})


class Relay:
    """Shows on a display what another process's ``RelayDisplay`` writes.

    Args:
        path: the file, which need not be there yet.
    """

    def __init__(self, path: Path, display: Display):
        self._path, self._display = path, display
        self._at = 0

    def pump(self) -> None:
        """Shows what has been written since the last call; a line that is not complete yet waits, one that cannot be read is left out."""
        if not self._path.exists():
            return
        with self._path.open("rb") as handle:
            handle.seek(self._at)
            whole = handle.read().rpartition(b"\n")[0]
        if not whole:
            return
        self._at += len(whole) + 1
        for line in whole.split(b"\n"):
            try:
                record = json.loads(line)
                call, arguments = record["call"], record["arguments"]
            except (ValueError, KeyError, TypeError):
                continue  # a network file system may show zeros where another node's bytes are to come: that line is not shown
            if call in CALLS:
                getattr(self._display, call)(*arguments)
