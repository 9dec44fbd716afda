"""Settings blocks that several training stages share. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from safework_cli.core.settings import Settings, StageConfig, cosmetic

SaveDtype = Literal["source", "float32", "bfloat16", "float16"]
"""The type that a trained model's weights are saved in; "source" is that of the model that it started from."""


class SupervisedConfig(StageConfig):
    """Settings of every stage that learns from given answers; names are those of transformers' TrainingArguments."""

    num_train_epochs: float = Field(2.0, gt=0, le=10_000)
    """Passes over the training rows, where max_steps is not set."""
    max_steps: int = Field(-1, ge=-1, le=10**7)
    """Optimiser steps; -1 lets num_train_epochs decide."""
    per_device_train_batch_size: int = Field(16, ge=1, le=2**16)
    """Rows per forward pass on each device."""
    gradient_accumulation_steps: int = Field(1, ge=1, le=2**16)
    """Forward passes per optimiser step."""
    warmup_ratio: float = Field(0.05, ge=0, le=1)
    """Share of the steps in which the learning rate rises."""
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    """How the learning rate falls."""
    weight_decay: float = Field(0.01, ge=0, le=10)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(1.0, gt=0, le=1e9)
    """Gradient norm above which gradients are scaled down."""
    bf16: bool | None = None
    """Multiply in bfloat16 (autocast) while weights, gradients and optimiser stay float32; unset: where the
    hardware does (CUDA, or a CPU with AVX512-BF16 or AMX), which is several times as fast there."""
    trust_remote_code: bool = False
    """Run Python code that the model's folder brings along."""
    save_steps: int = cosmetic(100, ge=1, le=10**7)
    """Steps between checkpoints."""

    @field_validator("max_steps")
    @classmethod
    def _not_none(cls, value: int) -> int:
        if value == 0:
            raise ValueError("max_steps is a number of steps, or -1 (num_train_epochs decides): a run of 0 steps trains nothing")
        return value


class Lora(Settings):
    """Low-rank adapters; they are merged into the weights afterwards, so that the artifact is a whole model."""

    r: int = Field(16, ge=1, le=2**16)
    """Rank."""
    alpha: int = Field(32, ge=1, le=2**16)
    """Scale: the update is multiplied by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapters' input."""
