"""What the runs of a store are doing, read from their folders: which are running, stopped, failed or done, and how far they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from math import isfinite
from pathlib import Path
from stat import S_ISREG
from typing import Any, Literal

from safework_cli.core.artifacts import Artifact, Store
from safework_cli.core.artifacts.manifest import RECORD
from safework_cli.core.artifacts.staging import below, last_written
from safework_cli.core.errors import InputError, nearest
from safework_cli.core.journal import read_journal
from safework_cli.core.progress import EVENTS, METRICS, read_metrics
from safework_cli.core.resume import checkpoint_of
from safework_cli.core.runs import LOCK, REQUEST, SUPERSEDED, ends, is_running, read_request, run_folder_name, run_folders

State = Literal["running", "stopped", "failed", "done"]
STOPS = ("Interrupted", "RunAgain")
"""Errors that end a run without a failure: Ctrl-C and SIGTERM."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a store.

    Attributes:
        name: of its folder while it is unfinished ("sft-0123456789abcdef").
        folder: where its events and metrics are: the run folder, or the record inside the artifact that it made.
        detail: the process of a running one, the first line of the error of a failed one, the artifact of one that is done.
        step: the last step that was logged; None where nothing was.
        written: when anything in the folder was last written to, in seconds of the epoch.
    """

    name: str
    stage: str
    fingerprint: str
    folder: Path
    state: State
    detail: str
    step: int | None
    written: float
    artifact: Artifact | None = None

    def request(self) -> dict[str, Any]:
        """What was asked: settings and inputs."""
        if self.artifact is not None:
            manifest = self.artifact.manifest
            return {"config": manifest.config, "inputs": {key: entry.ref for key, entry in manifest.inputs.items()}}
        request = read_request(self.folder) or {}
        return {"config": request.get("config", {}), "inputs": request.get("inputs", {})}

    def events(self, broken: list[InputError] | None = None) -> list[dict[str, Any]]:
        return read_journal(self.folder / EVENTS, broken=broken)

    def metrics(self) -> list[dict[str, Any]]:
        return read_metrics(self.folder / METRICS, broken=[])


def runs_of(store: Store, *, finished: bool = True) -> list[Run]:
    """The runs of a store, the one that was last written to last.

    Args:
        finished: with those whose artifact is in the store.
    """
    done = [_finished(artifact) for artifact in store.list(damaged=[]) if (artifact.path / RECORD / EVENTS).exists()]
    unfinished = [run for folder in run_folders(store.runs) if (run := _unfinished(folder))]
    unfinished = [run for run in unfinished if run.state == "running" or not _was_made(run, done)]  # not killed after the commit
    return sorted([*unfinished, *(done if finished else [])], key=lambda run: (run.written, run.name))


def _was_made(run: Run, done: Sequence[Run]) -> bool:
    """Whether the artifact of an unfinished run's folder is in the store."""
    made = [other.artifact for other in done if other.fingerprint == run.fingerprint and other.artifact is not None]
    request = (read_request(run.folder) or {}) if made else {}
    return any(ends(artifact, request) for artifact in made)


def find_run(store: Store, name: str | None) -> Run:
    """A run by its name, the beginning of it, or the reference of the artifact that it made; the newest where none is given.

    Raises:
        InputError: there is none, or several names begin so.
    """
    if name is not None and not name.strip():
        raise InputError("an empty name", "the command before this one printed nothing: it failed", "leave it out for the newest run")
    runs = runs_of(store)
    if not runs:
        raise InputError(f"no runs in {store.root}", "", "choose another store with --store or SAFEWORK_STORE")
    if name is None:
        return runs[-1]
    matches = [run for run in runs if name == run.name] or [run for run in runs if run.name.startswith(name)]
    if not matches and (made := [run for run in runs if run.artifact and name in _references(run.artifact)]):
        return made[-1]
    if not matches:
        near = nearest(name, [run.name for run in runs])
        raise InputError(f"no run '{name}' in {store.root}{near}", "", "safework runs ls")
    names = sorted({run.name for run in matches})
    if len(names) > 1:
        raise InputError(f"'{name}' is the beginning of {len(names)} runs", ", ".join(names), f"safework runs show {names[-1]}")
    return matches[-1]


