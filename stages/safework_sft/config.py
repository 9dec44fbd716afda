"""Settings of ``safework sft``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from safework_cli.core.settings import OneGroup, Settings
from safework_cli.data.tasks import TaskWeights
from safework_cli.models.templates import TemplateName
from safework_cli.training.config import EvaluationConfig, LoraAndParts, SaveDtype, SupervisedConfig


class VerdictConfig(Settings):
    """The word of a reply that states its decision, as a loss term of its own."""

    weight: float = Field(0.5, ge=0, le=1000)
    """The loss is the mean over the reply's tokens without the verdict, plus this times the mean over the verdicts. 0 leaves the loss as it
    is without this block, and the decision is only measured."""
    short_rows: bool | Literal["all", "others"] = True
    """Each marked row comes once more, cut after the verdict and supervised on the verdict only: cheap, for a row has far more tokens
    after it. `others` makes such rows of the marked rows of the data that task_weights leave out, and of no others: the decision is then
    learned from more prompts than the manner of the replies. `all` does both. Acts where weight is above 0."""

    short_passes: int = Field(1, ge=1, le=100)
    """How often each short row comes in an epoch. A decision needs more passes than the manner of the replies."""

    @property
    def repeats(self) -> bool:
        """Whether rows that are trained on come once more in their short form."""
        return self.short_rows in (True, "all")

    @property
    def adds(self) -> bool:
        """Whether marked rows that are not trained on come in their short form."""
        return bool(self.weight) and self.short_rows in ("all", "others")

    pattern: OneGroup | None = None
    """A regular expression with one group, which holds the word, as in 'hurt someone\\? (Yes|No)'; it is searched in the last assistant
    message. Where null, the rows' own mark (meta.verdict)."""
    positive: list[str] = Field(default_factory=list)
    """Words that mean harmful; where empty, the words on rows with harmful: true."""
    samples: int = Field(200, ge=2, le=10**6)
    """Rows of verdict_data that are measured at most, half of them harmful."""
    calibrate: bool = False
    """Move the decision's threshold on verdict_data to 0 after training, in the weights: by the scale of the last normalisation, at the
    least cost to the replies' tokens."""
    harmless_weight: float = Field(1.0, ge=0.01, le=100)
    """How many times worse it is to call a harmless prompt harmful than the reverse. The threshold of verdict_data is where both cost the
    same: above 1, fewer harmless prompts are refused, and more harmful ones are helped."""


class KlConfig(Settings):
    """A penalty for leaving the starting model."""

    weight: float = Field(0.1, gt=0, le=1000)
    """Times the mean over the reply's supervised tokens, without the verdict, of KL(starting model ‖ model in training)."""


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
    lora: LoraAndParts | None = None
    """Train adapters in place of all weights."""
    train_layers: int | None = Field(None, ge=1, le=10_000)
    """Train only this many of the top layers (and the final norm): on a CPU nearly twice as fast. All weights where null."""
    freeze_embeddings: bool = False
    """Keep the embedding as it is, and the output matrix with it where both are one. (With lora or train_layers it is kept anyway.)"""
    train_vision: bool = True
    """Train the vision tower of a model that has one, too, or keep it as it is."""
    verdict: VerdictConfig | None = None
    """Learn the decision that a reply states. Where null, a marked word is a token like any other."""
    kl: KlConfig | None = None
    """Hold the model to the starting model, which stays in memory for it; with lora, the model without its adapters."""
    padding_free: bool = True
    """Rows of a forward pass follow each other without padding, each attending to itself only, where the architecture allows it (tried
    before training); else, and where false, they are padded to the longest."""
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
