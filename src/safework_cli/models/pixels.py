"""Bounds for the size of images, set in a model's processor. Imports no torch."""

from __future__ import annotations

from math import isqrt
from typing import Any

from pydantic import Field, model_validator

from safework_cli.core.errors import ConfigError
from safework_cli.core.settings import Settings


class PixelBounds(Settings):
    """Bounds for the size of encoded images; the model's processor decides where null. An image's tokens grow with its pixels or tiles.
    They are saved in the trained model's processor files, so later stages and other programs use them, too."""

    min_pixels: int | None = Field(None, ge=1, le=2**26)
    """Smaller images are enlarged to this number of pixels (Qwen-VL)."""
    max_pixels: int | None = Field(None, ge=784, le=2**26)
    """Larger images are reduced to this number of pixels at most (Qwen-VL, Pixtral): 1280 tokens of Qwen2.5-VL are 1003520 pixels."""
    max_tiles: int | None = Field(None, ge=1, le=256)
    """Tiles that an image is divided into at most, its overview not counted (InternVL, Idefics3, SmolVLM)."""

    @model_validator(mode="after")
    def _in_order(self) -> PixelBounds:
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels={self.min_pixels} is above max_pixels={self.max_pixels}")
        return self

    @property
    def given(self) -> dict[str, int]:
        """The bounds that are set."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


_PIXELS = ("Qwen2VLProcessor", "Qwen2_5_VLProcessor", "Qwen3VLProcessor")
_EDGE = ("PixtralProcessor",)
_TILES = ("InternVLProcessor",)
_SQUARES = ("Idefics3Processor", "SmolVLMProcessor")
TAKES = dict.fromkeys(_PIXELS, ("min_pixels", "max_pixels")) | dict.fromkeys(_EDGE, ("max_pixels",))
TAKES |= dict.fromkeys((*_TILES, *_SQUARES), ("max_tiles",))
"""Processor class → the bounds that it takes. The others have images of one size, or tiles that their weights' configuration fixes."""


def set_bounds(processor: Any, bounds: PixelBounds) -> dict[str, Any]:
    """Sets the bounds in a processor. Returns what changes in its image processor's file.

    Raises:
        ConfigError: a bound that has no effect on this family's images, or that crosses the processor's own.
    """
    name, images = type(processor).__name__, processor.image_processor
    for bound in bounds.given:
        if bound not in TAKES.get(name, ()):
            takes = " and ".join(TAKES.get(name, ())) or "none of the bounds"
            raise ConfigError(f"{bound} has no effect on this model's images", f"its {name} takes {takes}", f"leave {bound} out")
    if not bounds.given:
        return {}
    if name in _TILES:
        images.max_patches, images.min_patches = bounds.max_tiles, min(images.min_patches, bounds.max_tiles or images.min_patches)
        return {"max_patches": images.max_patches, "min_patches": images.min_patches}
    size = {edge: value for edge, value in dict(images.size).items() if value is not None}
    if name in _PIXELS:
        size["shortest_edge"] = bounds.min_pixels or size["shortest_edge"]
        size["longest_edge"] = bounds.max_pixels or size["longest_edge"]
        if size["shortest_edge"] > size["longest_edge"]:
            why = f"smaller images would be enlarged to {size['shortest_edge']} pixels, and larger ones reduced to {size['longest_edge']}"
            raise ConfigError("the bounds of pixels cross the processor's own", why, "set both, min_pixels and max_pixels")
    elif name in _EDGE:
        size["longest_edge"] = min(size["longest_edge"], isqrt(bounds.max_pixels or size["longest_edge"] ** 2))
    else:
        tile = images.max_image_size["longest_edge"]
        size["longest_edge"] = min(size["longest_edge"], isqrt(bounds.max_tiles or 1) * tile)
    images.size = type(images.size)(**size)
    return {"size": size, "min_pixels": None, "max_pixels": None} if name in _PIXELS else {"size": size}
