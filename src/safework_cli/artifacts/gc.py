"""What may be deleted from a store, and deleting it."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from safework_cli.artifacts.manifest import Artifact
from safework_cli.artifacts.store import Store
from safework_cli.forks import is_held

DAY_SECONDS = 86400


@dataclass(slots=True)
class Garbage:
    """Something that may go: an artifact, or a folder."""

    label: str
    size: int
    path: Path
    artifact: Artifact | None = None


def garbage(store: Store, *, keep: int, runs_days: float, with_ancestors: bool) -> list[Garbage]:
    """Lists old versions (the newest ``keep`` of each name, pinned ones, and all that they descend from, stay), run folders that no
    process holds and that were not touched for ``runs_days``, and leftovers of processes that died while committing."""
    everything = store.list()
    by_name: dict[tuple[str, str], list[Artifact]] = {}
    for artifact in everything:
        by_name.setdefault((artifact.kind, artifact.name), []).append(artifact)
    kept = {a.path for versions in by_name.values() for a in sorted(versions, key=lambda a: a.manifest.version)[-keep:]}
    kept |= {a.path for a in everything if a.manifest.pinned}
    if not with_ancestors:
        for artifact in everything:
            if artifact.path in kept:
                kept |= {parent.path for parent in store.lineage(artifact).values() if parent is not None}
    found = [Garbage(a.ref, sum(f.size for f in a.manifest.files), a.path, a) for a in everything if a.path not in kept]
    found += [Garbage(f"run {path.name}", _size(path), path) for path in _folders(store.runs) if _abandoned(path, runs_days)]
    found += [Garbage(f"leftover {path.name}", _size(path), path) for path in _folders(store.root / ".staging") if not _alive(path)]
    return found


def collect(store: Store, items: list[Garbage]) -> None:
    """Deletes what ``garbage`` listed."""
    for item in items:
        if item.artifact is not None:
            store.remove(item.artifact)
        else:
            shutil.rmtree(item.path)


def _folders(parent: Path) -> list[Path]:
    return sorted(p for p in parent.iterdir() if p.is_dir()) if parent.is_dir() else []


def _abandoned(run: Path, days: float) -> bool:
    newest = max((p.stat().st_mtime for p in run.rglob("*")), default=run.stat().st_mtime)
    return time.time() - newest >= days * DAY_SECONDS and not is_held(run)


def _alive(staging: Path) -> bool:
    """Whether the process that a staging folder is named after still runs here."""
    try:
        os.kill(int(staging.name.split("-")[0]), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
