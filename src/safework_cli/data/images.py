"""Images in rows: read from a folder, checked before they are unpacked. Imports no torch."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safework_cli.core.errors import InputError
from safework_cli.data.row import Image

if TYPE_CHECKING:
    from PIL import Image as PIL

MAX_PIXELS = 2**26
"""An image of more pixels is refused before it is unpacked."""
MAX_ASPECT = 200
"""The longer side by the shorter one, at most: Qwen's processors refuse more, and the others squeeze such a strip into a square."""
MAX_BYTES = 64 * 2**20
TAG = "<image>"
IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"))
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded, whatever a file is called. Pillow would try all it knows: an EPS named cat.png starts Ghostscript."""
_ORIENTATION, _FIRST_TURNED = 0x0112, 5
"""The EXIF tag, and the first of its values (5 to 8) that exchange width and height."""
_PNG_TURNED = (b"eXIf", b"Raw profile type", b"tiff:Orientation")
"""A PNG without these bytes has no orientation."""


def open_image(image: Image) -> PIL.Image:
    """Decodes a row's image to 8-bit RGB, the way up that its EXIF says, with what is transparent in white: black text on a transparent
    background stays readable.

    Raises:
        InputError: the file has none of the ``FORMATS``, is broken, has several frames, too many pixels, or is a strip longer than
            ``MAX_ASPECT`` times its width. The error names the file.
    """
    from PIL import ImageOps

    with _opened(image) as opened:
        upright = _eight_bits(ImageOps.exif_transpose(opened))
        return _on_white(upright) if upright.has_transparency_data else upright.convert("RGB")


def image_size(image: Image) -> tuple[int, int]:
    """Width and height of what ``open_image`` would return, from the file's header: nothing is decoded.

    Raises:
        InputError: as ``open_image``, as far as the header shows.
    """
    with _opened(image) as opened:
        # A PNG keeps its EXIF after the pixels: Pillow decodes them to look for it. A TIFF is turned as it is opened.
        searched = opened.format not in ("PNG", "TIFF") or (opened.format == "PNG" and any(mark in _content(image) for mark in _PNG_TURNED))
        turned = searched and opened.getexif().get(_ORIENTATION, 1) >= _FIRST_TURNED
        return (opened.height, opened.width) if turned else opened.size


@contextmanager
def _opened(image: Image) -> Iterator[PIL.Image]:
    """The image with its header read and checked. Whatever a decoder raises inside becomes an InputError that names the file."""
    from PIL import Image as PIL
    from PIL import UnidentifiedImageError

    content, name = _content(image), repr(image["path"]) if image["path"] else "of a row"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about broken tags that do not matter
            opened = PIL.open(io.BytesIO(content), formats=FORMATS)
            width, height = opened.size
            if width * height > MAX_PIXELS:
                why = f"{width} × {height}; {MAX_PIXELS} are unpacked at most"
                raise InputError(f"the image {name} has too many pixels", why, "scale it down")
            if max(width, height) > MAX_ASPECT * min(width, height):
                why = f"{width} × {height}; one side may be {MAX_ASPECT} times the other, vision models refuse or distort more"
                raise InputError(f"the image {name} is too narrow", why, "cut it or pad it, or leave its row out")
            if getattr(opened, "is_animated", False) and opened.format != "MPO":  # an MPO is a JPEG with previews after it
                why = "vision models here read one still image, and which frame or page is meant cannot be known"
                raise InputError(f"the image {name} has several frames", why, "save the frame that is meant as PNG, or leave its row out")
            yield opened
    except InputError:
        raise
    except MemoryError:
        raise
    except PIL.DecompressionBombError as error:
        raise InputError(f"the image {name} has too many pixels", str(error), "scale it down") from None
    except UnidentifiedImageError:
        why = f"it is none of {', '.join(FORMATS)}"
        raise InputError(f"the image {name} cannot be read", why, "convert it, or leave its row out") from None
    except Exception as error:  # decoders meet broken bytes with struct.error, KeyError, zlib.error, EOFError, …
        why = f"{type(error).__name__}: {error}"
        raise InputError(f"the image {name} cannot be read", why, "save it again, or leave its row out") from None


def _content(image: Image) -> bytes:
    content = image["bytes"]
    if content is None:
        raise InputError(
            f"the image {image['path']!r} was not embedded in its row", "rows carry the bytes of their images", "build the data again"
        )
    return content


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


def _on_white(opened: PIL.Image) -> PIL.Image:
    from PIL import Image as PIL

    return PIL.alpha_composite(PIL.new("RGBA", opened.size, "white"), opened.convert("RGBA")).convert("RGB")


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
