"""Settings of ``safework sft``."""

from __future__ import annotations

from pydantic import Field

from safework_cli.data.tasks import TaskWeights
from safework_cli.models.templates import TemplateName
from safework_cli.training.config import EvaluationConfig, Lora, SaveDtype, SupervisedConfig


class SftConfig(SupervisedConfig, EvaluationConfig):
    """Settings of ``safework sft``."""

    learning_rate: float = Field(1e-5, gt=0, le=1)
    """Peak learning rate. (Usable defaults: 1e-5 in full, 1e-4 with LoRA; SafeWork-R1's own are not known.)"""
    per_device_train_batch_size: int = Field(8, ge=1, le=2**16)
    """Rows per forward pass on each device."""
    warmup_ratio: float = Field(0.03, ge=0, le=1)
    """Share of the steps in which the learning rate rises."""
    task_weights: TaskWeights = Field(default_factory=dict)
    """Task → how often its rows are seen: 0.3 takes three rows in ten, 2 takes each twice, 0 none; 1 where a task is not named."""
    max_length: int = Field(2048, ge=8, le=10**7)
    """Tokens of a row, prompt and reply; a longer row is dropped by name and counted, never cut."""
    max_dropped: float = Field(0.05, ge=0, le=1)
    """Share of rows that may be dropped before the run is refused."""
    chat_template: TemplateName = "model"
    """Template to train with and to save with the model: `model` (its own), `training` (TRL's variant of it, which keeps thoughts of
    earlier turns) or a name that TRL ships, such as `qwen3_training`."""
    lora: Lora | None = None
    """Train adapters in place of all weights."""
    train_layers: int | None = Field(None, ge=1, le=10_000)
    """Train only this many of the top layers (and the final norm): on a CPU nearly twice as fast. All weights where null."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    save_dtype: SaveDtype = "source"
    """Type of the saved weights: that of the model's own files, or another. Training itself keeps float32 weights."""
    sample_prompts: int = Field(8, ge=0, le=10_000)
    """Replies sampled after training to measure the stop rate and the format."""
    sample_max_tokens: int = Field(192, ge=1, le=10**6)
    """Tokens of such a reply at most."""
    min_stop_rate: float = Field(0.0, ge=0, le=1)
    """Gate: the share of sampled replies that must end by themselves; below it the command exits with 4."""
