"""Artifacts in and out of a store."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from safework_cli.core.artifacts.adapters import base_of
from safework_cli.core.artifacts.external import path_artifact
from safework_cli.core.artifacts.manifest import (
    EXTERNAL,
    KINDS,
    MANIFEST,
    Artifact,
    FileEntry,
    Manifest,
    canonical_digest,
    fsync_folder,
    sha256_of,
)
from safework_cli.core.artifacts.staging import this_host
from safework_cli.core.artifacts.store import Store, now
from safework_cli.core.artifacts.verify import verify
from safework_cli.core.errors import InputError, SafeworkError
from safework_cli.core.system_errors import explain

_UNWANTED = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}


def import_folder(store: Store, path: Path, name: str | None, *, reuse: bool = False) -> Artifact:
    """Copies a folder in as an artifact. An exported one keeps its manifest, and with it its lineage and its fingerprint.

    Args:
        reuse: let a run with the same fingerprint print this artifact as "already done". The fingerprint is the word of whoever made the
            folder: nothing here can check that those settings and inputs give these bytes.

    Raises:
        InputError: the folder is not an artifact, model, verifier or dataset; it is damaged, or names what leads out of the store; it
            holds pickled weights only; it is an adapter whose base is not in the store; or it changed while it was copied.
    """
    if not path.is_dir():
        raise InputError(f"{path} is not a folder", "a model is a Hugging Face folder, a dataset a folder of Parquet", "check the path")
    source = path_artifact(path, str(path), KINDS)
    store.verify(source, thorough=True)
    base_of(store, Artifact(source.path, source.manifest))  # an adapter comes after its base
    manifest = source.manifest.model_copy(deep=True)
    wanted = manifest.files
    if manifest.stage == EXTERNAL:
        wanted = [entry for entry in wanted if Path(entry.path).suffix not in _UNWANTED]
        _refuse_links(path, wanted)
        manifest.stage, manifest.fingerprint = "import", canonical_digest({"import": source.digest})
        manifest.notes = [f"imported from the folder {path.absolute().name}"]
    manifest.created, manifest.pinned, manifest.reuse = now(), False, reuse
    manifest.name = name or manifest.name
    staging = store.staging()
    try:
        _copy(path, wanted, staging)
        return store.commit(staging, manifest, expected=wanted)
    except OSError as error:
        raise explain(error, store.root) or error from error
    finally:
        store.discard(staging)


def export_folder(artifact: Artifact, folder: Path) -> bool:
    """Copies an artifact out, manifest and all. A reader sees the whole folder or none; what a killed export left is replaced.

    Returns:
        Whether it was copied; False where the folder is its whole copy already, byte for byte.

    Raises:
        InputError: there is something else in the folder; or the artifact changed while it was copied.
    """
    if _is_whole_export(artifact, folder):
        return False
    if folder.is_symlink() or (folder.exists() and not _is_cut_export(artifact, folder)):
        raise InputError(
            f"{folder} exists and is not a whole copy of {artifact.ref}", "an export never writes over anything", "name another folder"
        )
    prefix = f".{folder.name}.exporting-{this_host()}-"
    temporary = folder.with_name(f"{prefix}{os.getpid()}")
    try:
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        for old in folder.absolute().parent.glob(f"{prefix}*"):
            if not _is_running(old.name.removeprefix(prefix)):
                shutil.rmtree(old)
        if artifact.manifest.stage == EXTERNAL:
            shutil.copytree(artifact.path, temporary)  # the hub's cache is links
        else:
            temporary.mkdir()
            _copy(artifact.path, artifact.manifest.files, temporary)
            for entry in artifact.manifest.files:
                if sha256_of(temporary / entry.path) != entry.sha256:
                    raise InputError(
                        f"{entry.path} changed while it was copied", "the copy is not what the manifest lists", "run the same command again"
                    )
            shutil.copyfile(artifact.path / MANIFEST, temporary / MANIFEST)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
        fsync_folder(folder.absolute().parent)
    except FileNotFoundError as error:
        if not (artifact.path / MANIFEST).exists():
            raise InputError(f"{artifact.ref} was deleted in the meantime", "a gc ran at the same time", "") from None
        raise error
    except SafeworkError:
        raise
    except OSError as error:
        raise explain(error) or error from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def _is_whole_export(artifact: Artifact, folder: Path) -> bool:
    """Whether a folder holds this artifact's files and no other, each with its bytes. (What was exported from outside a store has no
    manifest to compare with.)"""
    if folder.is_symlink() or not (folder / MANIFEST).is_file() or artifact.manifest.stage == EXTERNAL:
        return False
    try:
        theirs = Manifest.read(folder)
        if any(getattr(theirs, name) != getattr(artifact.manifest, name) for name in ("kind", "name", "version", "created", "digest")):
            return False
        verify(Artifact(folder, theirs), None)
    except (InputError, OSError):
        return False
    return True


def _copy(source: Path, files: Sequence[FileEntry], target: Path) -> None:
    """Copies the listed files and no other. Raises InputError for a link: it leads to what is not the artifact's."""
    _refuse_links(source, files)
    for entry in files:
        copy = target / entry.path
        copy.parent.mkdir(parents=True, exist_ok=True)
        with open(source / entry.path, "rb") as reader, open(copy, "wb") as writer:
            shutil.copyfileobj(reader, writer, 2**20)
            writer.flush()
            os.fsync(writer.fileno())


def _refuse_links(folder: Path, files: Sequence[FileEntry]) -> None:
    for entry in files:
        path = folder
        for part in Path(entry.path).parts:
            path = path / part
            if path.is_symlink():
                raise InputError(f"{path} is a symbolic link", "an artifact holds its own bytes", "replace the link by a copy of the file")


def _is_cut_export(artifact: Artifact, folder: Path) -> bool:
    """Whether a folder holds nothing but beginnings of this artifact's own files: the leftover of an interrupted export."""
    if not folder.is_dir() or artifact.manifest.stage == EXTERNAL:
        return False
    whole = {entry.path for entry in artifact.manifest.files} | {MANIFEST}
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}
    if found.keys() == whole and all(path.stat().st_size == (artifact.path / name).stat().st_size for name, path in found.items()):
        return False
    return found.keys() <= whole and all(not path.is_symlink() and _is_start_of(path, artifact.path / name) for name, path in found.items())


def _is_start_of(path: Path, whole: Path) -> bool:
    with open(path, "rb") as part, open(whole, "rb") as all_:
        while chunk := part.read(2**20):
            if all_.read(len(chunk)) != chunk:
                return False
    return True


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
