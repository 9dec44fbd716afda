"""The folder of the model that an adapter changes, from the adapter's own folder: what reads models is given folders."""

from __future__ import annotations

from pathlib import Path

from safework_cli.core.artifacts.adapters import base_of, read_base
from safework_cli.core.artifacts.manifest import MANIFEST, Artifact, Manifest
from safework_cli.core.artifacts.references import PathReference, parse_reference
from safework_cli.core.artifacts.store import Store
from safework_cli.core.errors import InputError


def base_folder(folder: Path) -> Path | None:
    """The folder of the model that an adapter in a store changes; None where the folder holds a whole model.

    Raises:
        InputError: the base is not there, or the adapter is not in a store.
    """
    base = read_base(folder)
    if base is None:
        return None
    place = parse_reference(base.ref)
    if isinstance(place, PathReference) and place.path.is_dir():
        return place.path  # its bytes were compared when the adapter's reference was resolved
    folder = Path(folder).absolute()
    adapter = Artifact(folder, Manifest.read(folder)) if (folder / MANIFEST).exists() else None
    if adapter is None or adapter.ref != f"{folder.parent.parent.name}/{folder.parent.name}@{folder.name}":
        raise InputError(
            f"{folder} holds an adapter of {base.ref}, and is not in a store",
            "an adapter is loaded with its base, which is looked up in the adapter's own store",
            f"safework artifacts import {folder}",
        )
    found = base_of(Store(folder.parents[2]), adapter)
    assert found is not None
    return found.path
