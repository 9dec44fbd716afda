"""What is recorded of an artifact: ``manifest.json``, and the digests in it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from safework_cli.core.errors import InputError, nearest

HELDOUT = "heldout"
"""The subset of a dataset that is for evaluation: no training subset may share a group or a prompt with it."""

KINDS = ("model", "dataset", "verifier", "index", "generations", "evaluation")

MANIFEST = "manifest.json"
RECORD = "safework"
"""The folder of an artifact that keeps its run's events and curves."""
EXTERNAL = "external"
"""The stage of a manifest that is not on disk: it was made for a folder without one, whose files were hashed just now."""
SCHEMA_VERSION = 2  # 2: the manifest carries a digest of itself
NAME = r"[a-zA-Z0-9][a-zA-Z0-9._-]*"
"""What an artifact may be called: safe as a folder's name and in a reference."""
LONGEST_NAME = 180
_UNSET = "0" * 64
_DIGEST_FIELD = re.compile(rb'\n  "manifest_sha256": "([^"]*)"')
_AGAIN = "run the stage that made it again with --fresh"
_IGNORED = re.compile(r"\.manifest\.json\.[^/]*\.tmp|\.nfs[0-9a-f]+")
"""Files that are not of the payload: what a kill in the middle of pinning leaves, and what NFS keeps for a deleted file that is open."""


class NotThere(InputError):
    """The folder has no manifest, or was deleted in the meantime."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)


class FileEntry(_Strict):
    """One file of the payload."""

    path: str
    """Below the artifact's folder, with `/`."""
    sha256: str
    """Digest of the file's bytes."""
    size: int
    """In bytes."""


class InputEntry(_Strict):
    """One input, pinned."""

    ref: str
    """The reference with its version, a path, or a hub repository with its commit."""
    kind: str
    """The artifact's kind."""
    digest: str
    """The input's `digest`."""

    @property
    def whole(self) -> str:
        """The reference without its subset."""
        return self.ref if self.ref.startswith("hf:") else self.ref.partition(":")[0]


