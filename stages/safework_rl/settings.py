"""Settings that the three reinforcement-learning stages share. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from safework_cli.artifacts.payload import parameter_count
from safework_cli.lm.settings import Lora, SaveDtype
from safework_cli.stage import Inputs, Plan, SamplingTemperature, Settings, Slot, StageConfig, cosmetic

Weighting = Literal["equal", "std", "clip_filter"]


class FormatSettings(Settings):
    """How ``<think>thought</think>answer`` counts."""

    mode: Literal["gate", "term"] = "gate"
    """gate: a reply out of format earns 0; term: the format is one more reward, added (as in the official code)."""
    weight: float = Field(1.0, ge=0, le=1000)
    """Weight of the term, beside the task's rewards."""


class LanguageSettings(Settings):
    """How one language in question, thought and answer counts. (The official code defines this reward and uses it nowhere.)"""

    mode: Literal["off", "term", "gate"] = "term"
    """off: not looked at; term: one more reward, added; gate: a reply in another language earns 0."""
    weight: float = Field(0.1, ge=0, le=1000)
    """Weight of the term, beside the task's rewards."""


class OverlongSettings(Settings):
    """A soft penalty for replies that come near the limit (DAPO, arXiv 2503.14476; off in the official scripts)."""

    buffer: int = Field(0, ge=0, le=10**6)
    """Tokens before max_completion_length over which the penalty grows from 0 to its whole; 0 is no penalty."""
    factor: float = Field(1.0, ge=0, le=1000)
    """The whole penalty, taken from the reward."""


class CpgdSettings(Settings):
    """CPGD's constants. Its paper states none; these are the public implementations' (docs/safeladder.md 3.3)."""

    epsilon: float = Field(0.2, gt=0, lt=1)
    """Clip width on the ratio."""
    tight: float = Field(1.0, ge=0, le=1)
    """1: the same width at every token; below 1: tight at the start of a reply, loose at its end."""
    drift_coef: float = Field(1e-3, ge=0, le=1000)
    """Weight of the policy drift."""
    drift_cap: float = Field(2.0, gt=0, le=1e6)
    """Cap of the drift's gradient factor."""
    weighting: Weighting = "std"
    """Weight of a group's advantages: 1, 1/std, or N over the groups that vary."""


