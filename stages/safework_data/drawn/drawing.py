"""What the drawn set draws: something that an image shows, and a question about it."""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image as PIL

from safework_cli.data.row import Image

HELD_OUT = {"dev": 1, "heldout": 3}
"""Of twenty contents, how many only these subsets show."""


class Drawing(ABC):
    """An image by what it shows."""

    @property
    @abstractmethod
    def content(self) -> str:
        """What it shows, apart from how: drawings of one content are one group, and on one side of the split."""

    @property
    @abstractmethod
    def shows(self) -> list[str]:
        """Phrases that are true of the image."""

    @property
    @abstractmethod
    def shows_not(self) -> list[str]:
        """Phrases that are not."""

    @abstractmethod
    def thought(self, marks: Sequence[str] = ()) -> str:
        """What a worked reply says of it first.

        Args:
            marks: a word after each thing that is listed, which may be empty.
        """

    @abstractmethod
    def draw(self, size: int) -> PIL.Image:
        """The image, ``size`` pixels wide and high."""

    @property
    def group(self) -> str:
        return f"drawn-{_digest(self.content)[:16]}"

    @property
    def side(self) -> str:
        """ "train", "dev" or "heldout", by the content only: what is held out is so under every seed."""
        place = int(_digest(self.content)[-8:], 16) % 20
        for side, share in HELD_OUT.items():
            if place < share:
                return side
            place -= share
        return "train"


class Question(NamedTuple):
    """A question about a drawing.

    Attributes:
        worked: what a worked reply says after the drawing's own thought.
        marks: what its list says of each thing.
    """

    drawing: Drawing
    text: str
    worked: str = ""
    marks: Sequence[str] = ()


def encoded(image: PIL.Image, name: str) -> Image:
    """The image as rows carry it: PNG bytes, named by their sha256."""
    file = io.BytesIO()
    image.save(file, "PNG")
    content = file.getvalue()
    return Image(bytes=content, path=f"{name}-{hashlib.sha256(content).hexdigest()[:16]}.png")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
