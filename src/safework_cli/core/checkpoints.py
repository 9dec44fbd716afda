"""Checkpoints in a run folder: whole with every byte that was written, or not used.

The last file written into a checkpoint is ``COMPLETE.json``: whose it is, its step, and the sha256 of every other file. One without it was
interrupted by a kill. Imports no torch.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from safework_cli.core.artifacts.manifest import canonical_digest, fsync_folder, sha256_of, write_durably
from safework_cli.core.errors import InputError

COMPLETE = "COMPLETE.json"
PREFIX = "checkpoint-"
KEPT = 2
"""Whole checkpoints that stay in a run folder: the newest, and one to fall back on."""
_DAMAGED = "damaged-"

_verified: dict[Path, list[tuple[str, int, int, int]]] = {}
"""Checkpoints that this process has hashed, with the size, time and inode of their files then."""


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix(PREFIX))


def checkpoints_in(folder: Path) -> list[Path]:
    """Every checkpoint below ``folder/checkpoints``, the newest (by step) first, whole or not."""
    found = [path for path in (folder / "checkpoints").glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=step_of, reverse=True)


def is_complete(checkpoint: Path) -> bool:
    """Whether it was written to its end. Its bytes are not compared: see ``damage``."""
    return (checkpoint / COMPLETE).exists()


def seal(checkpoint: Path, fingerprint: str, *, forked: bool = False) -> None:
    """Marks a checkpoint as whole: flushes its files, then writes their digests into ``COMPLETE.json``."""
    files = {}
    for path in _files(checkpoint):
        with open(path, "rb") as handle:
            os.fsync(handle.fileno())
        files[path.relative_to(checkpoint).as_posix()] = sha256_of(path)
    mark: dict[str, Any] = {"fingerprint": fingerprint, "step": step_of(checkpoint), "forked": forked, "files": files}
    write_durably(checkpoint / COMPLETE, json.dumps(mark | {"sha256": canonical_digest(mark)}, indent=1).encode())
    fsync_folder(checkpoint)


def read_mark(checkpoint: Path) -> dict[str, Any]:
    """What ``COMPLETE.json`` says. Raises ValueError where it is not what ``seal`` wrote."""
    try:
        mark = json.loads((checkpoint / COMPLETE).read_bytes())
        digest = mark.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{COMPLETE} cannot be read ({type(error).__name__})") from None
    if digest != canonical_digest(mark):
        raise ValueError(f"{COMPLETE} changed")
    if mark["step"] != step_of(checkpoint):
        raise ValueError(f"it was written at step {mark['step']}")
    return dict(mark)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a complete checkpoint, compared byte for byte with its digests; None where nothing is."""
    try:
        mark = read_mark(checkpoint)
        stamp = _stamp(checkpoint)
        if _verified.get(checkpoint) == stamp:
            return None
        found = {path.relative_to(checkpoint).as_posix(): path for path in _files(checkpoint)}
        if missing := sorted(mark["files"].keys() - found.keys()):
            return f"{missing[0]} is missing"
        if strange := sorted(found.keys() - mark["files"].keys()):
            return f"{strange[0]} was added later"
        for name, path in found.items():
            if sha256_of(path) != mark["files"][name]:
                return f"the bytes of {name} changed"
    except ValueError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or checkpoint.name} cannot be read ({error.strerror})"
    _verified[checkpoint] = stamp
    return None


def latest(folder: Path, fingerprint: str, say: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint of a run; None where the run has not come to its first one.

    Torn ones are deleted. Damaged ones are named, and set aside where an earlier complete one replaces them.

    Args:
        folder: the run folder.
        fingerprint: the run's; a checkpoint is bound to it.
        say: takes a sentence about each checkpoint that is not used.

    Raises:
        InputError: a checkpoint belongs to other inputs or settings; or every complete checkpoint is damaged.
    """
    damaged: list[tuple[Path, str]] = []
    for checkpoint in checkpoints_in(folder):
        if not is_complete(checkpoint):
            say(f"{checkpoint.name} was interrupted by a kill and is not used")
            shutil.rmtree(checkpoint, ignore_errors=True)
            continue
        if why := damage(checkpoint):
            damaged.append((checkpoint, why))
            continue
        if read_mark(checkpoint)["fingerprint"] != fingerprint:
            raise InputError(f"{checkpoint} belongs to another run", "its inputs or settings were others", "run again with --fresh")
        for other, reason in damaged:
            say(f"{other.name} is damaged and is not used: {reason}; {checkpoint.name} takes its place")
            set_aside = other.with_name(_DAMAGED + other.name)
            shutil.rmtree(set_aside, ignore_errors=True)
            other.rename(set_aside)
        return checkpoint
    if damaged:
        checkpoint, why = damaged[0]
        raise InputError(
            f"{checkpoint} is damaged: {why}",
            "no earlier whole checkpoint of this run is left to resume from",
            "run again with --fresh; it starts from the beginning",
        )
    return None


def newest(folder: Path, keep: int = KEPT) -> list[Path]:
    """The complete checkpoints of a run that stay in any case, the newest first."""
    return [path for path in checkpoints_in(folder) if is_complete(path)][:keep]


def rotate(folder: Path, keep: int = KEPT, protected: Collection[int] = ()) -> None:
    """Deletes all but the newest complete checkpoints of a run, by step: clocks do not count.

    Args:
        protected: steps whose checkpoints are kept in addition, such as the best one's.
    """
    complete = [path for path in checkpoints_in(folder) if is_complete(path)]
    outdated = [path for path in complete[keep:] if step_of(path) not in protected]
    for old in [*outdated, *(folder / "checkpoints").glob(f"{_DAMAGED}*")]:
        (old / COMPLETE).unlink(missing_ok=True)  # first: a kill in between leaves a torn checkpoint, not a damaged one
        shutil.rmtree(old, ignore_errors=True)


def _files(checkpoint: Path) -> list[Path]:
    return [path for path in sorted(checkpoint.rglob("*")) if not path.is_dir() and path != checkpoint / COMPLETE]


def _stamp(checkpoint: Path) -> list[tuple[str, int, int, int]]:
    return [(str(path), (s := path.stat()).st_size, s.st_mtime_ns, s.st_ino) for path in [checkpoint / COMPLETE, *_files(checkpoint)]]
