"""What may be deleted from a store, and deleting it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safework_cli.core import runs
from safework_cli.core.artifacts.adapters import base_in_store
from safework_cli.core.artifacts.manifest import MANIFEST, Artifact
from safework_cli.core.artifacts.staging import below, is_locked, is_recent
from safework_cli.core.artifacts.store import GC_LOCK, Store
from safework_cli.core.errors import InputError, RunAgain
from safework_cli.core.launch.jobs import needed_by_jobs
from safework_cli.core.system_errors import FULL


@dataclass(slots=True)
class Garbage:
    """Something that may go: an artifact, a run folder, or a leftover file or folder."""

    label: str
    size: int
    path: Path
    artifact: Artifact | None = None


def garbage(store: Store, *, keep: int, runs_days: float, with_ancestors: bool, damaged: list[InputError] | None = None) -> list[Garbage]:
    """Lists what may go:

    - old versions: the newest ``keep`` of each name, pinned ones, what unfinished runs and submitted jobs need, and all that these descend
      from, stay; the base of an adapter that stays does so in any case;
    - run folders that no process holds, that no submitted job starts from, and that were not touched for ``runs_days``, or whose artifact
      is in the store;
    - leftovers of killed processes.

    Args:
        damaged: takes the errors of artifacts whose manifest is damaged; they stay, and so does what can still be read of their inputs.
    """
    damaged = [] if damaged is None else damaged
    everything = store.list(damaged=damaged)
    made = [a for a in everything if a.manifest.reuse]
    of_jobs, forked = needed_by_jobs(store)
    old_runs = [run for run in runs.run_folders(store.runs) if run.name not in forked and _is_over(run, runs_days, made)]
    by_name: dict[tuple[str, str], list[Artifact]] = {}
    for artifact in everything:
        by_name.setdefault((artifact.kind, artifact.name), []).append(artifact)
    kept = {a.path for versions in by_name.values() for a in sorted(versions, key=lambda a: a.manifest.version)[-keep:]}
    kept |= {a.path for a in everything if a.manifest.pinned}
    if not with_ancestors:
        for artifact in everything:
            if artifact.path in kept:
                kept |= {parent.path for parent in store.lineage(artifact).values() if parent is not None}
        kept |= _with_ancestors(store, _inputs_of_damaged(store, everything))
    for artifact in everything:
        if artifact.path in kept:
            kept |= _bases(store, artifact)
    kept |= needed_by_runs(store, without=old_runs) | _with_ancestors(store, of_jobs)
    real = {path.resolve() for path in kept}
    found = [Garbage(a.ref, sum(f.size for f in a.manifest.files), a.path, a) for a in everything if a.path.resolve() not in real]
    found += [Garbage(f"run {run.name}", _size(run), run) for run in old_runs]
    found += [Garbage(f"leftover {path.relative_to(store.root)}", _size(path), path) for path in _leftovers(store, everything, damaged)]
    return found


def needed_by_runs(store: Store, without: Iterable[Path] = ()) -> set[Path]:
    """The folders of the artifacts that running and unfinished runs read or will read again, with all that they descend from."""
    skipped = set(without)
    references: list[str] = []
    for run in runs.run_folders(store.runs):
        request = runs.read_request(run)
        if request is not None and run not in skipped:
            references += [str(reference) for reference in request["inputs"].values()]
    return _with_ancestors(store, references)


def collect(store: Store, items: Sequence[Garbage]) -> list[Garbage]:
    """Deletes what ``garbage`` listed, but for what is in use by now. Returns what was deleted.

    Everything is moved out of sight under the store's lock for this; the bytes are freed after it is let go of. Where the disk has no space
    for the folder that they are moved to, they are deleted where they are.

    Raises:
        RunAgain: another gc holds the lock for long.
        InputError: the store may not be written to.
    """
    bin_ = _bin(store)
    deleted = []
    try:
        with store.lock(GC_LOCK):
            of_jobs, forked = needed_by_jobs(store)
            kept = needed_by_runs(store, without=[i.path for i in items if i.path.parent == store.runs]) | _with_ancestors(store, of_jobs)
            needed = {path.resolve() for path in kept} | {(store.runs / name).resolve() for name in forked}
            for number, item in enumerate(items):
                with suppress(FileNotFoundError):  # another gc was here first
                    if item.path.resolve() in needed:
                        continue
                    if item.path.parent == store.runs:
                        if not runs.move_to_trash(item.path, bin_):
                            continue
                    else:
                        if bin_ is None:
                            _delete(item.path)
                        else:
                            item.path.rename(bin_ / str(number))
                        item.path.with_name(f"{item.path.name}.lock").unlink(missing_ok=True)  # of a staging folder
                    deleted.append(item)
    finally:
        if bin_ is not None:
            store.discard(bin_)
    return deleted


def _bin(store: Store) -> Path | None:
    """A folder for what is deleted; None where the disk is too full for one."""
    try:
        return store.staging()
    except RunAgain as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in FULL:
            return None
        raise


def _delete(path: Path) -> None:
    """Deletes a file or a folder where it is: an artifact's manifest first, without which no reader sees the rest."""
    if not path.is_dir() or path.is_symlink():
        path.unlink()
        return
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path)


def _bases(store: Store, artifact: Artifact) -> set[Path]:
    """The models without which an adapter cannot be loaded."""
    found: set[Path] = set()
    one: Artifact | None = artifact
    while one is not None and (one := base_in_store(store, one)) is not None:
        found.add(one.path)
    return found


def _with_ancestors(store: Store, references: Iterable[str]) -> set[Path]:
    found: set[Path] = set()
    for reference in references:
        artifact = store.ancestor(reference.split(":")[0] if not reference.startswith("hf:") else reference)
        if artifact is not None and artifact.path not in found:
            found |= {artifact.path} | {parent.path for parent in store.lineage(artifact).values() if parent is not None}
    return found


def _inputs_of_damaged(store: Store, whole: Sequence[Artifact]) -> list[str]:
    """The inputs that the damaged manifests still name: they may be repaired."""
    references = []
    for path in store.manifests() - {a.path / MANIFEST for a in whole}:
        with suppress(OSError, ValueError, AttributeError, TypeError, KeyError):
            references += [str(entry["ref"]) for entry in json.loads(path.read_bytes())["inputs"].values()]
    return references


def _is_over(run: Path, days: float, made: Sequence[Artifact]) -> bool:
    """Whether a run folder can be deleted: its artifact was made, or it was not resumed for a long time."""
    if runs.is_running(run):
        return False
    request = runs.read_request(run)
    return (request is not None and any(runs.ends(artifact, request) for artifact in made)) or not is_recent(run, days)


def _leftovers(store: Store, everything: Sequence[Artifact], damaged: Sequence[InputError]) -> list[Path]:
    found = [*store.left_behind()]
    for manifest in sorted(store.manifests()):
        kind, name = manifest.parts[-4:-2]
        if not is_locked(store.root / ".locks" / f"{kind}.{name}.lock"):
            with suppress(FileNotFoundError):  # another gc was here first
                found += list(manifest.parent.glob(f".{MANIFEST}.*.tmp"))
    records = store.root / ".verified"
    found += records.glob(".*.tmp")  # whoever writes one now loses no more than a cache
    if not damaged:
        known = {f"{a.kind}.{a.name}.v{a.manifest.version}.json" for a in everything}
        found += [path for path in records.glob("*.json") if path.name not in known]
    return found


def _size(path: Path) -> int:
    total = 0
    for p in [path, *below(path)]:
        with suppress(OSError):
            total += p.lstat().st_size if p.is_file() else 0
    return total
