"""The text in a prompt's images, for judges: an image can ask for what the words next to it do not say.

Text is read by RapidOCR (Apache-2.0; its wheel holds the models, so that nothing is downloaded), in the optional extra ``ocr``. Weighed:
``rapidocr-onnxruntime``, its predecessor, which is no longer developed; EasyOCR and docTR, which download models; Tesseract, a system
package. Other versions of its models may read other words: a verifier's figures hold for the version that they were measured with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from typing import Any

from safework_cli.core.errors import ConfigError
from safework_cli.data.image_content import image_key
from safework_cli.data.images import TAG, open_image
from safework_cli.data.row import Image, Message
from safework_cli.verifiers.contract import Exchange
from safework_cli.verifiers.spec import LabelSpec

KEPT_TEXTS = 4096
"""Images whose text stays in memory: a group of replies shares its prompt's."""
NEEDED = ("rapidocr", "onnxruntime")
_READ: dict[str, str] = {}


def require_reader() -> None:
    """Raises ConfigError where what reads text in images is not installed."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"the text in images cannot be read: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed",
            "this judge reads it (read_image_text)",
            "pip install 'safework[ocr]'",
        )


def text_of(image: Image) -> str:
    """The text in an image, line by line from the top; empty where there is none.

    Raises:
        ConfigError: as ``require_reader``.
        InputError: the image cannot be opened.
    """
    key = image_key(image)
    if key not in _READ:
        import numpy as np

        found = _reader()(np.asarray(open_image(image))[:, :, ::-1])  # blue first
        texts: Sequence[str] = found.txts if found.txts is not None else ()
        boxes = found.boxes if found.boxes is not None else ()
        if len(_READ) >= KEPT_TEXTS:
            _READ.pop(next(iter(_READ)))
        _READ[key] = "\n".join(in_reading_order([(text, box) for text, box in zip(texts, boxes, strict=True)]))
    return _READ[key]


def in_reading_order(found: Sequence[tuple[str, Any]]) -> list[str]:
    """Texts by line from the top, within a line from the left.

    Args:
        found: a text with the four corners of its box, (4, 2) in pixels. Boxes share a line where the middle of one is within the other.
    """
    lines: list[list[tuple[float, float, float, str]]] = []
    for text, box in sorted(found, key=lambda each: float(min(y for _, y in each[1]))):
        left, top = (float(min(corner[axis] for corner in box)) for axis in (0, 1))
        bottom = float(max(y for _, y in box))
        middle = (top + bottom) / 2
        line = next((line for line in lines if line[0][1] <= middle <= line[0][2]), None)
        if line is None:
            lines.append([(left, top, bottom, text)])
        else:
            line.append((left, top, bottom, text))
    return [" ".join(text for *_, text in sorted(line)) for line in lines]


def as_read(spec: LabelSpec, exchange: Exchange, *, has_vision: bool) -> Exchange:
    """The exchange as a judge sees it: with the text of its images after the user's words, where its specification asks for that.

    Args:
        has_vision: whether the judge sees the images too; they are left out otherwise.
    """
    if not (spec.read_image_text and exchange.images):
        return exchange
    texts = [text_of(image) for image in exchange.images]
    notes = [
        f"[text in image {number}: {text}]" if text else f"[image {number} holds no text]" for number, text in enumerate(texts, start=1)
    ]
    messages = [message if has_vision else Message(role=message["role"], content=message["content"].replace(TAG, "").strip())
                for message in exchange.messages]  # fmt: skip
    last = max((place for place, message in enumerate(messages) if message["role"] == "user"), default=None)
    if last is not None:
        messages[last] = Message(role="user", content="\n".join(filter(None, [messages[last]["content"], *notes])))
    return replace(exchange, messages=messages, images=exchange.images if has_vision else ())


@cache
def _reader() -> Any:
    require_reader()
    from rapidocr import RapidOCR

    return RapidOCR(params={"Global.log_level": "critical"})
