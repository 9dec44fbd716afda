"""The store: whole artifacts or none, never changed once committed, shared by any number of processes."""

from __future__ import annotations

import os
import re
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from safework_cli.core.artifacts.adapters import base_in_store, base_of
from safework_cli.core.artifacts.external import RULE_PREFIX, hub_artifact, path_artifact
from safework_cli.core.artifacts.manifest import (
    KINDS,
    MANIFEST,
    Artifact,
    FileEntry,
    Manifest,
    NotThere,
    fsync_below,
    fsync_folder,
    hash_payload,
    make_durably,
    payload_digest,
    payload_files,
)
from safework_cli.core.artifacts.payload import check_payload
from safework_cli.core.artifacts.references import HubReference, PathReference, check_name, parse_reference
from safework_cli.core.artifacts.staging import Staging
from safework_cli.core.artifacts.verify import verify
from safework_cli.core.errors import Held, InputError, nearest
from safework_cli.core.paths import user_path
from safework_cli.core.system_errors import explain

LOCK_SECONDS = 60
GC_LOCK = "gc"
"""The lock under which artifacts are deleted, and under which a run records which ones it needs."""


def default_store(path: str | Path | None = None) -> Store:
    """The store of ``--store``, ``SAFEWORK_STORE`` or ``./artifacts``, in that order. Raises InputError where something else has its
    place: a file has no artifacts, and an empty store would be the wrong answer."""
    store = Store(Path(path or os.environ.get("SAFEWORK_STORE") or "artifacts"))
    place = next((place for place in (store.root, *store.root.parents) if os.path.lexists(place)), store.root)
    if os.path.lexists(place) and not place.is_dir():
        raise InputError(
            f"the store {store.root} is not a folder",
            f"{place} is a file" if place.is_file() else f"{place} is neither a folder nor a link to one",
            "name the store's folder: --store FOLDER, or export SAFEWORK_STORE=FOLDER",
        )
    return store


