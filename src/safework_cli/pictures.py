"""Pictures in rows: read from a folder, checked before they are unpacked. Imports no torch."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from safework_cli.errors import InputError
from safework_cli.rows import Image

if TYPE_CHECKING:
    from PIL import Image as Picture

MAX_PIXELS = 2**26
"""A picture of more pixels is refused before it is unpacked."""
MAX_BYTES = 64 * 2**20
TAG = "<image>"
PICTURE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"))


def open_picture(image: Image) -> Picture.Image:
    """Decodes a row's image to RGB. Raises InputError where it is no picture, or too large to unpack."""
    from PIL import Image as Picture

    content = image["bytes"]
    if content is None:
        raise InputError(
            f"the image {image['path']!r} was not embedded in its row", "rows carry the bytes of their images", "build the data again"
        )
    try:
        picture = Picture.open(io.BytesIO(content))
        if picture.width * picture.height > MAX_PIXELS:
            raise InputError(
                "an image has too many pixels", f"{picture.width} × {picture.height}; {MAX_PIXELS} are unpacked at most", "scale it down"
            )
        return picture.convert("RGB")
    except Picture.DecompressionBombError as error:
        raise InputError("an image has too many pixels", str(error), "scale it down") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError("an image cannot be read", str(error), "the data card names its row") from None


def embedded(name: str, folder: Path) -> Image:
    """A picture file with its bytes, as rows carry it.

    Args:
        name: its path below the folder.

    Raises:
        InputError: it lies elsewhere (``..``, an absolute path, a link out of the folder), is missing, too large, or no whole picture.
    """
    home = folder.resolve()
    try:
        path = (home / name).resolve()
        there = path.is_file()
    except (OSError, ValueError) as error:  # longer than a name may be, or with a NUL in it
        raise InputError("an image is missing", f"{name[:60]!r} is no file's name: {error}") from None
    if not path.is_relative_to(home):
        raise InputError("an image lies outside its folder", f"{name} leads out of {folder}")
    if not there:
        raise InputError("an image is missing", f"there is no file {name} in {folder}")
    if path.stat().st_size > MAX_BYTES:
        raise InputError("an image file is too large", f"{name} has {path.stat().st_size:,} bytes, {MAX_BYTES:,} are read at most")
    image = Image(bytes=path.read_bytes(), path=path.name)
    open_picture(image)
    return image
