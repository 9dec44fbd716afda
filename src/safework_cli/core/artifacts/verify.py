"""Comparing an artifact with its manifest, both ways: every file that is listed, and no other."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from safework_cli.core.artifacts.manifest import (
    EXTERNAL,
    MANIFEST,
    Artifact,
    Manifest,
    NotThere,
    payload_digest,
    payload_files,
    sha256_of,
    write_durably,
)
from safework_cli.core.errors import InputError

_DO = "run the stage that made it again with --fresh, or restore the file"


def verify(artifact: Artifact, record: Path | None) -> None:
    """Compares an artifact's files with its manifest.

    Args:
        record: keeps what the files looked like (size, times, inode) when they were last compared; unchanged ones are not hashed again.
            Nothing depends on it: one that is missing, damaged or cannot be written costs time only.

    Raises:
        NotThere: the artifact was deleted in the meantime.
        InputError: a file is missing, of another size or of other bytes, cannot be read, or is not listed.
    """
    if artifact.manifest.stage == EXTERNAL:
        return  # the manifest was made from the files a moment ago
    try:
        stamp = _stamp(artifact)
        if record is not None and _recorded(record) == stamp:
            return
        _compare(artifact)
    except (InputError, OSError) as error:
        if not (artifact.path / MANIFEST).exists():
            raise NotThere(f"{artifact.ref} was deleted in the meantime", "a gc ran at the same time", "safework artifacts ls") from None
        if isinstance(error, OSError):
            name = Path(error.filename).name if error.filename else "a file"
            raise InputError(f"{artifact.ref} is damaged: {name} cannot be read", str(error.strerror or error), _DO) from None
        raise
    if record is not None:
        with suppress(OSError):  # a store that may only be read
            record.parent.mkdir(parents=True, exist_ok=True)
            write_durably(record, json.dumps(stamp).encode())


def _compare(artifact: Artifact) -> None:
    if Manifest.read(artifact.path).manifest_sha256 != artifact.manifest.manifest_sha256:
        raise InputError(f"{artifact.ref} changed while it was read", "its manifest is another one now", "run the same command again")
    listed = {entry.path: entry for entry in artifact.manifest.files}
    found = {path.relative_to(artifact.path).as_posix(): path for path in payload_files(artifact.path)}
    for name, entry in listed.items():
        if name not in found:
            raise InputError(f"{artifact.ref} is damaged: {name} is missing", "the manifest lists it", _DO)
        if (size := found[name].stat().st_size) != entry.size:
            raise InputError(f"{artifact.ref} is damaged: {name} has {size} bytes", f"the manifest says {entry.size}", _DO)
    if strange := sorted(found.keys() - listed.keys()):
        raise InputError(
            f"{artifact.ref} holds a file that is not its own: {strange[0]}",
            "the manifest does not list it, and whatever reads the folder may use it",
            f"move {artifact.path / strange[0]} out of the store",
        )
    for name, entry in listed.items():
        if sha256_of(found[name]) != entry.sha256:
            raise InputError(f"{artifact.ref} is damaged: the bytes of {name} changed", "its sha256 is not the manifest's", _DO)
    if payload_digest(artifact.manifest.files) != artifact.manifest.digest:
        raise InputError(f"{artifact.ref} is damaged: its manifest was edited", "the list of files does not give the recorded digest", _DO)


def _stamp(artifact: Artifact) -> list[Any]:
    """What shows cheaply that no file was touched, added or removed since the last comparison. The time of the last change of an inode
    is part of it: a file's own time can be set back, that one cannot."""
    stats: list[Any] = [artifact.manifest.manifest_sha256]
    for path in [artifact.path / MANIFEST, *payload_files(artifact.path)]:
        status = os.lstat(path)
        name = path.relative_to(artifact.path).as_posix()
        stats.append([name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino])
    return stats


def _recorded(record: Path) -> Any:
    try:
        return json.loads(record.read_bytes())
    except (OSError, ValueError):
        return None  # a cache: it is made again
