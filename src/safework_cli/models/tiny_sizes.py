"""Sizes of the tiny models. Torch-free."""

from __future__ import annotations

from pydantic import Field, model_validator

from safework_cli.core.settings import Settings


class TinySizes(Settings):
    """Sizes of the tiny model."""

    hidden_size: int = Field(64, ge=16, le=4096)
    """Width of the language model; a multiple of its heads, and of 16 times its heads where it reads images."""
    layers: int = Field(2, ge=1, le=64)
    """Layers of the language model."""
    heads: int = Field(4, ge=2, le=64)
    """Attention heads of the language model; an even number, for it has half as many for keys."""
    vocabulary: int | None = Field(None, ge=256, le=2**17)
    """Tokens that are learned from the texts of `data`. Where null, each byte is a token."""
    vision_hidden_size: int = Field(64, ge=16, le=4096)
    """Width of the vision tower, a multiple of 16; it has four heads."""
    vision_layers: int = Field(2, ge=2, le=64)
    """Layers of the vision tower; every second one attends to the whole image, the others to windows."""
    patch_size: int = Field(8, ge=2, le=64)
    """Pixels of a patch's side. Four patches are a token, so images take (side / patch_size)² / 4 tokens."""

    @model_validator(mode="after")
    def _divisible(self) -> TinySizes:
        if self.hidden_size % self.heads or self.heads % 2:
            raise ValueError(f"hidden_size={self.hidden_size} is divided among heads={self.heads}, an even number of them")
        if self.vision_hidden_size % 16:
            raise ValueError(f"vision_hidden_size={self.vision_hidden_size} is not a multiple of 16")
        return self