class RlConfig(StageConfig):
    """Settings of every ``safework rl`` stage; names are those of TRL's GRPOConfig."""

    algorithm: Literal["cpgd", "grpo", "dr_grpo", "gspo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"] = "cpgd"
    """The policy loss: CPGD (ours), or one of TRL's. Advantages are the stage's own in either case."""
    learning_rate: float = Field(1e-6, gt=0, le=1)
    """Peak learning rate. (1e-6 in the official scripts, for 7B and more.)"""
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "constant_with_warmup"
    """How the learning rate falls."""
    warmup_ratio: float = Field(0.03, ge=0, le=1)
    """Share of the steps in which the learning rate rises."""
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
    num_iterations: int = Field(1, ge=1, le=1000)
    """Optimiser passes over each batch of completions."""
    max_prompt_length: int = Field(1024, ge=8, le=10**7)
    """Prompt tokens at most; longer rows are dropped and counted."""
    max_completion_length: int = Field(512, ge=8, le=10**6)
    """Completion tokens at most, retrieved text included."""
    temperature: SamplingTemperature = 1.0
    """Sampling temperature."""
    beta: float = Field(0.0, ge=0, le=1000)
    """Weight of the KL to the starting model; 0 keeps no reference model (CPGD's paper finds that it hurts). Not with cpgd."""
    epsilon: float = Field(0.2, gt=0, le=1000)
    """Lower clip width of TRL's losses; CPGD reads cpgd.epsilon."""
    epsilon_high: float | None = Field(None, gt=0, le=1000)
    """Upper clip width of TRL's losses (0.28 in DAPO's paper); the lower one where null."""
    cpgd: CpgdSettings = CpgdSettings()
    """Constants of the CPGD loss."""
    format: FormatSettings = FormatSettings()
    """How the reply's format counts."""
    language: LanguageSettings = LanguageSettings()
    """How the reply's language counts."""
    overlong: OverlongSettings = OverlongSettings()
    """Penalty for replies near the limit."""
    correct_threshold: float = Field(0.5, gt=0, le=1)
    """Task score from which a reply counts as right."""
    max_unscorable: float = Field(0.1, ge=0, le=1)
    """Share of a step's replies that verifiers may fail to score before the run stops."""
    max_logprob_gap: float = Field(0.5, gt=0, le=100)
    """Mean |log-probability in training − at sampling| (nats) at which the run stops: the engine is then not the policy."""
    max_skipped_updates: int = Field(3, ge=0, le=10**6)
    """Updates with a NaN or infinite gradient that are skipped and counted; one more stops the run, its last checkpoint whole."""
    max_idle_steps: int = Field(50, ge=1, le=10**7)
    """Steps in a row without any gradient (in every group all replies earn the same) after which the run stops."""
    require_gradient: bool = True
    """Gate: at least one step must have had a gradient; a run in which every group's replies earned the same exits with 4."""
    train_layers: int | None = Field(None, ge=1, le=10_000)
    """Train this many of the top layers (and the final norm) alone; all weights where null."""
    lora: Lora | None = None
    """Train adapters on every linear layer, merged into the weights at the end; all weights where null."""
    train_vision: bool = False
    """Train the vision tower of a model that sees, too. (Frozen in the official scripts.)"""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    share_prompts: bool = True
    """Compute a group's prompt once, in generation and in training, where the architecture allows it (the run says where not). The
    loss and its gradients are the same; false takes the plain path."""
    save_dtype: SaveDtype = "source"
    """Type of the saved weights: that of the model's own files, or another. Training itself keeps float32 weights."""
    trust_remote_code: bool = False
    """Run Python code that the model's folder brings along."""
    save_steps: int = cosmetic(50, ge=1, le=10**7)
    """Steps between checkpoints."""
    generation_batch_size: int = cosmetic(32, ge=1, le=2**16)
    """Completions sampled together."""
    sample_steps: int = cosmetic(1, ge=1, le=10**7)
    """Steps between the best, worst and median replies that are kept of each task."""
    preflight: int = cosmetic(32, ge=0, le=10**5)
    """Rows of each task that are tried before the run: their gold replies must score 1 and junk 0, or it refuses to start. 0: none."""

    @property
    def weighting(self) -> Weighting:
        """Of a group's advantages: CPGD has its setting, Dr.GRPO takes them as they are, the others divide by the group's std."""
        if self.algorithm == "cpgd":
            return self.cpgd.weighting
        return "equal" if self.algorithm == "dr_grpo" else "std"

    @property
    def prompts_per_step(self) -> int:
        return self.per_device_train_batch_size * self.gradient_accumulation_steps // self.num_generations

    @model_validator(mode="after")
    def _consistent(self) -> RlConfig:
        completions = self.per_device_train_batch_size * self.gradient_accumulation_steps
        if completions % self.num_generations:
            raise ValueError(
                f"num_generations={self.num_generations} does not divide the {completions} completions of a step "
                "(per_device_train_batch_size × gradient_accumulation_steps)"
            )
        if self.lora and self.train_layers:
            raise ValueError("lora and train_layers are both given: adapters sit in every layer; choose one")
        if self.algorithm == "cpgd" and self.beta > 0:
            raise ValueError(
                "beta is TRL's reference KL and has no place in the CPGD loss: set cpgd.drift_coef, or choose another algorithm"
            )
        return self


MODEL_SLOT = Slot(("model",), "the policy to start from")
VERIFIERS_SLOT = Slot(("verifier",), "model verifiers by name, such as verifiers.safety", optional=True, many=True)


def plan_rl(config: RlConfig, inputs: Inputs, name: str) -> Plan:
    """What any of the three stages will do."""
    model = inputs.one("model")
    parameters = parameter_count(model.path)
    plan = Plan(name=name, optimizer_steps=config.max_steps)
    per_step = config.prompts_per_step * config.num_generations
    plan.tokens = config.max_steps * per_step * config.max_completion_length
    plan.memory_bytes = 16 * parameters + (4 * parameters if config.beta else 0) + 2**30
    plan.disk_bytes = 4 * parameters + 2 * 12 * parameters
    plan.lines = [
        f"train {model.ref} ({parameters / 1e6:.0f} M weights) with {config.algorithm}, {config.max_steps} steps",
        f"{config.prompts_per_step} prompts × {config.num_generations} replies a step, {config.max_completion_length} tokens at most each",
        f"verifiers: {', '.join(f'{key} = {a.ref}' for key, a in inputs.many('verifiers').items()) or 'rules alone'}",
    ]
    return plan
