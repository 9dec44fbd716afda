"""Settings that the three reinforcement-learning stages share. Torch-free."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator, model_validator

from safework_cli.core.errors import ConfigError
from safework_cli.core.registry import load_registered
from safework_cli.core.settings import Attention, Settings, StageConfig, cosmetic
from safework_cli.core.stage import Slot
from safework_cli.data.tasks import TaskName
from safework_cli.engines.settings import ServerSettings, VllmSettings
from safework_cli.models.pixels import PixelBounds
from safework_cli.models.templates import TemplateName
from safework_cli.training.config import EvaluationConfig, Lora, SaveDtype, TrackingConfig
from safework_rl.losses.contract import Loss, Weighting
from safework_rl.losses.cpgd import CpgdSettings
from safework_rl.losses.trl import TrlLoss
from safework_rl.registry import LOSSES, check_name, settings_of


class FormatSettings(Settings):
    """How ``<think>thought</think>answer`` counts."""

    mode: Literal["gate", "term"] = "gate"
    """gate: a reply out of format earns 0; term: the format is one more reward, added (as in the official code)."""
    weight: float = Field(1.0, ge=0, le=1000)
    """Weight of the term; a task's rewards have theirs."""


class LanguageSettings(Settings):
    """How one language in question, thought and answer counts. (The official code defines this reward and uses it nowhere.)"""

    mode: Literal["off", "term", "gate"] = "term"
    """off: not looked at; term: one more reward, added; gate: a reply in another language earns 0."""
    weight: float = Field(0.1, ge=0, le=1000)
    """Weight of the term; a task's rewards have theirs."""


class OverlongSettings(Settings):
    """A soft penalty for replies that come near the limit (DAPO, arXiv 2503.14476; off in the official scripts)."""

    buffer: int = Field(0, ge=0, le=10**6)
    """Tokens before max_completion_length over which the penalty grows from 0 to its maximum; without a buffer there is none."""
    factor: float = Field(1.0, ge=0, le=1000)
    """The largest penalty, subtracted from the reward."""


class PolicyEngineSettings(Settings):
    """What samples the rollouts."""

    kind: Literal["hf", "vllm"] = "hf"
    """hf: transformers, over the very weights that are trained; vllm: vLLM, which takes the weights over before each rollout: in this
    process, next to the trainer, or on the `server`."""
    vllm: VllmSettings = VllmSettings(gpu_memory_utilization=0.3)
    """Settings of `kind: vllm` in this process."""
    server: ServerSettings | None = cosmetic(None)
    """A vLLM server (`safework serve`) that samples in place of vLLM in this process."""
    ratio_cap: float | None = Field(2.0, gt=0, le=1e6)
    """kind vllm: each token's loss is multiplied by min(π_old/π_sampled, this), π_old as the trainer computes it: truncated importance
    sampling, as in TRL, corrects what another implementation or dtype rounds otherwise. No correction where null."""

    @model_validator(mode="after")
    def _one_kind(self) -> PolicyEngineSettings:
        if self.kind == "hf" and (given := self.model_fields_set - {"kind"}):
            raise ValueError(f"engine.{min(given)} is given with engine.kind=hf: add engine.kind=vllm, or leave it out")
        if self.server is not None and "vllm" in self.model_fields_set:
            raise ValueError("engine.vllm is of vLLM in this process: with engine.server, give these settings to safework serve")
        if self.vllm.tensor_parallel_size > 1:
            raise ValueError("engine.vllm.tensor_parallel_size is 1 where weights are taken over: several GPUs of vLLM are a server's")
        return self


class KlSettings(Settings):
    """The KL to the reference that ``beta`` weights (not read by TRL's losses, which add k3 to every reply)."""

    estimator: Literal["k3", "k2"] = "k3"
    """k3 = r − 1 − ln r with r = π_ref/π, as in the official scripts; as a loss, its gradient is that of the forward KL(π_ref ‖ π).
    k2 = (ln r)²/2: its gradient is that of the reverse KL(π ‖ π_ref), the signal of on-policy distillation."""
    tasks: list[TaskName] | None = Field(None, min_length=1)
    """Tasks on whose replies the KL counts; all where null."""
    harmful: bool | None = None
    """Whether it counts on replies to harmful prompts. Unset: yes where the reference is the starting model, no where another one is
    given, because a base answers them. A row of the task safety without the mark `harmful: false` is taken as harmful."""


