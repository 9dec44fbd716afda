"""How many patches and tokens an image of a size becomes, by a model's settings alone: no processor is loaded.

The counts of Qwen-VL, InternVL, Pixtral and of families whose images have one size are exact; those of LLaVA-Next, OneVision and Idefics3
are about right: which tiles a processor takes, and what it cuts off again, depends on more than the size (the tests say how far off).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, isqrt, sqrt
from pathlib import Path
from typing import Any

from safework_cli.core.artifacts.adapters import read_base
from safework_cli.core.artifacts.bases import base_folder
from safework_cli.core.plan.config_shape import Tower, config_of, first, json_of, language_of

_FILES = ("processor_config.json", "preprocessor_config.json")
_TOKENS = ("image_seq_length", "image_seq_len", "num_image_tokens")
_QWEN_PIXELS = (56 * 56, 28 * 28 * 1280)
"""What Qwen2-VL's image processor takes at least and at most, where its file does not say."""


@dataclass(frozen=True, slots=True)
class ImageCost:
    """What images become in a model.

    Attributes:
        kind: how images are resized: "pixels" within bounds of their number (Qwen-VL), "edge" to a longest edge (Pixtral), "grid" into the
            tiles of the best grid (InternVL, LLaVA-Next), "squares" into squares of a longest edge (Idefics3), or "" to one size.
        tile: pixels of the side of a tile, or of the one size.
        smallest, largest: number of pixels, longest edge, or number of tiles, by kind.
        tile_tokens: of a tile.
    """

    tower: Tower
    kind: str
    tile: int
    smallest: int
    largest: int
    tile_tokens: int

    @classmethod
    def of(cls, folder: Path, bounds: Mapping[str, int] | None = None) -> ImageCost | None:
        """Of the model in a folder, or of its base; None for a model without a vision tower.

        Args:
            bounds: min_pixels, max_pixels and max_tiles, as a stage's settings give them.
        """
        if read_base(folder) is not None and (base := base_folder(folder)) is not None:
            return cls.of(base, bounds)
        written = config_of(folder)
        tower = Tower.of(written, first(language_of(written), 0, "hidden_size"))
        if tower is None:
            return None
        files = {name: json_of(folder / name) for name in _FILES}
        nested = files["processor_config.json"].get("image_processor")
        settings = files["processor_config.json"] | (nested if isinstance(nested, dict) else {}) | files["preprocessor_config.json"]
        asked = bounds or {}
        kind = _kind(settings, written)
        given = settings.get("size")
        size = given if isinstance(given, dict) else {}
        if not kind and not _tile(settings, tower):
            kind = "pixels"  # a family that is not known here and states no size: about as many patches as the image has
        tile = _tile(settings, tower) or tower.patch if kind in ("grid", "squares", "") else tower.patch * tower.side
        tile_tokens = first(settings, first(written, (tile // tower.patch // tower.side) ** 2, "mm_tokens_per_image"), *_TOKENS)
        smallest, largest = 1, 1
        if kind == "pixels":
            smallest = first(settings, first(size, _QWEN_PIXELS[0], "shortest_edge"), "min_pixels")
            largest = first(settings, first(size, _QWEN_PIXELS[1], "longest_edge"), "max_pixels")
            smallest, largest = asked.get("min_pixels", smallest), asked.get("max_pixels", largest)
        elif kind == "edge":
            largest = first(size, 1024, "longest_edge")
            largest = min(largest, isqrt(asked.get("max_pixels", largest**2)))
        elif kind == "squares":
            largest = first(size, 4 * tile, "longest_edge")
            largest = min(largest, isqrt(asked.get("max_tiles", (largest // tile) ** 2)) * tile)
        elif kind == "grid":
            largest = asked.get("max_tiles", _tiles_at_most(settings, tile))
        return cls(tower, kind, tile, smallest, largest, tile_tokens)

    def patches(self, width: int, height: int) -> int:
        """That the tower reads of an image."""
        if self.kind in ("pixels", "edge"):
            wide, high = self._resized(width, height)
            return wide * high // self.tower.patch**2
        return self._tiles(width, height) * (self.tile // self.tower.patch) ** 2

    def tokens(self, width: int, height: int) -> int:
        """That an image has in a prompt; what a family writes around them and between them is left out."""
        if self.kind in ("pixels", "edge"):
            return self.patches(width, height) // self.tower.side**2
        return self._tiles(width, height) * self.tile_tokens

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Multiples of what becomes one token."""
        unit = self.tower.patch * self.tower.side
        if self.kind == "edge":
            scale = max(1.0, max(width, height) / self.largest)
            return ceil(width / scale / unit) * unit, ceil(height / scale / unit) * unit
        wide, high = (max(unit, round(edge / unit) * unit) for edge in (width, height))
        if wide * high > self.largest:
            scale = sqrt(width * height / self.largest)
            return max(unit, int(width / scale / unit) * unit), max(unit, int(height / scale / unit) * unit)
        if wide * high < self.smallest:
            scale = sqrt(self.smallest / (width * height))
            return ceil(width * scale / unit) * unit, ceil(height * scale / unit) * unit
        return wide, high

    def _tiles(self, width: int, height: int) -> int:
        """Tiles and the overview."""
        if self.kind == "squares":
            scale = self.largest / max(width, height)
            tiles = ceil(width * scale / self.tile) * ceil(height * scale / self.tile)
            return tiles + 1 if tiles > 1 else 1
        if self.kind != "grid" or self.largest == 1:
            return 1
        grids = [(a, b) for a in range(1, self.largest + 1) for b in range(1, self.largest + 1) if a * b <= self.largest]
        fits = [(abs(width / height - a / b), a * b) for a, b in grids]
        closest = min(off for off, _ in fits)
        alike = [count for off, count in fits if off == closest and (count == 1 or width * height > 0.5 * self.tile**2 * count)]
        tiles = max(alike, default=min(count for off, count in fits if off == closest))
        return tiles + 1 if tiles > 1 else 1


def _kind(settings: Mapping[str, Any], written: Mapping[str, Any]) -> str:
    name = f"{settings.get('image_processor_type', '')} {settings.get('processor_class', '')} {written.get('model_type', '')}".lower()
    if "qwen" in name:
        return "pixels"
    if "pixtral" in name or "mistral3" in name:
        return "edge"
    if "idefics3" in name or "smolvlm" in name:
        return "squares" if settings.get("do_image_splitting", True) else ""
    return "grid" if any(part in name for part in ("internvl", "llavanext", "llava_next", "onevision")) else ""


def _tile(settings: Mapping[str, Any], tower: Tower) -> int:
    """Pixels of a tile's side; 0 where nothing gives them."""
    for key in ("max_image_size", "crop_size", "size"):
        if isinstance(size := settings.get(key), dict) and (side := first(size, 0, "height", "shortest_edge", "longest_edge")):
            return side
    return tower.image_size


def _tiles_at_most(settings: Mapping[str, Any], tile: int) -> int:
    pinpoints = settings.get("image_grid_pinpoints")
    if isinstance(pinpoints, list):
        return max((high // tile) * (wide // tile) for high, wide in pinpoints)
    return first(settings, 12, "max_patches")