class Store:
    """A folder ``<kind>/<name>/v<N>/`` of artifacts, next to ``.runs`` (run folders), ``.staging``, ``.locks`` and ``.verified``.

    Args:
        root: made when first written to; reading writes nothing that is needed.
    """

    def __init__(self, root: Path):
        self.root = user_path(root).absolute()
        self.runs = self.root / ".runs"
        self._staging = Staging(self.root / ".staging")

    # ---------------------------------------------------------------- reading

    def list(self, kind: str | None = None, name: str | None = None, *, damaged: list[InputError] | None = None) -> list[Artifact]:
        """Every version, oldest first; versions of one name in their order, whatever the clocks said. Folders without a manifest do not
        exist for a reader.

        Args:
            damaged: takes the errors of manifests that cannot be read, where one of them shall not hide all others.

        Raises:
            InputError: a manifest is damaged, and ``damaged`` is not given.
        """
        found = []
        for folder in self._version_folders(kind, name):
            try:
                found.append(self._read(folder))
            except NotThere:
                continue  # no artifact, or one that a gc has just taken
            except InputError as error:
                if damaged is None:
                    raise
                damaged.append(error)
        created: dict[tuple[str, str], str] = {}
        ordered = []
        for artifact in sorted(found, key=lambda a: (a.kind, a.name, a.manifest.version)):
            home = (artifact.kind, artifact.name)
            created[home] = max(created.get(home, ""), artifact.manifest.created)
            ordered.append(((created[home], *home, artifact.manifest.version), artifact))
        return [artifact for _, artifact in sorted(ordered, key=lambda pair: pair[0])]

    def _version_folders(self, kind: str | None, name: str | None) -> Iterator[Path]:
        for k in [kind] if kind else KINDS:
            for home in [self.root / k / name] if name else _folders_in(self.root / k):
                yield from (home / f"v{number}" for number in _versions_in(home))

    def manifests(self) -> set[Path]:
        """Every manifest of the store, damaged or not."""
        return {folder / MANIFEST for folder in self._version_folders(None, None) if (folder / MANIFEST).exists()}

    def _read(self, folder: Path) -> Artifact:
        """The artifact in a folder of the store. Raises InputError where its manifest is damaged or belongs elsewhere."""
        manifest = Manifest.read(folder)
        here = f"{folder.parent.parent.name}/{folder.parent.name}@{folder.name}"
        artifact = Artifact(folder, manifest)
        if artifact.ref != here:
            raise InputError(
                f"{folder / MANIFEST} is damaged",
                f"it is the manifest of {artifact.ref}, and the folder is that of {here}",
                "move the folder back, or bring it in with `safework artifacts import`",
            )
        return artifact

    def resolve(self, reference: str, kinds: tuple[str, ...] = KINDS, *, verify: bool = True, slot: str = "") -> Artifact:
        """Finds what a reference means and checks that it is undamaged.

        Args:
            kinds: what the asking slot accepts; a bare name is looked up in these only.
            slot: the key that the reference was given for, for the error ("model").
            verify: compare the files with the manifest (skipped for files unchanged since the last time, by size, inode and time).

        Raises:
            InputError: missing (with the nearest name), ambiguous, of another kind, damaged, an adapter without its base, or a hub that
                cannot be reached.
        """
        parsed = parse_reference(reference)
        if isinstance(parsed, HubReference):
            return hub_artifact(parsed, reference, kinds)
        if isinstance(parsed, PathReference):
            artifact = path_artifact(parsed.path, reference, kinds)
        else:
            artifact = self._find(reference, parsed.kind, parsed.name, parsed.version, kinds, slot)
        if artifact.kind not in kinds:
            raise InputError(
                f"{reference} is a {artifact.kind}", f"a {' or '.join(kinds)} is wanted here", "safework artifacts ls --kind " + kinds[0]
            )
        if verify:
            self.verify(artifact)
            base_of(self, artifact, verify=True)
        return artifact.with_subset(parsed.subset)

    def _find(self, reference: str, kind: str | None, name: str, version: int | None, kinds: tuple[str, ...], slot: str = "") -> Artifact:
        if kind and version is not None:  # as manifests name their inputs: an ancestor costs one look
            with suppress(NotThere):
                return self._read(self.root / kind / name / f"v{version}")
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
            do = "safework artifacts ls" if known else "safework models pull smollm2"
            if Path(reference).exists():
                what = "folder" if Path(reference).is_dir() else "file"
                do = f"write {slot and slot + '='}./{reference} for the {what} of that name"
            raise InputError(f"no artifact '{reference}' in {self.root}{hint}", "", do)
        if len(found) > 1:
            raise InputError(
                f"'{reference}' is ambiguous", f"{' and '.join(f'{k}/{name}' for k in found)} both exist", f"write {found[0]}/{name}"
            )
        folder = self.root / found[0] / name
        versions = [number for number in _versions_in(folder) if (folder / f"v{number}" / MANIFEST).exists()]
        if not versions:
            raise NotThere(f"{reference} was deleted in the meantime", "a gc ran at the same time", "safework artifacts ls")
        chosen = version if version is not None else versions[-1]
        if chosen not in versions:
            raise InputError(
                f"{found[0]}/{name} has no version v{chosen}",
                f"it has {', '.join(f'v{v}' for v in versions)}",
                f"write {found[0]}/{name}@v{versions[-1]}",
            )
        return self._read(folder / f"v{chosen}")

    def lineage(self, artifact: Artifact) -> dict[str, Artifact | None]:
        """Every ancestor by reference, nearest first, with the bases of adapters; None for one that was deleted (or lives outside the
        store)."""
        found: dict[str, Artifact | None] = {}
        queue = deque([artifact])
        while queue:
            one = queue.popleft()
            if (base := base_in_store(self, one)) is not None and base.ref not in found:
                found[base.ref] = base
                queue.append(base)
            for entry in one.manifest.inputs.values():
                if entry.ref.startswith(RULE_PREFIX):
                    continue  # a part of the program: it is not an artifact
                if entry.whole in found:
                    continue
                parent = found[entry.whole] = self.ancestor(entry.whole)
                if parent is not None:
                    queue.append(parent)
        return found

    def ancestor(self, reference: str) -> Artifact | None:
        """The artifact that an input's recorded reference means; None where it is not here any more, or was not an artifact."""
        with suppress(InputError):
            parsed = parse_reference(reference)
            if isinstance(
                parsed, PathReference
            ):  # only an artifact's own folder: nothing else is walked or hashed for a name in a manifest
                return Artifact(parsed.path.absolute(), Manifest.read(parsed.path), external=str(parsed.path.absolute()))
            if not isinstance(parsed, HubReference):
                return self._find(reference, parsed.kind, parsed.name, parsed.version, KINDS)
        return None

    def made_by(self, fingerprint: str, kind: str) -> Sequence[Artifact]:
        """What runs with this fingerprint made, oldest first."""
        return [a for a in self.list(kind, damaged=[]) if a.manifest.fingerprint == fingerprint and a.manifest.reuse]

    def find_run(self, fingerprint: str, kind: str, name: str | None = None) -> Artifact | None:
        """The newest artifact that a run with this fingerprint made: of this name where there is one, else of any name."""
        made = self.made_by(fingerprint, kind)
        return next((a for a in reversed(made) if a.name == name), made[-1] if made else None)

    # ---------------------------------------------------------------- verifying

    def verify(self, artifact: Artifact, *, thorough: bool = False) -> None:
        """Compares every file with the manifest, and the manifest with its digest.

        Args:
            thorough: hash every file again, also those that look as they did at the last comparison.

        Raises:
            NotThere: the artifact was deleted in the meantime.
            InputError: a file is missing, of another size or of other bytes, or is not listed.
        """
        record = None
        if artifact.external is None and not thorough:
            record = self.root / ".verified" / f"{artifact.kind}.{artifact.name}.v{artifact.manifest.version}.json"
        verify(artifact, record)

    # ---------------------------------------------------------------- writing

    @contextmanager
    def lock(self, name: str, *, wait: float = LOCK_SECONDS) -> Iterator[None]:
        """Holds a lock that a killed process releases by dying. Raises Held where another holds it for longer than ``wait`` seconds."""
        folder = self.root / ".locks"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held = FileLock(folder / f"{name}.lock", timeout=wait).acquire()
        except Timeout:
            raise Held(
                f"another process holds {name}", "two processes never write the same thing", "wait for it, then run this command again"
            ) from None
        except OSError as error:
            raise explain(error, self.root) or error from error
        with held:
            yield

    def commit(self, payload: Path, manifest: Manifest, *, expected: Sequence[FileEntry] | None = None) -> Artifact:
        """Makes a folder an artifact: hashed, flushed, checked by reopening, then renamed into place as the next version.

        Args:
            payload: a folder on the store's own file system; it is moved, not copied.
            manifest: ``files``, ``digest`` and ``version`` are filled in here.
            expected: the files that a copy must consist of.

        Raises:
            InputError: the payload is not what its kind promises, or not what is expected.
            RunAgain: the disk is full; the payload stays where it is.
        """
        check_name(manifest.name)
        if manifest.kind not in KINDS:
            raise InputError(f"'{manifest.kind}' is not a kind of artifact", f"the kinds are {', '.join(KINDS)}")
        try:
            check_payload(payload, manifest.kind)
            manifest.files = hash_payload(payload)
            manifest.digest = payload_digest(manifest.files)
            if expected is not None:
                _compare_copy(manifest.files, expected)
            mode = 0o666 & ~_umask()
            for path in payload_files(payload):
                if path.stat().st_mode & 0o777 != mode:
                    path.chmod(mode)  # safetensors writes private files; a store is shared as the user's umask says
                with open(path, "rb") as handle:
                    os.fsync(handle.fileno())
            home = self.root / manifest.kind / manifest.name
            make_durably(home)
            fsync_below(payload)  # the payload's own folder is flushed with the manifest
            with self.lock(f"{manifest.kind}.{manifest.name}"):
                manifest.version = max(_versions_in(home), default=0) + 1
                manifest.write(payload)
                target = home / f"v{manifest.version}"
                os.rename(payload, target)
                fsync_folder(home)
        except OSError as error:
            raise explain(error, self.root) or error from error
        self._staging.done(payload)
        return Artifact(target, manifest)

    def staging(self) -> Path:
        """A fresh folder on the store's file system for putting a payload together. ``commit`` or ``discard`` ends it."""
        try:
            return self._staging.new()
        except OSError as error:
            raise explain(error, self.root) or error from error

    def discard(self, folder: Path) -> None:
        """Deletes a staging folder."""
        self._staging.done(folder)

    def left_behind(self) -> Sequence[Path]:
        """Staging folders of processes that are gone."""
        return self._staging.left_behind()

    def relink(self, artifact: Artifact, name: str, **changes: Any) -> Artifact:
        """The same artifact under another name or as a further version: hard links where the file system has them, copies elsewhere.

        Args:
            changes: fields of the manifest that differ.
        """
        folder = self.staging()
        try:
            for path in payload_files(artifact.path):
                target = folder / path.relative_to(artifact.path)
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(path, target)
                except OSError:
                    shutil.copy2(path, target)
            manifest = artifact.manifest.model_copy(deep=True, update={"name": name, "created": now(), "pinned": False, **changes})
            return self.commit(folder, manifest, expected=artifact.manifest.files)
        except OSError as error:
            raise explain(error, self.root) or error from error
        finally:
            self.discard(folder)

    def set_pinned(self, artifact: Artifact, pinned: bool) -> None:
        """Keeps an artifact from gc, or lets it go again."""
        with self.lock(f"{artifact.kind}.{artifact.name}"):
            artifact.manifest.pinned = pinned
            artifact.manifest.write(artifact.path)

    def remove(self, artifact: Artifact) -> None:
        """Takes an artifact out of sight by a rename, then deletes it: a kill in between leaves nothing half-visible."""
        bin_ = self.staging()
        try:
            os.rename(artifact.path, bin_ / "removed")
        finally:
            self.discard(bin_)


def _compare_copy(copied: Sequence[FileEntry], expected: Sequence[FileEntry]) -> None:
    """Raises InputError where a copy is not what was to be copied."""
    ours, theirs = ({entry.path: entry.sha256 for entry in files} for files in (copied, expected))
    for path in sorted(ours.keys() | theirs.keys()):
        if ours.get(path) != theirs.get(path):
            how = "is missing in" if path not in ours else "came into" if path not in theirs else "has other bytes in"
            raise InputError(f"{path} {how} the copy", "something changed the files while they were copied", "run the same command again")


def _folders_in(parent: Path) -> list[Path]:
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _versions_in(home: Path) -> list[int]:
    """The numbers of the folders ``v1``, ``v2``, … in order."""
    return sorted(int(path.name[1:]) for path in _folders_in(home) if re.fullmatch("v[1-9][0-9]{0,8}", path.name))


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
