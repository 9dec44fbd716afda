"""Run folders: who works in one, what was asked of its run, and how one is removed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from safework_cli.core.artifacts.manifest import Artifact
from safework_cli.core.artifacts.staging import is_locked, is_recent, this_host
from safework_cli.core.progress import EVENTS, METRICS

REQUEST = "request.json"
"""What was asked of a run: stage, settings, inputs, and who works on it."""
SUPERSEDED = "superseded"
"""In the request of a run that was begun with --fresh: what runs of the same request had made before, which does not end this one."""
LOCK = "lock"
WAIT_SECONDS = 2
"""Other processes take a lock for a moment, to test whether it is held."""


def run_folder_name(stage: str, fingerprint: str) -> str:
    """What the folder of a run is called: ``rl-m3-0123456789abcdef``."""
    return f"{stage.replace(' ', '-')}-{fingerprint[:16]}"


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Makes a run folder and holds its lock. Raises Timeout where another process does, OSError where the folder cannot be made."""
    while True:
        run.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(run / LOCK, timeout=WAIT_SECONDS).acquire()
        except FileNotFoundError:
            continue  # deleted between the two lines
        break
    with lock:
        yield
    with suppress(OSError):  # NFS keeps a file for an open lock that was deleted
        if not (run / LOCK).exists():
            run.rmdir()


def is_running(run: Path) -> bool:
    """Whether a process works in a run folder now: here, or, as far as can be known, on another host."""
    if is_locked(run / LOCK):
        return True
    request = read_request(run) or {}
    return request.get("host", this_host()) != this_host() and is_recent(run)


def read_request(run: Path) -> dict[str, Any] | None:
    """What a run was asked for; None where it was killed before that was written, or the file is damaged."""
    try:
        request = json.loads((run / REQUEST).read_bytes())
    except (OSError, ValueError):
        return None
    return request if isinstance(request, dict) and isinstance(request.get("inputs"), dict) else None


def version_key(artifact: Artifact) -> str:
    """Names one version for good: the number of one that gc deleted is given again."""
    return f"{artifact.ref} {artifact.manifest.created}"


def ends(artifact: Artifact, request: Mapping[str, Any]) -> bool:
    """Whether an artifact is what a run folder with this request was to make."""
    return artifact.manifest.fingerprint == request.get("fingerprint") and version_key(artifact) not in (request.get(SUPERSEDED) or ())


def journal_bytes(run: Path) -> int:
    """How much the journals of a run hold: of a stage that takes no steps, what is kept when it stops."""
    found = 0
    for path in run.rglob("*.jsonl") if run.is_dir() else ():
        if path.name not in (EVENTS, METRICS) and path.relative_to(run).parts[0] not in ("output", "ranks"):
            found += path.stat().st_size
    return found


def run_folders(runs: Path) -> list[Path]:
    """Every run folder, by name."""
    return sorted(path for path in runs.iterdir() if path.is_dir()) if runs.is_dir() else []


def move_to_trash(run: Path, trash: Path | None) -> bool:
    """Moves what is in a run folder into ``trash`` (or deletes it, where there is none) and removes the folder, under its lock. False where
    another process holds it.

    The folder and its lock are removed last: a process that waits for the lock finds it deleted, and makes a new folder.
    """
    try:
        lock = FileLock(run / LOCK, timeout=0).acquire()
    except (Timeout, FileNotFoundError):
        return False
    with lock:
        empty(run, None if trash is None else trash / run.name)
    return True


def clear(run: Path) -> None:
    """Removes a run folder, unless a process works in it or the store may not be written to."""
    with suppress(OSError), FileLock(run / LOCK, timeout=0):  # Timeout is an OSError
        empty(run)


def empty(run: Path, trash: Path | None = None) -> None:
    """Removes a run folder whose lock the caller holds.

    Args:
        trash: where its contents are moved, to be deleted later; deleted at once where none is given.
    """
    for path in [run / REQUEST, *run.iterdir()]:  # the request first: without it the rest does not count as an unfinished run
        if path.name == LOCK or not path.exists():
            continue
        if trash is not None:
            trash.mkdir(parents=True, exist_ok=True)
            path.rename(trash / path.name)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    (run / LOCK).unlink(missing_ok=True)
    with suppress(OSError):
        run.rmdir()
