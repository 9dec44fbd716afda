"""What an artifact says of itself: ``manifest.json``, and the digests it rests on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from safework_cli.errors import InputError, nearest

if TYPE_CHECKING:
    from safework_cli.rows import Row

MANIFEST = "manifest.json"
RECORD = "safework"
"""The folder of an artifact that keeps its run's events and curves."""
SCHEMA_VERSION = 1


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class FileEntry(_Strict):
    """One file of the payload."""

    path: str
    sha256: str
    size: int


class InputEntry(_Strict):
    """One input, pinned."""

    ref: str
    kind: str
    digest: str


class Manifest(_Strict):
    """Everything that is known of an artifact, as stored in ``manifest.json``."""

    schema_version: int = SCHEMA_VERSION
    kind: str
    name: str
    version: int
    created: str
    """UTC, ISO 8601."""
    stage: str
    stage_version: int
    fingerprint: str
    config: dict[str, Any] = Field(default_factory=dict)
    config_sources: dict[str, str] = Field(default_factory=dict)
    inputs: dict[str, InputEntry] = Field(default_factory=dict)
    files: list[FileEntry]
    digest: str
    """sha256 over the sorted list of files, the run's record left out: the identity of the payload."""
    chat_template_hash: str | None = None
    seeds: dict[str, str] = Field(default_factory=dict)
    packages: dict[str, str] = Field(default_factory=dict)
    git_commit: str | None = None
    host: str = ""
    wall_seconds: float = 0.0
    peak_memory_bytes: int | None = None
    metrics: dict[str, Any] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
    failed_gates: list[str] = Field(default_factory=list)
    failed_items: int = 0
    tolerated_items: int = 0
    pinned: bool = False

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Reads a folder's manifest. Raises InputError where it is missing or damaged."""
        path = folder / MANIFEST
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise InputError(f"{folder} has no {MANIFEST}", "it is not an artifact, or it was cut", "safework artifacts ls") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise InputError(f"{path} is damaged", f"{where}: {first['msg']}", "run the stage that made it again with --fresh") from None

    def write(self, folder: Path) -> None:
        write_durably(folder / MANIFEST, self.model_dump_json(indent=2).encode() + b"\n")


@dataclass(frozen=True, slots=True)
class Artifact:
    """A resolved reference: an artifact of the store, a folder or file on disk, or a hub repository pinned to a commit."""

    path: Path
    manifest: Manifest
    subset: str | None = None
    external: str | None = None
    """The reference as given, where the thing does not live in the store."""

    @property
    def kind(self) -> str:
        return self.manifest.kind

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def ref(self) -> str:
        base = self.external or f"{self.kind}/{self.name}@v{self.manifest.version}"
        return f"{base}:{self.subset}" if self.subset else base

    @property
    def digest(self) -> str:
        """The payload's identity; with a subset, only the subset's files count."""
        if not self.subset:
            return self.manifest.digest
        return payload_digest([entry for entry in self.manifest.files if entry.path.startswith(f"{self.subset}/")])

    @property
    def subsets(self) -> list[str]:
        """The subsets of a dataset: its folders that hold Parquet files."""
        return sorted({entry.path.split("/")[0] for entry in self.manifest.files if entry.path.endswith(".parquet") and "/" in entry.path})

    def rows(self) -> list[Row]:
        """Every row of a dataset (of the subset, where one is named). Raises InputError where the subset is open or unknown."""
        from safework_cli.rows import read_rows

        if self.kind != "dataset":
            raise InputError(f"{self.ref} is a {self.kind}, not a dataset")
        if self.subset:
            return read_rows(self.path / self.subset)
        if len(self.subsets) > 1:
            raise InputError(
                f"{self.ref} has several subsets",
                "which one is meant is not guessed",
                f"write {self.ref}:{self.subsets[0]} (of {', '.join(self.subsets)})",
            )
        return read_rows(self.path)

    def with_subset(self, subset: str | None) -> Artifact:
        """The same artifact, narrowed. Raises InputError with the nearest name where there is no such subset."""
        if subset and subset not in self.subsets:
            have = ", ".join(self.subsets) or "none"
            raise InputError(f"{self.ref} has no subset '{subset}'{nearest(subset, self.subsets)}", f"its subsets: {have}")
        return Artifact(self.path, self.manifest, subset, self.external)


def sha256_of(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def payload_files(folder: Path) -> Iterator[Path]:
    """Every payload file below a folder, in name order. Links are refused: an artifact must not lean on what lies outside it."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise InputError(f"{path} is a symbolic link", "an artifact holds its own bytes", "replace the link by a copy of the file")
        if path.is_file() and path != folder / MANIFEST:
            yield path


def hash_payload(folder: Path) -> list[FileEntry]:
    return [FileEntry(path=p.relative_to(folder).as_posix(), sha256=sha256_of(p), size=p.stat().st_size) for p in payload_files(folder)]


def payload_digest(files: list[FileEntry]) -> str:
    """The identity of a payload. The run's record is no part of it: the same weights are the same input, whenever they were made."""
    files = [entry for entry in files if not entry.path.startswith(f"{RECORD}/")]
    lines = sorted(f"{entry.path}\0{entry.sha256}" for entry in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def canonical_digest(value: Any) -> str:
    """sha256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()


def write_durably(path: Path, data: bytes) -> None:
    """Writes a file so that a reader sees the old content or the new, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