def _references(artifact: Artifact) -> set[str]:
    names = {artifact.name, f"{artifact.kind}/{artifact.name}"}
    return names | {f"{name}@v{artifact.manifest.version}" for name in names}


def _unfinished(folder: Path) -> Run | None:
    """The run of a folder; None where it was removed in the meantime, or was killed before its request was written."""
    request = read_request(folder)
    if request is None:
        return None
    events = read_journal(folder / EVENTS, broken=[])
    last = events[-1] if events else {}
    state: State = "stopped"
    if is_running(folder):
        state, detail = "running", f"process {request.get('pid')} on {request.get('host')}"
    elif last.get("event") == "failed" and last.get("error") not in STOPS:
        state, detail = "failed", f"{last.get('error')}: {_first_line(str(last.get('text', '')))}"
    elif last.get("event") == "failed":
        detail = _first_line(str(last.get("text", "")))
    else:
        detail = f"killed: the same command {'without --fresh ' if SUPERSEDED in request else ''}resumes it"
    return Run(
        folder.name,
        str(request.get("stage", "")),
        str(request.get("fingerprint", "")),
        folder,
        state,
        detail,
        _step(folder),
        last_written(folder),
    )


def last_work(folder: Path) -> float:
    """When a run last wrote something of its own, in seconds of the epoch; 0 where it wrote nothing."""
    newest = 0.0
    for path in below(folder):
        with suppress(OSError):  # another process may be deleting it
            found = path.lstat()
            if path.name not in (LOCK, REQUEST) and S_ISREG(found.st_mode):
                newest = max(newest, found.st_mtime)
    return newest


def seconds_before(events: Sequence[Mapping[str, Any]]) -> float:
    """Seconds that the attempts before a run's last one took, each to what it wrote last. What a damaged event says counts for nothing."""
    starts = [number for number, event in enumerate(events) if event.get("event") == "started"]
    seconds = 0.0
    for begin, end in pairwise(starts):
        began, ended, next_began = (_number(events[place].get("time")) for place in (begin, end - 1, end))
        wrote = _number(events[end].get("written"))
        if began is not None and next_began is not None:
            seconds += max(0.0, min(max(ended or 0.0, wrote or 0.0), next_began) - began)
    return seconds


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and isfinite(value) else None


def _finished(artifact: Artifact) -> Run:
    manifest = artifact.manifest
    record = artifact.path / RECORD
    return Run(
        run_folder_name(manifest.stage, manifest.fingerprint),
        manifest.stage,
        manifest.fingerprint,
        record,
        "done",
        artifact.ref,
        _step(record),
        datetime.fromisoformat(manifest.created).timestamp(),
        artifact,
    )


def _step(folder: Path) -> int | None:
    """The last step that was logged, or that of the newest checkpoint."""
    metrics = read_metrics(folder / METRICS, broken=[])
    if metrics:
        return int(metrics[-1]["step"])
    checkpoint = checkpoint_of(folder)
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else None


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else ""


def _clock(time: Any) -> str:
    """A time of the epoch as a clock shows it; dashes where a damaged record has none."""
    try:
        return datetime.fromtimestamp(time).strftime("%H:%M:%S")
    except (TypeError, ValueError, OverflowError, OSError):
        return "--:--:--"


def _seconds(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, (int, float)) else "?"


def log_lines(events: list[dict[str, Any]]) -> Iterator[str]:
    """Events as the lines of a log. Python warnings of libraries are left out."""
    for event in events:
        kind = event.get("event")
        when = _clock(event.get("time"))
        if kind == "started":
            yield f"{when}  started by process {event.get('pid')} on {event.get('host')}"
        elif kind == "phase":
            total = f" ({event['total']})" if event.get("total") else ""
            yield f"{when}  {event.get('name')}{total} …"
        elif kind == "phase_end":
            yield f"{when}  {event.get('name')}: done in {_seconds(event.get('seconds'))} s"
        elif kind == "note":
            yield f"{when}  {event.get('text')}"
        elif kind == "warning":
            yield f"{when}  warning: {event.get('text')}"
        elif kind == "failed":
            yield f"{when}  {event.get('error')}: {event.get('text')}"
