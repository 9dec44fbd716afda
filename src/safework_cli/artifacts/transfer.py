"""Artifacts in and out of a store."""

from __future__ import annotations

import shutil
from pathlib import Path

from safework_cli.artifacts.external import path_artifact
from safework_cli.artifacts.manifest import MANIFEST, Artifact, canonical_digest, payload_files
from safework_cli.artifacts.store import Store, now
from safework_cli.errors import InputError
from safework_cli.stage import KINDS

_UNWANTED = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}


def import_folder(store: Store, path: Path, name: str | None) -> Artifact:
    """Copies a folder in as an artifact. An exported one keeps its manifest, and with it its lineage and its fingerprint.

    Raises:
        InputError: the folder is no artifact, model, verifier or dataset; it is damaged; or it holds pickled weights alone.
    """
    if not path.is_dir():
        raise InputError(f"{path} is not a folder", "a model is a Hugging Face folder, a dataset a folder of Parquet", "check the path")
    source = path_artifact(path, str(path), KINDS)
    if (path / MANIFEST).exists():
        store.verify(source, thorough=True)
    staging = store.staging()
    for file in payload_files(path):
        if file.suffix in _UNWANTED or any(part.startswith(".") for part in file.relative_to(path).parts):
            continue
        target = staging / file.relative_to(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    manifest = source.manifest.model_copy(deep=True)
    if not (path / MANIFEST).exists():
        manifest.stage, manifest.fingerprint = "import", canonical_digest({"import": source.digest})
        manifest.notes = [f"imported from the folder {path.name}"]
    manifest.created, manifest.pinned = now(), False
    manifest.name = name or manifest.name
    return store.commit(staging, manifest)


def export_folder(artifact: Artifact, folder: Path) -> None:
    """Copies an artifact out, manifest and all. Raises InputError where the folder exists."""
    if folder.exists():
        raise InputError(f"{folder} exists", "an export never writes over anything", "name another folder")
    shutil.copytree(artifact.path, folder)