class Manifest(_Strict):
    """Everything that is known of an artifact, as stored in ``manifest.json``."""

    schema_version: int = SCHEMA_VERSION
    """Of the manifest."""
    kind: str
    """model, dataset, verifier, index, generations or evaluation."""
    name: str
    """The artifact's name."""
    version: int
    """Counted from 1 for each kind and name."""
    created: str
    """UTC, ISO 8601."""
    stage: str
    """The command that made it."""
    stage_version: int
    """Raised when a stage's results change for the same settings."""
    fingerprint: str
    """Identity of the run: stage, version, settings that can change the result, digests of the inputs."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Every setting with its value."""
    config_sources: dict[str, str] = Field(default_factory=dict)
    """Setting → where its value came from: "default", a recipe, a variable, or "command line"."""
    inputs: dict[str, InputEntry] = Field(default_factory=dict)
    """Slot → the input, pinned."""
    files: list[FileEntry]
    """Every file of the payload."""
    digest: str
    """sha256 over the sorted list of files, the run's record left out: the identity of the payload."""
    chat_template_hash: str | None = None
    """Of the model made or used."""
    seeds: dict[str, str] = Field(default_factory=dict)
    """What is random → the setting that seeds it, or "not deterministic"."""
    packages: dict[str, str] = Field(default_factory=dict)
    """Package → version."""
    git_commit: str | None = None
    """Of the working folder, where it is a repository."""
    host: str = ""
    """The machine's name."""
    wall_seconds: float = 0.0
    """Duration of the run, in seconds: of all its attempts, each to what it wrote last."""
    peak_memory_bytes: int | None = None
    """Largest memory of a process of the run, in bytes."""
    peak_gpu_memory_bytes: int | None = None
    """The most that torch allocated on one GPU in a process of the run, in bytes; null without a GPU."""
    metrics: dict[str, Any] = Field(default_factory=dict)
    """The stage's headline numbers."""
    notes: list[str] = Field(default_factory=list)
    """Sentences about the run that a reader should see."""
    failed_gates: list[str] = Field(default_factory=list)
    """Gates that did not hold; the command exited with 4."""
    failed_items: int = 0
    """Items that failed, such as prompts without a verdict."""
    tolerated_items: int = 0
    """How many may fail; with more the command exited with 5."""
    pinned: bool = False
    """Kept by `artifacts gc`."""
    reuse: bool = True
    """Whether a run with the same fingerprint may print this artifact as "already done": false for imports, whose fingerprint is only
    a claim of the folder's author."""
    manifest_sha256: str = ""
    """sha256 over the bytes of ``manifest.json`` with 64 zeros in this place; empty in manifests of before schema version 2."""

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Reads a folder's manifest and compares its digest.

        Raises:
            NotThere: there is none.
            InputError: it cannot be read, is damaged, or names what no artifact may hold.
        """
        path = folder / MANIFEST
        try:
            if path.is_symlink():
                raise InputError(f"{path} is damaged", "it is a symbolic link", _AGAIN)
            raw = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise NotThere(f"{folder} has no {MANIFEST}", "it is not an artifact, or it is incomplete", "safework artifacts ls") from None
        except OSError as error:
            raise InputError(f"{path} cannot be read", str(error.strerror), "check its permissions and the disk") from None
        try:
            manifest = cls.model_validate_json(raw)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise InputError(f"{path} is damaged", f"{where}: {first['msg']}", _AGAIN) from None
        if why := _senseless(manifest, raw):
            raise InputError(f"{path} is damaged", why, _AGAIN)
        return manifest

    def write(self, folder: Path) -> None:
        """Writes ``manifest.json``, its own digest in it."""
        self.schema_version, self.manifest_sha256 = SCHEMA_VERSION, _UNSET
        raw = self.model_dump_json(indent=2).encode() + b"\n"
        self.manifest_sha256 = hashlib.sha256(raw).hexdigest()
        write_durably(folder / MANIFEST, _with_digest(raw, self.manifest_sha256))


def _with_digest(raw: bytes, digest: str) -> bytes:
    match = _DIGEST_FIELD.search(raw)
    return raw if match is None else raw[: match.start(1)] + digest.encode() + raw[match.end(1) :]


def _senseless(manifest: Manifest, raw: bytes) -> str | None:
    """What is wrong with a manifest that is valid JSON: other bytes than were written, or values that would lead out of the store."""
    if manifest.schema_version > SCHEMA_VERSION:
        return f"it was written by a newer safework (schema version {manifest.schema_version}; this one reads {SCHEMA_VERSION})"
    has_digest = manifest.schema_version >= 2 or manifest.manifest_sha256
    if has_digest and hashlib.sha256(_with_digest(raw, _UNSET)).hexdigest() != manifest.manifest_sha256:
        return "its bytes changed: they do not give the digest that it carries"
    if manifest.kind not in KINDS:
        return f"'{manifest.kind}' is not a kind of artifact ({', '.join(KINDS)})"
    if not re.fullmatch(NAME, manifest.name) or len(manifest.name) > LONGEST_NAME:
        return f"'{manifest.name}' cannot name an artifact"
    if manifest.version < 1 or manifest.stage == EXTERNAL:
        return f"version {manifest.version} of stage '{manifest.stage}' is never committed"
    for entry in manifest.files:
        parts = PurePosixPath(entry.path).parts
        if not parts or entry.path.startswith("/") or ".." in parts or "\0" in entry.path or "/".join(parts) != entry.path:
            return f"the path '{entry.path}' leads out of the artifact"
    return None


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

    def row_files(self) -> list[Path]:
        """The Parquet files that hold its rows (those of the subset, where one is named), in name order: what the manifest lists, nothing
        that is only in the same artifact. Raises InputError where the subset is open, naming one that may be trained on."""
        if self.kind != "dataset":
            raise InputError(f"{self.ref} is a {self.kind}, not a dataset")
        tables = sorted(entry.path for entry in self.manifest.files if entry.path.endswith(".parquet"))
        if self.subset:
            return [self.path / table for table in tables if table.startswith(f"{self.subset}/")]
        at_the_top = [table for table in tables if "/" not in table]
        if len(self.subsets) + bool(at_the_top) > 1:
            for_training = [subset for subset in self.subsets if subset != HELDOUT] or self.subsets
            top = f", and rows outside any subset ({at_the_top[0]})" if at_the_top else ""
            raise InputError(
                f"{self.ref} has {'several subsets' if len(self.subsets) > 1 else 'a subset'}{top}",
                "which rows are meant is not guessed",
                f"write {self.ref}:{for_training[0]} (of {', '.join(self.subsets)})",
            )
        return [self.path / table for table in tables]

    def with_subset(self, subset: str | None) -> Artifact:
        """The same artifact, narrowed. Raises InputError with the nearest name where the subset is unknown."""
        if subset and subset not in self.subsets:
            have = ", ".join(self.subsets) or "none"
            raise InputError(f"{self.ref} has no subset '{subset}'{nearest(subset, self.subsets)}", f"its subsets: {have}")
        return Artifact(self.path, self.manifest, subset, self.external)


def sha256_of(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def payload_files(folder: Path) -> Iterator[Path]:
    """Every payload file below a folder, in name order.

    Raises:
        InputError: a link, which leads to what lies outside; a pipe, socket or device; a name that is not UTF-8.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise InputError(f"{path} is a symbolic link", "an artifact holds its own bytes", "replace the link by a copy of the file")
        if path.is_dir() or path == folder / MANIFEST or _IGNORED.fullmatch(path.name):
            continue
        if not path.is_file() and path.exists():
            raise InputError(f"{path} is not a regular file", "an artifact holds files and folders only", "remove it")
        yield path


