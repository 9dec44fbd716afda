"""What a run reports while it works: one stream of events, shown live on a terminal, as plain lines in a log, and kept in files.

``events.jsonl`` holds everything; ``metrics.jsonl`` only the numbers by step, for curves. stdout is never written to: it carries only
the artifact's reference.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from safework_cli.core.errors import InputError
from safework_cli.core.journal import open_journal, read_journal, write_line
from safework_cli.core.terminal import console, say

PLAIN_INTERVAL_SECONDS = 10.0
EVENTS, METRICS = "events.jsonl", "metrics.jsonl"
HEADLINES = (
    "loss", "reward", "reward_std", "correct", "search/reliability", "search/lambda", "refusal/harmful", "refusal/benign",
    "completions/mean_length", "groups/zero_variance", "entropy", "cpgd/drift", "grad_norm", "engine/logprob_gap", "learning_rate",
)  # fmt: skip
"""Numbers that people look at first, in this order; the files hold them all."""
SHOWN_METRICS = 12


class Display(Protocol):
    """A way to show events to people."""

    def phase_started(self, name: str, total: int | None) -> None: ...
    def advanced(self, name: str, done: int, total: int | None) -> None: ...
    def phase_ended(self, name: str, seconds: float, done: int) -> None: ...
    def metrics(self, step: int, values: dict[str, float]) -> None: ...
    def line(self, text: str, level: str) -> None: ...
    def close(self) -> None: ...


class Phase:
    """A part of a run with an optional total; ``advance`` is cheap enough to call for every item."""

    def __init__(self, progress: Progress, name: str, total: int | None):
        self._progress, self.name, self.total, self.done = progress, name, total, 0

    def advance(self, count: int = 1) -> None:
        self.done += count
        self._progress.display.advanced(self.name, self.done, self.total)


class Progress:
    """Writes events to the run folder and shows them.

    Args:
        folder: where ``events.jsonl`` and ``metrics.jsonl`` grow; a resumed run appends.
        display: see ``make_display``.
    """

    def __init__(self, folder: Path, display: Display):
        self.display = display
        self.metrics_path = folder / METRICS
        self._events, self._metrics = open_journal(folder / EVENTS), open_journal(self.metrics_path)

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[Phase]:
        """Marks a part of the run, timed."""
        started = time.monotonic()
        self.event("phase", name=name, total=total)
        self.display.phase_started(name, total)
        phase = Phase(self, name, total)
        try:
            yield phase
        finally:
            seconds = time.monotonic() - started
            self.event("phase_end", name=name, seconds=round(seconds, 3), done=phase.done)
            self.display.phase_ended(name, seconds, phase.done)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Numbers of one step. A step may be written several times (evaluation, resumed run): readers keep each number's last."""
        write_line(self._metrics, {"step": step, **values})
        self.display.metrics(step, values)

    def note(self, text: str) -> None:
        """A sentence that people should see."""
        self.event("note", text=text)
        self.display.line(text, "note")

    def warn(self, text: str) -> None:
        """A sentence that people must see."""
        self.event("warning", text=text)
        self.display.line(text, "warning")

    def event(self, kind: str, **values: Any) -> None:
        """Something for the record only."""
        write_line(self._events, {"time": round(time.time(), 3), "event": kind, **values})

    def close(self) -> None:
        self.display.close()
        self._events.close()
        self._metrics.close()


def read_metrics(path: Path, *, broken: list[InputError] | None = None) -> list[dict[str, Any]]:
    """Reads ``metrics.jsonl``: one record per step, with the last value written of each number; ``broken`` as in ``read_journal``, and
    also for records without a step."""
    by_step: dict[int, dict[str, Any]] = {}
    for record in read_journal(path, broken=broken):
        step = record.get("step")
        if not isinstance(step, int):
            failure = InputError(f"{path}: a record has no step", "the file was edited", "run again with --fresh")
            if broken is None:
                raise failure
            broken.append(failure)
            continue
        by_step.setdefault(step, {}).update(record)
    return [by_step[step] for step in sorted(by_step)]


def headlines(values: dict[str, float]) -> str:
    """The numbers of a step that a line has room for."""
    names = [name for name in HEADLINES if name in values] + [name for name in values if name not in HEADLINES]
    return "  ".join(f"{name} {format_value(values[name])}" for name in names[:SHOWN_METRICS])


def format_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


class QuietDisplay:
    """Shows warnings only."""

    def phase_started(self, name: str, total: int | None) -> None: ...
    def advanced(self, name: str, done: int, total: int | None) -> None: ...
    def phase_ended(self, name: str, seconds: float, done: int) -> None: ...
    def metrics(self, step: int, values: dict[str, float]) -> None: ...

    def line(self, text: str, level: str) -> None:
        if level == "warning":
            say(f"warning: {text}")

    def close(self) -> None: ...


class PlainDisplay(QuietDisplay):
    """Plain lines for a log file: phases as they begin and end, progress every few seconds."""

    def __init__(self) -> None:
        self._last = 0.0

    def phase_started(self, name: str, total: int | None) -> None:
        self._say(f"{name}" + (f" ({total})" if total else "") + " …")

    def advanced(self, name: str, done: int, total: int | None) -> None:
        if time.monotonic() - self._last >= PLAIN_INTERVAL_SECONDS:
            self._say(f"{name}: {done}" + (f" of {total}" if total else ""))

    def phase_ended(self, name: str, seconds: float, done: int) -> None:
        self._say(f"{name}: done in {seconds:.1f} s")

    def metrics(self, step: int, values: dict[str, float]) -> None:
        if time.monotonic() - self._last >= PLAIN_INTERVAL_SECONDS:
            self._say(f"step {step}: {headlines(values)}")

    def line(self, text: str, level: str) -> None:
        self._say(text if level == "note" else f"{level}: {text}")

    def _say(self, text: str) -> None:
        self._last = time.monotonic()
        say(text)


class RichDisplay:
    """A live display on a terminal: a bar for each running phase and the last numbers under it."""

    def __init__(self) -> None:
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._console = console(stderr=True)
        description = TextColumn("{task.description}", markup=False)
        self._bars = Bars(SpinnerColumn(), description, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._numbers: tuple[int, dict[str, float]] | None = None
        self._tasks: dict[str, Any] = {}
        self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4, transient=True)
        self._live.start()

    def _render(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        if self._numbers is None:
            return self._bars
        step, values = self._numbers
        return Group(self._bars, Text(f"  step {step}  {headlines(values)}", style="dim"))

    def phase_started(self, name: str, total: int | None) -> None:
        self._tasks[name] = self._bars.add_task(name, total=total)

    def advanced(self, name: str, done: int, total: int | None) -> None:
        if name in self._tasks:
            self._bars.update(self._tasks[name], completed=done)

    def phase_ended(self, name: str, seconds: float, done: int) -> None:
        if name in self._tasks:
            self._bars.remove_task(self._tasks.pop(name))
        self._numbers = None
        self.line(f"{name} · {seconds:.1f} s", "done")

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self._numbers = (step, values)

    def line(self, text: str, level: str) -> None:
        from rich.text import Text

        styles = {"warning": "yellow", "done": "green dim", "note": ""}
        self._console.print(Text(f"warning: {text}" if level == "warning" else text, style=styles.get(level, "")))

    def close(self) -> None:
        self._live.stop()


def make_display(*, quiet: bool) -> Display:
    """Live on a terminal, plain lines otherwise, only warnings when quiet."""
    if quiet:
        return QuietDisplay()
    return RichDisplay() if sys.stderr.isatty() else PlainDisplay()
