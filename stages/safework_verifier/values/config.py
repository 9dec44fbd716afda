"""Settings of ``safework verifier values``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from safework_cli.training.config import SupervisedConfig


class ValuesConfig(SupervisedConfig):
    """Settings of ``safework verifier values``."""

    learning_rate: float = Field(2e-5, gt=0, le=1)
    """Peak learning rate of the backbone."""
    head_learning_rate: float = Field(1e-3, gt=0, le=1)
    """Peak learning rate of the heads, which start at zero."""
    per_device_eval_batch_size: int = Field(32, ge=1, le=2**16)
    """Prefixes per forward pass when measuring."""
    max_length: int = Field(1024, ge=32, le=10**7)
    """Tokens of prompt and prefix, in training and afterwards."""
    train_layers: int | None = Field(None, ge=0, le=10_000)
    """Train the top n layers, the final norm and the heads only; 0 trains only the heads."""
    routing_weight: float = Field(0.2, ge=0, le=1000)
    """Weight of the routing's loss relative to that of the values."""
    eval_fraction: float = Field(0.2, gt=0, lt=1)
    """Share of the prompts held out; half of them fit the temperatures, the other half is reported."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the saved weights; "auto" is the fastest on this machine."""
