"""References to artifacts: ``[kind/]name[@v3|@latest][:subset]``, a path, or ``hf:org/name[@revision]``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from safework_cli.errors import InputError
from safework_cli.stage import KINDS

NAME = r"[a-zA-Z0-9][a-zA-Z0-9._-]*"
_STORE = re.compile(rf"^(?:(?P<kind>[a-z]+)/)?(?P<name>{NAME})(?:@(?P<version>v\d+|latest))?(?::(?P<subset>{NAME}))?$")
_HUB = re.compile(rf"^hf:(?P<repo>(?:{NAME}/)?{NAME})(?:@(?P<revision>[\w./-]+))?(?::(?P<subset>{NAME}))?$")


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
        path, subset = Path(text).expanduser(), None
        if not path.exists() and ":" in path.name:
            head, _, subset = text.rpartition(":")
            path = Path(head).expanduser()
        return PathReference(path, subset)
    if match := _HUB.match(text):
        return HubReference(match["repo"], match["revision"], match["subset"])
    match = _STORE.match(text)
    if not match or (match["kind"] and match["kind"] not in KINDS):
        hint = f"write hf:{text} for a hub repository, or ./{text} for a folder" if "/" in text else "safework artifacts ls"
        raise InputError(
            f"'{text}' is not a reference",
            "the forms are [kind/]name[@v3|@latest][:subset], a path with ./ or /, and hf:org/name[@revision]",
            hint,
        )
    version = match["version"]
    return StoreReference(match["name"], match["kind"], int(version[1:]) if version and version != "latest" else None, match["subset"])


def check_name(name: str) -> str:
    """Returns an artifact name that is safe as a folder's name. Raises InputError otherwise."""
    if not re.fullmatch(NAME, name):
        raise InputError(
            f"'{name}' cannot name an artifact",
            "a name is letters, digits, '.', '_' and '-', and begins with a letter or digit",
            "choose another --name",
        )
    return name


def artifact_name(text: str, otherwise: str) -> str:
    """A name for an artifact from a file's or a model's: lower case, with dashes for what a reference cannot hold."""
    return re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_") or otherwise