def entry_of(path: Path, folder: Path) -> FileEntry:
    """Digest and size of a file below a folder. Raises InputError where its name is not UTF-8."""
    name = path.relative_to(folder).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"the name of {path} is not UTF-8", "a manifest is JSON, which holds Unicode only", "rename the file") from None
    return FileEntry(path=name, sha256=sha256_of(path), size=path.stat().st_size)


def hash_payload(folder: Path) -> list[FileEntry]:
    return [entry_of(path, folder) for path in payload_files(folder)]


def payload_digest(files: list[FileEntry]) -> str:
    """The identity of a payload. The run's record is not part of it: the same weights are the same input, whenever they were made."""
    files = [entry for entry in files if not entry.path.startswith(f"{RECORD}/")]
    lines = sorted(f"{entry.path}\0{entry.sha256}" for entry in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def canonical_digest(value: Any) -> str:
    """sha256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()


def write_durably(path: Path, data: bytes) -> None:
    """Writes a file so that a reader sees the old content or the new, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_where_asked(path: Path, data: bytes) -> None:
    """Writes a file that a person named: into what a link leads to, and into a device or a pipe as it is; a file is replaced whole.

    Raises:
        OSError: it cannot be written.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(data)
    else:
        write_durably(Path(os.path.realpath(path)), data)


def make_durably(folder: Path) -> None:
    """Makes a folder and those above it, so that they are there after a power cut."""
    if not folder.is_dir():
        make_durably(folder.parent)
        folder.mkdir(exist_ok=True)
        fsync_folder(folder.parent)


def fsync_below(folder: Path) -> None:
    """Flushes the names of the files in all folders below one, the innermost first. Those in the folder itself are the caller's."""
    for parent, folders, _ in os.walk(folder, topdown=False):
        for name in folders:
            fsync_folder(Path(parent, name))


def fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
