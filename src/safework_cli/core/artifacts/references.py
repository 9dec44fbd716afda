"""References to artifacts: ``[kind/]name[@v3|@latest][:subset]``, a path, or ``hf:org/name[@revision]``."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from safework_cli.core.artifacts.manifest import KINDS, LONGEST_NAME, NAME
from safework_cli.core.errors import InputError
from safework_cli.core.paths import user_path

_STORE = re.compile(rf"^(?:(?P<kind>[a-z]+)/)?(?P<name>{NAME})(?:@(?P<version>v\d+|latest))?(?::(?P<subset>{NAME}))?$")
_HUB = re.compile(rf"^hf:(?P<repo>(?:{NAME}/)?{NAME})(?:@(?P<revision>[\w./-]+))?(?::(?P<subset>{NAME}))?$")

LONGEST_FROM_PATH = 100
"""Characters that are taken from a folder's name: a stage adds its own."""


@dataclass(frozen=True, slots=True)
class StoreReference:
    name: str
    kind: str | None
    version: int | None
    """None means the latest."""
    subset: str | None


@dataclass(frozen=True, slots=True)
class HubReference:
    repo: str
    revision: str | None
    subset: str | None


@dataclass(frozen=True, slots=True)
class PathReference:
    path: Path
    subset: str | None


Reference = StoreReference | HubReference | PathReference


def parse_reference(text: str) -> Reference:
    """Reads a reference. What starts with ``.``, ``/`` or ``~`` is a path. Raises InputError where the text is none of the forms."""
    if not text.strip():
        raise InputError(
            "an empty reference",
            "the command before this one printed nothing: it failed",
            "check its exit code; `set -euo pipefail` stops a script there",
        )
    if text.startswith(("./", "../", "/", "~")) or text in (".", ".."):
        path, subset = user_path(text), None
        if not path.exists() and ":" in path.name:
            head, _, subset = text.rpartition(":")
            path = user_path(head)
        return PathReference(path, subset)
    if match := _HUB.match(text):
        return HubReference(match["repo"], match["revision"], match["subset"])
    match = _STORE.match(text)
    if not match or (match["kind"] and match["kind"] not in KINDS):
        hint = f"write hf:{text[:60]} for a hub repository, or ./{text[:60]} for a folder" if "/" in text else "safework artifacts ls"
        raise InputError(
            f"'{text[:60]}{'…' if len(text) > 60 else ''}' is not a reference",
            "the forms are [kind/]name[@v3|@latest][:subset], a path with ./ or /, and hf:org/name[@revision]",
            hint,
        )
    version = match["version"]
    return StoreReference(match["name"], match["kind"], int(version[1:]) if version and version != "latest" else None, match["subset"])


def check_name(name: str) -> str:
    """Returns an artifact name that is safe as a folder's name. Raises InputError otherwise."""
    if not re.fullmatch(NAME, name) or len(name) > LONGEST_NAME:
        raise InputError(
            f"'{name[:LONGEST_NAME]}' cannot name an artifact",
            f"a name is at most {LONGEST_NAME} letters, digits, '.', '_' and '-', and begins with a letter or digit",
            "choose another --name",
        )
    return name


def artifact_name(text: str, otherwise: str) -> str:
    """A name for an artifact from a file's or a model's: lower case, with dashes for what a reference cannot hold."""
    return re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_") or otherwise


def name_from_path(path: Path, otherwise: str) -> str:
    """The name of a folder or file, made fit for an artifact: ``Qwen2.5-7B-Instruct`` stays, ``my model`` becomes ``my-model``.

    Args:
        otherwise: what stands before a digest of the name, where nothing of it is ASCII.
    """
    name = path.absolute().name if path.is_dir() else path.stem
    ascii_ = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    fit = re.sub(r"[^a-zA-Z0-9._-]+", "-", ascii_).lstrip("-._").rstrip("-.")[:LONGEST_FROM_PATH]
    return fit or f"{otherwise}-{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:8]}"