def loss_class(name: str) -> type[Loss[Any]]:
    """The class of a registered loss. Raises ConfigError where it cannot be imported or is not a loss."""
    loaded = load_registered(LOSSES, name, "loss")
    if not (isinstance(loaded, type) and issubclass(loaded, Loss)):
        raise ConfigError(f"the loss '{name}' is not a class derived from safework_rl.losses.contract.Loss", f"it is {loaded!r}")
    return loaded


class RlConfig(StageConfig, TrackingConfig, EvaluationConfig):
    """Settings of every ``safework rl`` stage; names are those of TRL's GRPOConfig."""

    algorithm: str = "cpgd"
    """The policy loss: cpgd; one of TRL's (grpo, dr_grpo, gspo, dapo, bnpo, cispo, sapo, luspo, vespo); or one that an installed package
    registers. Advantages are the stage's own in every case."""
    loss: SerializeAsAny[CpgdSettings] = Field(default_factory=CpgdSettings, validate_default=True)
    """Settings of the loss that algorithm names: those of cpgd, or those that the other loss declares."""
    learning_rate: float = Field(1e-6, gt=0, le=1)
    """Peak learning rate. (1e-6 in the official scripts, for 7B and more.)"""
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "constant_with_warmup"
    """How the learning rate falls."""
    warmup_ratio: float = Field(0.03, ge=0, le=1)
    """Share of the steps in which the learning rate rises; the first of them is above 0."""
    weight_decay: float = Field(0.01, ge=0, le=10)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(1.0, gt=0, le=1e9)
    """Gradient norm above which gradients are scaled down."""
    max_steps: int = Field(100, ge=1, le=10**7)
    """Optimiser steps."""
    num_generations: int = Field(8, ge=2, le=4096)
    """Completions of a group: all replies to one prompt."""
    per_device_train_batch_size: int = Field(8, ge=1, le=2**16)
    """Completions per forward and backward pass."""
    gradient_accumulation_steps: int = Field(4, ge=1, le=2**16)
    """Passes per optimiser step: prompts per step = batch size × this / num_generations."""
    steps_per_generation: int | None = Field(None, ge=1, le=10**6)
    """Passes that one rollout serves (as in TRL): batch size × this completions are sampled at a time, for this /
    gradient_accumulation_steps updates. Unset: four updates, as in CPGD's public implementation. With one, the policy that is trained
    is still the one that sampled, and no clip or drift acts."""
    num_iterations: int = Field(1, ge=1, le=1000)
    """Passes over a rollout's completions."""
    max_prompt_length: int = Field(1024, ge=8, le=10**7)
    """Prompt tokens at most; longer rows are dropped and counted, and so are those that leave no room for a whole reply in the model's
    positions."""
    max_completion_length: int = Field(512, ge=8, le=10**6)
    """Completion tokens at most, retrieved text included."""
    temperature: float = Field(1.0, ge=0.01, le=100)
    """Sampling temperature."""
    beta: float = Field(0.0, ge=0, le=1000)
    """Weight of the KL to the reference (`reference`, or the starting model), without a ratio before it, as in the official scripts
    (1e-3 there, with CPGD's clip); 0 keeps no reference model (CPGD's paper finds that it hurts)."""
    kl: KlSettings = KlSettings()
    """How that KL is estimated, and on which replies it counts."""
    format: FormatSettings = FormatSettings()
    """How the reply's format counts."""
    language: LanguageSettings = LanguageSettings()
    """How the reply's language counts."""
    overlong: OverlongSettings = OverlongSettings()
    """Penalty for replies near the limit."""
    correct_threshold: float = Field(0.5, gt=0, le=1)
    """Task score from which a reply counts as right."""
    max_dropped: float = Field(0.5, ge=0, le=1)
    """Share of the tasks' rows that may be dropped before the run (too long, images, refused by the chat template)."""
    max_unscorable: float = Field(0.1, ge=0, le=1)
    """Share of a step's replies that verifiers may fail to score before the run stops."""
    max_logprob_gap: float | None = Field(None, gt=0, le=100)
    """Mean |log-probability in training − at sampling| (nats) at which the run stops: the engine is then not the policy. Unset: 1e-3
    where both compute in float32, 0.1 in bfloat16; from the second rollout on ten times the first one's gap if that is less, but never
    below a tenth of these."""
    max_skipped_updates: int = Field(3, ge=0, le=10**6)
    """Updates with a NaN or infinite gradient that are skipped and counted; one more stops the run, and its last checkpoint is valid."""
    max_idle_steps: int = Field(50, ge=1, le=10**7)
    """Steps in a row in which no reply had an advantage after which the run stops."""
    require_gradient: bool = True
    """Gate: at least one update must have had a gradient that came of rewards, or of the KL on replies of a task without a reward; a run
    without one exits with 4. A run whose every gradient was NaN does so in any case."""
    chat_template: TemplateName = "model"
    """Template that formats prompts and is saved with the model: `model` (its own), `training` (TRL's variant of it, which keeps the
    thoughts of earlier turns) or a name that TRL ships, such as `qwen3_training`."""
    train_layers: int | None = Field(None, ge=1, le=10_000)
    """Train this many of the top layers (and the final norm) only; all weights where null."""
    lora: Lora | None = None
    """Train adapters on every linear layer, merged into the weights at the end unless `keep: adapter`; all weights where null."""
    pixels: PixelBounds = PixelBounds()
    """Bounds for the size of images, saved in the trained model's processor files."""
    train_vision: bool = False
    """Train the vision tower of a model that has one, too. (Frozen in the official scripts.)"""
    bf16: bool | None = None
    """Multiply in bfloat16 (autocast), in training and in sampling, while weights, gradients and optimiser stay float32; unset: where the
    hardware does (CUDA, or a CPU with AVX512-BF16 or AMX). On a CPU attention and logits are computed in float32 all the same."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    engine: PolicyEngineSettings = PolicyEngineSettings()
    """Engine of the rollouts: transformers, or vLLM."""
    share_prompts: bool = True
    """Compute a group's prompt once, in generation and in training, where the architecture allows it (the run says where not). The
    loss and its gradients are the same; false takes the plain path."""
    attn_implementation: Attention | None = None
    """Implementation of attention, by transformers' names; flash_attention_2 and 3 need a package of theirs. transformers' own choice where
    null (sdpa nearly everywhere)."""
    save_dtype: SaveDtype = "source"
    """Type of the saved weights: that of the model's own files, or another. Training itself keeps float32 weights."""
    trust_remote_code: bool = False
    """Run Python code from the model's folder."""
    save_steps: int = cosmetic(50, ge=1, le=10**7)
    """Steps between checkpoints."""
    generation_batch_size: int = cosmetic(32, ge=1, le=2**16)
    """Completions sampled together; the draws do not depend on it."""
    sample_steps: int = cosmetic(1, ge=1, le=10**7)
    """Steps between the best, worst and median replies that are kept of each task."""
    preflight_groups: int = cosmetic(0, ge=0, le=10**5)
    """Prompts of each task whose groups are sampled and judged before the run: it reports how many of them vary, and warns of a task of
    which none does. 0: none (it costs this many groups for each task)."""
    preflight: int = cosmetic(32, ge=0, le=10**5)
    """Rows of each task that are tried before the run: their gold replies must score 1 and junk 0, or it refuses to start. 0: none."""

    @field_validator("algorithm")
    @classmethod
    def _loss_is_registered(cls, name: str) -> str:
        return check_name(LOSSES, name, "loss")

    @field_validator("loss", mode="plain", json_schema_input_type=CpgdSettings | dict[str, Any])
    @classmethod
    def _settings_of_the_loss(cls, given: Any, info: ValidationInfo) -> Settings:
        name = info.data.get("algorithm", "cpgd")
        return settings_of(loss_class(name).Settings, given, "loss", f"algorithm={name}")

    @property
    def policy_loss(self) -> Loss[Any]:
        """The loss with its settings."""
        return loss_class(self.algorithm)(self.loss)

    @property
    def weighting(self) -> Weighting:
        """Weight of a group's advantages."""
        return self.policy_loss.weighting

    @property
    def prompts_per_step(self) -> int:
        """Groups of one update, over all processes."""
        return self.own_prompts_per_step * self.launch.world

    @property
    def own_prompts_per_step(self) -> int:
        """Groups of one update that one process trains on."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps // self.num_generations

    @property
    def passes_per_rollout(self) -> int:
        """Forward and backward passes that go over a rollout once."""
        return self.steps_per_generation or UPDATES_PER_ROLLOUT * self.gradient_accumulation_steps

    @property
    def updates_per_rollout(self) -> int:
        """Updates that go over a rollout once."""
        return self.passes_per_rollout // self.gradient_accumulation_steps

    @property
    def prompts_per_rollout(self) -> int:
        """Groups that are sampled at a time, over all processes."""
        return self.prompts_per_step * self.updates_per_rollout

    @property
    def rollout_steps(self) -> int:
        """Updates between one rollout and the next."""
        return self.updates_per_rollout * self.num_iterations

    @property
    def prompts_used(self) -> int:
        """Groups that a run trains on: the last rollout samples no more of them than its updates take."""
        whole, rest = divmod(self.max_steps, self.rollout_steps)
        return (whole * self.updates_per_rollout + min(rest, self.updates_per_rollout)) * self.prompts_per_step

    @property
    def acts_off_policy(self) -> bool:
        """Whether any update is made by a policy that differs from the one that sampled: clips and drift act only there."""
        return min(self.rollout_steps, self.max_steps) > 1

    @model_validator(mode="after")
    def _consistent(self) -> RlConfig:
        completions = self.per_device_train_batch_size * self.gradient_accumulation_steps
        if completions % self.num_generations:
            own = "a step" if self.launch.world == 1 else "a process's step, and a process trains on whole groups"
            raise ValueError(
                f"num_generations={self.num_generations} does not divide the {completions} completions of {own} "
                "(per_device_train_batch_size × gradient_accumulation_steps)"
            )
        if self.passes_per_rollout % self.gradient_accumulation_steps:
            raise ValueError(
                f"steps_per_generation={self.steps_per_generation} is not a multiple of "
                f"gradient_accumulation_steps={self.gradient_accumulation_steps}: a rollout serves whole updates"
            )
        if self.engine.kind == "vllm" and self.engine.server is None and self.launch.world > 1:
            raise ValueError("engine.kind=vllm samples in one process only: leave launch out, or give engine.server, or engine.kind=hf")
        if self.lora and self.train_layers:
            raise ValueError("lora and train_layers are both given: adapters sit in every layer; choose one")
        if self.lora and self.lora.dropout:
            raise ValueError(
                f"lora.dropout={self.lora.dropout:g}: with dropout the policy that is trained is not the one that samples; leave it at 0"
            )
        other = [name for name, value in KlSettings() if getattr(self.kl, name) != value]
        if isinstance(self.policy_loss, TrlLoss) and other:
            given = ", ".join(f"kl.{name}={getattr(self.kl, name)}" for name in other)
            raise ValueError(f"{given}: not with algorithm={self.algorithm}, because TRL's losses add k3 to every reply; take cpgd")
        if self.overlong.buffer > self.max_completion_length:
            raise ValueError(
                f"overlong.buffer={self.overlong.buffer} exceeds max_completion_length={self.max_completion_length}: an empty reply "
                "would be penalised"
            )
        return self

    def warnings(self) -> list[str]:
        """Settings that were given and have no effect, each with the reason."""
        on_policy = self.policy_loss.on_policy
        if self.acts_off_policy or not on_policy:
            return self.unused()
        return [*self.unused(), f"one update per rollout: {on_policy} (raise steps_per_generation, num_iterations or max_steps)"]

    def unused(self) -> list[str]:
        """The same, except for what has an effect only in a rollout's later updates."""
        given, unused = self.model_fields_set, self.policy_loss.unused()
        unused += [f"kl.{name} has no effect with beta=0" for name in sorted(self.kl.model_fields_set) if not self.beta]
        if "weight" in self.format.model_fields_set and self.format.mode == "gate":
            unused.append("format.weight is read with format.mode=term only")
        if "weight" in self.language.model_fields_set and self.language.mode != "term":
            unused.append("language.weight is read with language.mode=term only")
        if "factor" in self.overlong.model_fields_set and not self.overlong.buffer:
            unused.append("overlong.factor has no effect with overlong.buffer=0")
        if "warmup_ratio" in given and self.lr_scheduler_type == "constant" and self.warmup_ratio:
            unused.append("warmup_ratio is not read with lr_scheduler_type=constant (constant_with_warmup reads it)")
        return unused


UPDATES_PER_ROLLOUT = 4
"""Where steps_per_generation is unset: 512 prompts sampled, 128 an update, in siiRL's CPGD scripts. (The official scripts take 16, 8 and
16: `docs/reinforcement.md`.)"""
MODEL_SLOT = Slot(("model",), "the policy to start from")
VERIFIERS_SLOT = Slot(("verifier",), "model verifiers by name, such as verifiers.safety", optional=True, many=True)
