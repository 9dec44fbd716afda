"""What an image is, whatever its file is called: groups, duplicates, contamination and digests of suites compare images by it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from safework_cli.data.row import Image


def image_key(image: Image) -> str:
    """sha256 of an image's encoded bytes; of its path where the bytes are not embedded.

    The bytes and not the pixels: decoders of lossy formats differ by version, and a split must not depend on the machine. An image that was
    encoded again is therefore another image.
    """
    content = image["bytes"]
    return hashlib.sha256(str(image["path"]).encode() if content is None else content).hexdigest()


def image_keys(images: Sequence[Image]) -> list[str]:
    """The keys of a row's images, in order."""
    return [image_key(image) for image in images]
