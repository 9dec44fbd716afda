"""Images for vLLM, which encodes them itself: what it is given, and whether it computed on the tokens that a trainer computes on.

vLLM's processor expands the mark that stands for an image, and would expand placeholders again: it is given the short form of a prompt
(``EncodedImages.short``). Which tokens it made of it comes back with each reply and is compared with ours.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from typing import Any

from safework_cli.core.errors import InputError
from safework_cli.data.images import open_image
from safework_cli.data.row import Image
from safework_cli.models.vision import EncodedImages

MAX_SENT_BYTES = 64 * 2**20
"""Of one image as it is sent to a server."""


def processor_options(processor: Any) -> dict[str, Any]:
    """vLLM's ``mm_processor_kwargs``: the bounds of pixels that a stage set in the model's processor, which its folder does not hold."""
    bounds = getattr(processor, "bounds", None) or {}
    return {name: value for name, value in bounds.items() if value is not None}


def name_of(image: Image) -> str:
    """By which vLLM knows an image that it was given before: of the bytes that the row holds."""
    return hashlib.blake2b(image["bytes"] or b"", digest_size=16).hexdigest()


def in_process(vision: EncodedImages) -> dict[str, Any]:
    """The part of a prompt for vLLM in this process that holds its images."""
    names = [name_of(image) for image in vision.images]
    return {"multi_modal_data": {"image": [open_image(image) for image in vision.images]}, "multi_modal_uuids": {"image": names}}


def over_http(vision: EncodedImages, *, sent: bool) -> list[dict[str, Any]]:
    """The part of a request to a server that holds a prompt's images: as PNG of what ``open_image`` returns, the way up that their EXIF
    says and without transparency; by name only where they were sent before.

    Raises:
        InputError: an image is too large to be sent.
    """
    return [{"type": "image_url", "url": None if sent else _png(image), "uuid": name_of(image)} for image in vision.images]


def _png(image: Image) -> str:
    written = io.BytesIO()
    open_image(image).save(written, "PNG", compress_level=1)
    if (size := written.tell()) > MAX_SENT_BYTES:
        what = f"the image {image['path'] or 'of a row'} is {size:,} bytes as PNG"
        raise InputError(what, f"{MAX_SENT_BYTES:,} are sent to a vLLM server at most", "scale it down, or engine.kind=hf")
    return f"data:image/png;base64,{base64.b64encode(written.getbuffer()).decode()}"


def refuse_other_tokens(
    ours: Sequence[int], theirs: Sequence[int], placeholders: Sequence[int], where: str, options: dict[str, Any]
) -> None:
    """Refuses a reply to other tokens than those of the prompt.

    Args:
        placeholders: the tokens that stand for a feature of an image.
        where: what computed the reply, for the message.
        options: see ``processor_options``.

    Raises:
        InputError: the two differ; it names the number of placeholders and the place of the first one, on both sides.
    """
    if list(ours) == list(theirs):
        return
    raise InputError(
        f"{where} computed on other tokens than those of the prompt: {_described(theirs, placeholders)} in place of "
        f"{_described(ours, placeholders)}",
        "its own processor encodes the images; what it sampled would not be what is trained or judged",
        "engine.kind=hf; on a server: start it with the model whose processor is used here"
        + (f", and -- --mm-processor-kwargs '{json.dumps(options)}'" if options else ""),
    )


def _described(ids: Sequence[int], placeholders: Sequence[int]) -> str:
    places = [place for place, token in enumerate(ids) if token in placeholders]
    first = f", the first at {places[0]}" if places else ""
    return f"{len(ids)} tokens with {len(places)} image tokens{first}"
