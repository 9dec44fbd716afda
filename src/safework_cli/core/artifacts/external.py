"""Inputs that do not live in the store: folders and files on disk, and hub repositories pinned to a commit."""

from __future__ import annotations

from pathlib import Path

from safework_cli.core.artifacts.adapters import refuse_adapter
from safework_cli.core.artifacts.manifest import (
    EXTERNAL,
    MANIFEST,
    Artifact,
    FileEntry,
    Manifest,
    canonical_digest,
    entry_of,
    payload_digest,
)
from safework_cli.core.artifacts.references import HubReference, name_from_path
from safework_cli.core.errors import InputError, nearest

_DATASET_SUFFIXES = (".parquet", ".jsonl", ".csv")
HUB_SECONDS = 20
RULE_PREFIX = "rule:"
"""Of a reference to a rule, which is part of a program and not of the store (``verifiers.rules.inputs``)."""


def external_manifest(kind: str, name: str, files: list[FileEntry], digest: str) -> Manifest:
    """The manifest of an input that is not in the store."""
    return Manifest(
        kind=kind, name=name, version=0, created="", stage=EXTERNAL, stage_version=0, fingerprint="", files=files, digest=digest
    )


def kind_of_folder(folder: Path) -> str | None:
    """What a folder without a manifest holds: "verifier", "model", "dataset" or None."""
    if (folder / "verifier.json").exists():
        return "verifier"
    if (folder / "config.json").exists():
        return "model"
    if any(path.suffix in _DATASET_SUFFIXES for path in folder.rglob("*")):
        return "dataset"
    return None


def path_artifact(path: Path, reference: str, kinds: tuple[str, ...]) -> Artifact:
    """An artifact folder copied out of a store, or any folder or Parquet file that a slot can take."""
    if not path.exists():
        near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise InputError(
            f"{reference} does not exist{near}",
            "",
            f"is it meant to be hf:{reference}, or an artifact's name?" if not reference.startswith(("/", ".", "~")) else "check the path",
        )
    if path.is_dir() and (path / MANIFEST).exists():
        return Artifact(path.absolute(), Manifest.read(path), external=str(path.absolute()))
    if path.is_dir() and "dataset" not in kinds:
        refuse_adapter(path)
    if not (path.is_file() or path.is_dir()):
        raise InputError(f"{reference} is a pipe or a device, not a file", "", "save what it gives to a file first")
    if kinds == ("dataset",) and path.is_file() and path.suffix not in _DATASET_SUFFIXES:
        raise InputError(
            f"{reference} is not a file of rows by its name",
            "rows are read of .jsonl, .ndjson, .json, .csv and .parquet, and of these with .gz",
            f"rename it, or name its format: safework data build sources='[{{kind: file, path: {reference}, format: jsonl}}]'",
        )
    kind = kind_of_folder(path) if path.is_dir() else ("dataset" if path.suffix == ".parquet" else None)
    if kind is None:
        hint = (
            f"make rows of it: safework data build sources='[{{kind: file, path: {reference}, subset: sft, task: general, "
            "columns: {prompt: COLUMN, reply: COLUMN}}]', then name what it prints, as in data=NAME:sft"
            if path.suffix in _DATASET_SUFFIXES and "dataset" in kinds
            else "safework artifacts ls"
        )
        raise InputError(f"{reference} is not a {' or '.join(kinds)}", "it has no manifest.json, no model and no Parquet", hint)
    files = (
        [path]
        if path.is_file()
        else sorted(p for p in path.rglob("*") if p.is_file() and not any(part.startswith(".") for part in p.relative_to(path).parts))
    )
    base = path.parent if path.is_file() else path
    entries = [entry_of(p, base) for p in files]
    name = name_from_path(path, otherwise=kind)
    return Artifact(base.absolute(), external_manifest(kind, name, entries, payload_digest(entries)), external=str(path.absolute()))


FileStates = dict[str, tuple[int, int, int] | None]
"""Path → size, time of change in nanoseconds and inode of a file; None for one that is not there."""


def file_states(artifact: Artifact) -> FileStates:
    """Of the files of an artifact that is outside the store. Empty for what is in the store, and for a hub's snapshot, which is pinned by
    its commit."""
    states: FileStates = {}
    for entry in artifact.manifest.files if artifact.external else ():
        try:
            status = (artifact.path / entry.path).stat()
            states[entry.path] = (status.st_size, status.st_mtime_ns, status.st_ino)
        except OSError:
            states[entry.path] = None
    return states


def changed_files(artifact: Artifact, before: FileStates) -> list[str]:
    """The files of an artifact outside the store whose content differs from its manifest.

    Args:
        before: ``file_states`` when the manifest was made; a file with the same state is not read again.
    """
    now = file_states(artifact)
    digests = {entry.path: entry.sha256 for entry in artifact.manifest.files}
    differ = [name for name in now if now[name] != before.get(name)]
    return [name for name in differ if now[name] is None or entry_of(artifact.path / name, artifact.path).sha256 != digests[name]]


def hub_artifact(reference: HubReference, text: str, kinds: tuple[str, ...]) -> Artifact:
    """Downloads (or finds in the local cache) a repository, pinned to a commit. Raises InputError where the hub cannot be reached."""
    import huggingface_hub as hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError

    if "model" not in kinds:
        raise InputError(
            f"{text} is a hub model",
            f"a {' or '.join(kinds)} is wanted here",
            "bring hub datasets in through `safework data build` (a source of kind hub)",
        )
    away = (
        "on a machine with network: `safework models pull "
        + text
        + "`, then `safework artifacts export` there and `safework artifacts import` here"
    )
    try:
        folder = hub.snapshot_download(
            reference.repo,
            revision=reference.revision,
            etag_timeout=HUB_SECONDS,
            ignore_patterns=["*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx", "*.h5", "*.msgpack"],
        )
    except RepositoryNotFoundError:
        raise InputError(
            f"the hub has no repository '{reference.repo}', or you have no access to it",
            "",
            "check the name; for a private one: `hf auth login`",
        ) from None
    except HFValidationError as error:
        raise InputError(f"'{reference.repo}' is not a repository name", str(error)) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, OSError) as error:
        raise InputError(
            f"{text} cannot be fetched", f"the hub is out of reach ({type(error).__name__}) and the local cache does not hold it", away
        ) from None
    commit = Path(folder).name
    pinned = f"hf:{reference.repo}@{commit}"
    return Artifact(
        Path(folder), external_manifest("model", reference.repo.rsplit("/", 1)[-1], [], canonical_digest(pinned)), external=pinned
    )
