"""What settings of ``data build`` and ``data index`` share: files that they name, formats, names of subsets. Torch-free."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator

from safework_cli.core.artifacts.manifest import sha256_of
from safework_cli.core.errors import InputError, nearest
from safework_cli.core.paths import user_path

Format = Literal["csv", "jsonl", "json", "parquet"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def expand(path: str) -> str:
    """Fills in ``~`` and environment variables. Raises InputError that names an unset or empty one."""
    for plain, braced in _VARIABLE.findall(path):
        name = plain or braced
        if not os.environ.get(name):
            state, why = "empty" if name in os.environ else "not set", "a path with a hole in it would point somewhere else"
            raise InputError(f"{path}: the environment variable {name} is {state}", why, f"export {name}=/path/to/folder")
    return str(user_path(os.path.expandvars(path)))


def matching_files(pattern: str) -> list[Path]:
    """The files that a path or a glob names, in name order. Raises InputError where there are none, or a variable is unset."""
    expanded = pattern if user_path(pattern).is_file() else expand(pattern)  # a real name may hold a $
    path = Path(expanded)
    if path.exists():  # before the glob: a real name may hold brackets
        if not (path.is_file() or path.is_dir()):
            raise InputError(f"{path} is a pipe or a device, not a file", "it is read twice", "save it to a file first")
        if path.is_dir():
            raise InputError(f"{path} is a folder, not a file", "", f"name its files: {path}/*.jsonl")
        return [path]
    if not any(mark in expanded for mark in "*?["):
        near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise InputError(f"{path} does not exist{near}", "" if path.parent.is_dir() else f"its folder {path.parent} does not exist either")
    root = Path(path.anchor) if path.is_absolute() else Path()
    found = sorted(p for p in root.glob(str(path.relative_to(root) if path.is_absolute() else path)) if p.is_file())
    if not found:
        raise InputError(f"no file matches {expanded}", "", f"ls {path.parent}")
    return [user_path(path) for path in found]


def checked_name(value: str | None) -> str | None:
    """A subset's or a source's name. Raises ValueError where it could not name a folder."""
    if value is not None and not _NAME.fullmatch(value):
        raise ValueError(f"'{value[:60]}' is not a name: up to 128 letters, digits, '_', '-' and '.', a letter or digit first")
    return value


SubsetName = Annotated[str, AfterValidator(checked_name)]
"""A subset's name, which is a folder's as well."""


def starter_files() -> list[Path]:
    """The parts and the code that the starter set is made from: a new release may change its rows under the same settings."""
    return sorted(path for path in (Path(__file__).parent / "starter").rglob("*") if path.suffix in (".py", ".yaml"))


def drawing_files() -> list[Path]:
    """The code that the drawn set is made by, in addition to ``starter_files``."""
    return sorted((Path(__file__).parent / "drawn").glob("*.py"))


def digest_of(files: Iterable[Path]) -> str:
    """sha256 over the contents of files, in order."""
    return hashlib.sha256("".join(sha256_of(path) for path in files).encode()).hexdigest()


def refuse_missing(missing: list[str], have: list[str], where: str) -> None:
    """Raises InputError with the nearest name for a column that a table does not have."""
    if missing:
        hint = nearest(missing[0], have)
        raise InputError(f"{where}: no column '{missing[0]}'{hint}", f"its columns: {listed(have)}", "correct columns: in the recipe")


def listed(names: Sequence[str], most: int = 40) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(name[:60] for name in names[:most]) + more
