"""Settings blocks that several training stages share. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from safework_cli.core.settings import Attention, Settings, StageConfig, cosmetic
from safework_cli.data.tasks import TaskName
from safework_cli.models.pixels import PixelBounds

SaveDtype = Literal["source", "float32", "bfloat16", "float16"]
"""The type that a trained model's weights are saved in; "source" is that of the model that it started from."""


def _each_once(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("a tracker is named twice")
    return names


class TrackingConfig(Settings):
    """Settings of stages whose numbers an experiment tracker can show."""

    tracking: Annotated[list[Literal["tensorboard", "trackio", "mlflow", "wandb"]], AfterValidator(_each_once)] = cosmetic([])
    """Experiment trackers that get the run's numbers, configuration and lineage; their files are in STORE-tracking/, next to the store, and
    nothing is sent over the network unless the tracker's own environment variables ask for it (WANDB_MODE=online)."""


class EvaluationConfig(Settings):
    """Settings of stages that evaluate the model in training on held-out prompts; names are those of transformers' TrainingArguments
    where it has them.

    Attributes:
        measured: what an evaluation measures without a judge, and whether a larger value is better.
        in_mean: which of it is part of "mean", in addition to the judges' numbers.
        evaluation_limit: the setting that limits a reply in an evaluation.
    """

    measured: ClassVar[Mapping[str, bool]] = {"stop_rate": True, "mean_tokens": False}
    in_mean: ClassVar[Sequence[str]] = ()
    evaluation_limit: ClassVar[str] = "eval_max_tokens"

    eval_steps: int | None = Field(None, ge=1, le=10**7)
    """Optimiser steps between evaluations: replies to held-out prompts (eval_data) are sampled greedily and judged by eval_verifiers.
    The first evaluation is that of the starting model. No evaluation where null."""
    eval_samples: int = Field(64, ge=1, le=10**6)
    """Held-out prompts of an evaluation, the same ones each time: as many of each task, or all where a task has fewer."""
    eval_tasks: list[TaskName] = Field(default_factory=list)
    """Tasks whose held-out prompts are used; all of them where empty."""
    eval_judge_tasks: dict[str, list[TaskName]] = Field(default_factory=dict)
    """Tasks whose replies an eval_verifiers.KEY judges, such as {safety: [safety], right: [knowledge, general]}; all of them where it is
    not named: a judge of safety then judges sums, too."""
    eval_max_tokens: int = Field(256, ge=1, le=10**6)
    """Tokens of a reply in an evaluation at most."""
    metric_for_best_model: str | None = None
    """The number that decides which checkpoint is best: KEY of an eval_verifiers.KEY (its mean score over the replies that it can
    score), mean (the mean of all eval_verifiers, such as one of safety and one of capability), stop_rate or mean_tokens; in rl search also
    reliability, true_certain, false_certain, auroc and searches, and reliability is part of the mean. Where null: the only
    eval_verifier."""
    greater_is_better: bool | None = None
    """Whether a larger value is better; where null, by the metric: true for scores and stop_rate, false for mean_tokens."""
    load_best_model_at_end: bool = True
    """Save the weights of the best evaluated step, not those of the last step."""
    early_stopping_patience: int | None = Field(None, ge=1, le=10**6)
    """End the run after this many evaluations in a row without an improvement. The run is never ended early where null."""
    early_stopping_threshold: float = Field(0.0, ge=0, le=1e6)
    """By how much a value must exceed the best one to count as an improvement for early stopping."""

    @property
    def evaluation_tokens(self) -> int:
        """Tokens of a reply in an evaluation, at most."""
        return int(getattr(self, self.evaluation_limit))

    @model_validator(mode="after")
    def _evaluation_is_whole(self) -> EvaluationConfig:
        if self.eval_steps is None:
            for name in EVALUATION_ONLY:
                if name in self.model_fields_set and getattr(self, name) != type(self).model_fields[name].get_default(
                    call_default_factory=True
                ):
                    raise ValueError(f"{name} is given without eval_steps: nothing is evaluated during training; set eval_steps=50")
        elif self.early_stopping_patience is None and self.early_stopping_threshold:
            raise ValueError("early_stopping_threshold is given without early_stopping_patience: no run is ended early")
        return self


EVALUATION_ONLY = tuple(name for name in EvaluationConfig.model_fields if name not in ("eval_steps", "load_best_model_at_end"))
"""Settings that act only where ``eval_steps`` is set."""


class SupervisedConfig(StageConfig, TrackingConfig):
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
    attn_implementation: Attention | None = None
    """Implementation of attention, by transformers' names; flash_attention_2 and 3 need a package of theirs, and rows of a pass are padded
    with them. transformers' own choice where null (sdpa nearly everywhere)."""
    pixels: PixelBounds = PixelBounds()
    """Bounds for the size of images, saved in the trained model's processor files."""
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

    def without_effect(self) -> list[str]:
        given = "warmup_ratio" in self.model_fields_set and self.lr_scheduler_type == "constant" and self.warmup_ratio
        return ["warmup_ratio is not read with lr_scheduler_type=constant (constant_with_warmup reads it)"] if given else []


class Lora(Settings):
    """Low-rank adapters on every linear layer."""

    r: int = Field(16, ge=1, le=2**16)
    """Rank."""
    alpha: int = Field(32, ge=1, le=2**16)
    """Scale: the update is multiplied by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapters' input."""
    keep: Literal["merged", "adapter"] = "merged"
    """What the artifact holds: the whole model with the adapters merged into its weights, or the adapters only. Those need the model that
    training started from: every stage loads both, and `safework models merge` makes a whole model of them."""


class LoraAndParts(Lora):
    """Adapters, and parts of the model that are trained in full next to them."""

    full: list[str] = Field(default_factory=list)
    """Modules that are trained in full and get no adapters, by the last part of their name: `[multi_modal_projector]` is what leads from
    the vision tower of InternVL, LLaVA and others to the language model. Random weights have nothing to adapt."""
