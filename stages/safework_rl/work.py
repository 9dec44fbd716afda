"""What updates and rollouts ask of the machine. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safework_cli.core.artifacts import Artifact
from safework_cli.core.plan.shape import ModelShape
from safework_cli.core.plan.tokens import characters_per_token
from safework_cli.core.plan.work import Sampling, Work
from safework_cli.data.dataset import training_rows
from safework_cli.training.work import trained_weights

if TYPE_CHECKING:
    from safework_rl.config import RlConfig


def rl_work(config: RlConfig, model: Artifact, data: Artifact) -> Work:
    """The work of one process, if every reply is as long as allowed: how long replies will be is not known."""
    shape = ModelShape.of(model.path)
    texts = ["".join(message["content"] for message in row.prompt) for row in training_rows(data)]
    ratio = characters_per_token(model.path, texts)
    lengths = [min(len(text) / ratio, config.max_prompt_length) for text in texts]
    longest, mean = max(lengths, default=0.0), sum(lengths) / max(1, len(lengths))
    rows, passes, reply = config.per_device_train_batch_size, config.gradient_accumulation_steps, config.max_completion_length
    prompts = max(1, rows // config.num_generations) if _shares_prompts(config) else rows  # that a pass computes
    recomputed = 0.0 if config.updates_per_rollout == 1 else 1.0  # log-probabilities of the policy that sampled
    forwards = (recomputed + (1.0 if config.beta else 0.0)) / config.num_iterations
    return Work(
        model.path, shape, **trained_weights(shape, config),
        rows=rows, length=round(longest) + reply, pass_tokens=rows * reply + prompts * longest, head="tiles", head_tokens=rows * reply,
        step_tokens=passes * (rows * reply + prompts * mean), step_head_tokens=passes * rows * reply, passes=passes,
        extra_forwards=forwards, steps=config.max_steps, bf16=config.bf16, checkpointing=config.gradient_checkpointing,
        sampling=_sampling(config, round(longest)),
    )  # fmt: skip


def _sampling(config: RlConfig, longest: int) -> Sampling | None:
    """What sampling takes of the trainer's own device; None where a server samples."""
    engine = config.engine
    if engine.server is not None:
        return None
    replies = config.per_device_train_batch_size * config.gradient_accumulation_steps / config.num_iterations
    share = engine.vllm.gpu_memory_utilization if engine.kind == "vllm" else 0.0
    return Sampling(config.generation_batch_size, longest, config.max_completion_length, replies, share)


def _shares_prompts(config: RlConfig) -> bool:
    """Whether a group's prompt is computed once in training; architectures that do not allow it say so in the run."""
    return config.share_prompts and not config.gradient_checkpointing and config.launch.strategy != "fsdp"
