"""Images in rows: read from a folder, checked before they are unpacked. Imports no torch."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from safework_cli.core.errors import InputError
from safework_cli.data.row import Image

if TYPE_CHECKING:
    from PIL import Image as PIL

MAX_PIXELS = 2**26
"""An image of more pixels is refused before it is unpacked."""
MAX_BYTES = 64 * 2**20
TAG = "<image>"
IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"))
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded, whatever a file is called. Pillow would try all it knows: an EPS named cat.png starts Ghostscript."""


def open_image(image: Image) -> PIL.Image:
    """Decodes a row's image to RGB, the way up that its EXIF says. Raises InputError where it has none of the ``FORMATS``, is broken,
    or is too large to unpack."""
    from PIL import Image as PIL
    from PIL import ImageOps, UnidentifiedImageError

    content = image["bytes"]
    if content is None:
        raise InputError(
            f"the image {image['path']!r} was not embedded in its row", "rows carry the bytes of their images", "build the data again"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of broken tags that do not matter
            opened = PIL.open(io.BytesIO(content), formats=FORMATS)
            if opened.width * opened.height > MAX_PIXELS:
                why = f"{opened.width} × {opened.height}; {MAX_PIXELS} are unpacked at most"
                raise InputError("an image has too many pixels", why, "scale it down")
            return _eight_bits(ImageOps.exif_transpose(opened)).convert("RGB")
    except InputError:
        raise
    except PIL.DecompressionBombError as error:
        raise InputError("an image has too many pixels", str(error), "scale it down") from None
    except UnidentifiedImageError:
        raise InputError("an image cannot be read", f"it is none of {', '.join(FORMATS)}", "convert it, or leave the row out") from None
    except Exception as error:  # decoders meet broken bytes with struct.error, KeyError, zlib.error, EOFError, …
        raise InputError("an image cannot be read", f"{type(error).__name__}: {error}", "the data card names its row") from None


def _eight_bits(opened: PIL.Image) -> PIL.Image:
    """A grey image of 16 bits a pixel, scaled to 8: Pillow's own conversion cuts what lies above 255."""
    if not opened.mode.startswith(("I", "F")):
        return opened
    import numpy as np
    from PIL import Image as PIL

    values = np.asarray(opened, dtype=np.float64)
    if opened.mode == "F" or values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise ValueError(f"pixels of the mode {opened.mode} have no range of their own")
    return PIL.fromarray((values * (255 / 65535)).round().astype(np.uint8), "L")


def embedded(name: str, folder: Path) -> Image:
    """An image file with its bytes, as rows carry it.

    Args:
        name: its path below the folder.

    Raises:
        InputError: it is elsewhere (``..``, an absolute path, a link out of the folder), is missing, too large, or not a complete image.
    """
    home = folder.resolve()
    try:
        path = (home / name).resolve()
        there = path.is_file()
    except (OSError, ValueError) as error:  # longer than a name may be, or with a NUL in it
        raise InputError("an image is missing", f"{name[:60]!r} cannot name a file: {error}") from None
    if not path.is_relative_to(home):
        raise InputError("an image is outside its folder", f"{name} leads out of {folder}")
    if not there:
        raise InputError("an image is missing", f"{folder} has no file {name}")
    if path.stat().st_size > MAX_BYTES:
        raise InputError("an image file is too large", f"{name} has {path.stat().st_size:,} bytes, {MAX_BYTES:,} are read at most")
    image = Image(bytes=path.read_bytes(), path=path.name)
    open_image(image)
    return image
