"""Settings blocks that several training stages share. Torch-free."""

from __future__ import annotations

from pydantic import Field

from safework_cli.stage import Settings


class Lora(Settings):
    """Low-rank adapters; they are merged into the weights afterwards, so that the artifact is a whole model."""

    r: int = Field(16, ge=1)
    """Rank."""
    alpha: int = Field(32, ge=1)
    """Scale: the update is multiplied by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapters' input."""
