"""Paths as people type them."""

from __future__ import annotations

from pathlib import Path

from safework_cli.core.errors import InputError

MAX_NAME_BYTES = 255
"""Of a file's or a folder's name, on every file system in use."""
MAX_PATH_BYTES = 4_000


def user_path(text: str | Path) -> Path:
    """A path with ``~`` filled in.

    Raises:
        InputError: no file system could hold the path (a name over 255 bytes, a NUL), its bytes are not UTF-8 (which manifests and journals
            are written in), or it begins with the home of a user who is unknown here.
    """
    path = Path(text)
    if not is_utf8(str(path)):
        do = "rename the file or the folder: mv or convmv -f LATIN1 -t UTF-8 --notest"
        raise InputError(f"the name {str(path)!r} is not UTF-8", "manifests are, and name the files that were read", do)
    if "\0" in str(path):
        raise InputError(f"{str(path)!r} is not a path: it contains a NUL", "", "check what the command line was made from")
    long = next((part for part in path.parts if len(part.encode()) > MAX_NAME_BYTES), None)
    if long is not None:
        why = f"{long[:40]}… has {len(long.encode()):,} bytes, a file's name {MAX_NAME_BYTES} at most"
        raise InputError("the path holds a name that is too long", why, "check what was typed: is it a text and not a path?")
    if len(str(path).encode()) > MAX_PATH_BYTES:
        raise InputError("the path is too long", f"{len(str(path)):,} characters: {str(path)[:40]}…", "check what was typed")
    try:
        return path.expanduser()
    except RuntimeError:
        raise InputError(f"the user '{path.parts[0][1:]}' is unknown on this machine", f"{path} begins with that user's home") from None


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8: names of other bytes reach Python with lone surrogates in them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
