"""The store: whole artifacts or none, never changed once committed, shared by any number of processes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from safework_cli.artifacts.external import RULE_PREFIX, hub_artifact, path_artifact
from safework_cli.artifacts.manifest import (
    MANIFEST,
    Artifact,
    Manifest,
    fsync_folder,
    hash_payload,
    payload_digest,
    payload_files,
    sha256_of,
    write_durably,
)
from safework_cli.artifacts.payload import check_payload
from safework_cli.artifacts.references import HubReference, PathReference, check_name, parse_reference
from safework_cli.errors import InputError, RunAgain, nearest
from safework_cli.stage import KINDS

LOCK_SECONDS = 60


def default_store(path: str | Path | None = None) -> Store:
    """The store of ``--store``, ``SAFEWORK_STORE`` or ``./artifacts``, in that order."""
    return Store(Path(path or os.environ.get("SAFEWORK_STORE") or "artifacts"))


class Store:
    """A folder ``<kind>/<name>/v<N>/`` of artifacts, beside ``.runs`` (run folders), ``.locks`` and ``.verified``.

    Args:
        root: made when first written to.
    """

    def __init__(self, root: Path):
        self.root = root.expanduser().absolute()
        self.runs = self.root / ".runs"

    # ---------------------------------------------------------------- reading

    def list(self, kind: str | None = None, name: str | None = None, *, damaged: list[InputError] | None = None) -> list[Artifact]:
        """Every version, oldest first. Folders without a manifest do not exist for a reader.

        Args:
            damaged: takes the errors of manifests that cannot be read, where one of them shall not hide all others.

        Raises:
            InputError: a manifest is damaged, and ``damaged`` is not given.
        """
        kinds = [kind] if kind else list(KINDS)
        folders = [folder for k in kinds for folder in (self.root / k).glob(f"{name or '*'}/v*") if (folder / MANIFEST).exists()]
        found = []
        for folder in folders:
            try:
                found.append(Artifact(folder, Manifest.read(folder)))
            except InputError as error:
                if damaged is None:
                    raise
                damaged.append(error)
        return sorted(found, key=lambda a: (a.manifest.created, a.kind, a.name, a.manifest.version))

    def resolve(self, reference: str, kinds: tuple[str, ...] = KINDS, *, verify: bool = True) -> Artifact:
        """Finds what a reference means and checks that it is undamaged.

        Args:
            kinds: what the asking slot accepts; a bare name is looked up in these alone.
            verify: compare the files with the manifest (skipped for files unchanged since the last time, by size, inode and time).

        Raises:
            InputError: missing (with the nearest name), ambiguous, of another kind, damaged, or a hub that cannot be reached.
        """
        parsed = parse_reference(reference)
        if isinstance(parsed, HubReference):
            return hub_artifact(parsed, reference, kinds)
        if isinstance(parsed, PathReference):
            artifact = path_artifact(parsed.path, reference, kinds)
        else:
            artifact = self._find(reference, parsed.kind, parsed.name, parsed.version, kinds)
        if artifact.kind not in kinds:
            raise InputError(
                f"{reference} is a {artifact.kind}", f"a {' or '.join(kinds)} is wanted here", "safework artifacts ls --kind " + kinds[0]
            )
        if verify:
            self.verify(artifact)
        return artifact.with_subset(parsed.subset)

    def _find(self, reference: str, kind: str | None, name: str, version: int | None, kinds: tuple[str, ...]) -> Artifact:
        wanted = (kind,) if kind else kinds
        found = [k for k in wanted if any((self.root / k / name).glob(f"v*/{MANIFEST}"))]
        if not found:
            known = sorted({f"{a.kind}/{a.name}" for a in self.list(damaged=[])})
            elsewhere = [item for item in known if item.split("/")[1] == name]
            if elsewhere:
                raise InputError(
                    f"no {' or '.join(wanted)} is called '{name}'",
                    f"there is {', '.join(elsewhere)}, which is of another kind",
                    "safework artifacts ls",
                )
            hint = nearest(f"{wanted[0]}/{name}", known)
            raise InputError(
                f"no artifact '{reference}' in {self.root}{hint}", "", "safework artifacts ls" if known else "safework models pull smollm2"
            )
        if len(found) > 1:
            raise InputError(
                f"'{reference}' is ambiguous", f"{' and '.join(f'{k}/{name}' for k in found)} both exist", f"write {found[0]}/{name}"
            )
        folder = self.root / found[0] / name
        versions = sorted(int(p.parent.name[1:]) for p in folder.glob(f"v*/{MANIFEST}") if p.parent.name[1:].isdigit())
        chosen = version if version is not None else versions[-1]
        if chosen not in versions:
            raise InputError(
                f"{found[0]}/{name} has no version v{chosen}",
                f"it has {', '.join(f'v{v}' for v in versions)}",
                f"write {found[0]}/{name}@v{versions[-1]}",
            )
        return Artifact(folder / f"v{chosen}", Manifest.read(folder / f"v{chosen}"))

    def lineage(self, artifact: Artifact) -> dict[str, Artifact | None]:
        """Every ancestor by reference, nearest first; None for one that is no longer here (or lives outside the store)."""
        found: dict[str, Artifact | None] = {}
        queue = [artifact]
        while queue:
            for entry in queue.pop(0).manifest.inputs.values():
                if entry.ref.startswith(RULE_PREFIX):
                    continue  # a part of the program: no artifact stands behind it
                reference = entry.ref.split(":")[0] if not entry.ref.startswith("hf:") else entry.ref
                if reference in found:
                    continue
                parent: Artifact | None = None
                if reference.startswith("hf:"):
                    found[reference] = None
                    continue
                with suppress(InputError):  # an ancestor that is gone stays None: lineage outlives it
                    parent = self.resolve(reference, verify=False)
                found[reference] = parent
                if parent is not None:
                    queue.append(parent)
        return found

    def find_run(self, fingerprint: str, kind: str) -> Artifact | None:
        """The newest artifact that a run with this fingerprint made."""
        same = [a for a in self.list(kind, damaged=[]) if a.manifest.fingerprint == fingerprint]  # one that is damaged is not that one
        return same[-1] if same else None

    # ---------------------------------------------------------------- verifying

    def verify(self, artifact: Artifact, *, thorough: bool = False) -> None:
        """Compares every file with the manifest.

        Args:
            thorough: hash every file again, also those whose size, inode and time are those of the last check.

        Raises:
            InputError: a file is missing, of another size, or of other bytes.
        """
        stamp = _stamp(artifact)
        record = self.root / ".verified" / f"{artifact.kind}.{artifact.name}.v{artifact.manifest.version}.json"
        if not thorough and stamp and record.exists() and json.loads(record.read_text()) == stamp:
            return
        do = "run the stage that made it again with --fresh, or restore the file"
        for entry in artifact.manifest.files:
            path = artifact.path / entry.path
            if not path.is_file():
                raise InputError(f"{artifact.ref} is damaged: {entry.path} is missing", "the manifest lists it", do)
            if path.stat().st_size != entry.size:
                raise InputError(
                    f"{artifact.ref} is damaged: {entry.path} has {path.stat().st_size} bytes", f"the manifest says {entry.size}", do
                )
            if sha256_of(path) != entry.sha256:
                raise InputError(f"{artifact.ref} is damaged: the bytes of {entry.path} changed", "its sha256 is not the manifest's", do)
        if payload_digest(artifact.manifest.files) != artifact.manifest.digest:
            raise InputError(
                f"{artifact.ref} is damaged: its manifest was edited", "the list of files does not give the recorded digest", do
            )
        if stamp and artifact.external is None:
            record.parent.mkdir(parents=True, exist_ok=True)
            write_durably(record, json.dumps(stamp).encode())

    # ---------------------------------------------------------------- writing

    @contextmanager
    def lock(self, name: str, *, wait: float = LOCK_SECONDS) -> Iterator[None]:
        """Holds a lock that a killed process releases by dying. Raises RunAgain where another holds it for longer than ``wait`` seconds."""
        folder = self.root / ".locks"
        self._make(folder)
        try:
            with FileLock(folder / f"{name}.lock", timeout=wait):
                yield
        except Timeout:
            raise RunAgain(
                f"another process holds {name}", "two processes never write the same thing", "wait for it, then run this command again"
            ) from None

    def commit(self, payload: Path, manifest: Manifest) -> Artifact:
        """Makes a folder an artifact: hashed, flushed, checked by reopening, then renamed into place as the next version.

        Args:
            payload: a folder on the store's own file system; it is moved, not copied.
            manifest: ``files``, ``digest`` and ``version`` are filled in here.

        Raises:
            InputError: the payload is not what its kind promises.
            RunAgain: the disk is full; the payload stays where it is.
        """
        check_name(manifest.name)
        try:
            check_payload(payload, manifest.kind)
            manifest.files = hash_payload(payload)
            manifest.digest = payload_digest(manifest.files)
            mode = 0o666 & ~_umask()
            for path in payload_files(payload):
                path.chmod(mode)  # safetensors writes private files; a store is shared as the user's umask says
                with open(path, "rb") as handle:
                    os.fsync(handle.fileno())
            home = self.root / manifest.kind / manifest.name
            self._make(home)
            with self.lock(f"{manifest.kind}.{manifest.name}"):
                taken = [int(p.name[1:]) for p in home.glob("v*") if p.name[1:].isdigit()]
                manifest.version = max(taken, default=0) + 1
                manifest.write(payload)
                target = home / f"v{manifest.version}"
                os.rename(payload, target)
                fsync_folder(home)
        except OSError as error:
            raise self._disk_error(error) from error
        return Artifact(target, manifest)

    def staging(self) -> Path:
        """A fresh folder on the store's file system for putting a payload together."""
        folder = self.root / ".staging" / f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._make(folder)
        return folder

    def relink(self, artifact: Artifact, name: str, **changes: Any) -> Artifact:
        """The same artifact under another name or as a further version: hard links where the file system has them, copies elsewhere.

        Args:
            changes: fields of the manifest that differ.
        """
        folder = self.staging()
        for path in payload_files(artifact.path):
            target = folder / path.relative_to(artifact.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, target)
            except OSError:
                shutil.copy2(path, target)
        manifest = artifact.manifest.model_copy(deep=True, update={"name": name, "created": now(), "pinned": False, **changes})
        return self.commit(folder, manifest)

    def set_pinned(self, artifact: Artifact, pinned: bool) -> None:
        artifact.manifest.pinned = pinned
        artifact.manifest.write(artifact.path)

    def remove(self, artifact: Artifact) -> None:
        """Takes an artifact out of sight by a rename, then deletes it: a kill in between leaves nothing half-visible."""
        bin_ = self.staging() / "removed"
        os.rename(artifact.path, bin_)
        shutil.rmtree(bin_.parent)

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._disk_error(error) from error

    def _disk_error(self, error: OSError) -> Exception:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return RunAgain(
                f"no space left in {self.root}",
                "nothing is lost: the run folder keeps what was made",
                "free space (`safework artifacts gc`), then run the same command again",
            )
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            return InputError(
                f"cannot write to {self.root}", str(error.strerror), "choose a store that you may write to with --store or SAFEWORK_STORE"
            )
        return error


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _stamp(artifact: Artifact) -> list[list[str | int]] | None:
    """What tells cheaply that no file was touched since its last check; None where one is missing."""
    stats: list[list[str | int]] = []
    for entry in artifact.manifest.files:
        try:
            status = (artifact.path / entry.path).stat()
        except OSError:
            return None
        stats.append([entry.sha256, status.st_size, status.st_mtime_ns, status.st_ino])
    return stats
