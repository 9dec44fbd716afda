"""What the three reinforcement-learning stages will do, and what that asks of the machine. Torch-free."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from safework_cli.core.artifacts import Artifact
from safework_cli.core.artifacts.payload import parameter_count
from safework_cli.core.errors import InputError, SafeworkError
from safework_cli.core.plan.shape import ModelShape
from safework_cli.core.plan.tokens import characters_per_token
from safework_cli.core.plan.work import Sampling, Work
from safework_cli.core.stage import Inputs, Plan
from safework_cli.data.dataset import training_rows
from safework_cli.data.image_rows import plan_images
from safework_cli.data.row import Row
from safework_cli.training.heldout import plan_evaluation
from safework_cli.training.tracking import plan_tracking
from safework_cli.training.work import disk_of, hold_others, images_work, tokens_and_patches, trained_weights
from safework_rl.config import RlConfig

FEW_GROUPS = 20
"""Below it the plan says so; RL about six situations of value and fifteen search worlds did not help with others."""


def plan_rl(config: RlConfig, inputs: Inputs, name: str, rewards: Collection[str], tasks: Collection[str]) -> Plan:
    """What any of the three stages will do.

    Args:
        rewards: names of the rules and verifiers that the drawn tasks are rewarded by; none of them may be a judge of eval_steps.
        tasks: whose rows are drawn.
    """
    model = inputs.one("model")
    plan = Plan(name=name, optimizer_steps=config.max_steps)
    plan.tokens = config.prompts_used * config.num_generations * config.max_completion_length
    plan.work = rl_work(config, model, inputs.one("data"))
    plan.disk_bytes = disk_of(plan.work, config.save_dtype, adapters_only=config.lora is not None and config.lora.keep == "adapter")
    reference = inputs.maybe("reference") or (None if config.lora else model)  # with adapters, the policy without them
    if config.beta and reference is not None:
        hold_others(plan, weights=ModelShape.of(reference.path).parameters)
    judges = [judge for judge in inputs.many("verifiers").values() if (judge.path / "config.json").exists()]
    hold_others(plan, half=sum(parameter_count(judge.path) for judge in judges))
    parameters = plan.work.shape.parameters
    per_rollout = min(config.prompts_per_step * config.updates_per_rollout, config.prompts_used)
    plan.lines = [
        f"train {model.ref} ({parameters / 1e6:.0f} M weights) with {config.algorithm}, {config.max_steps} steps",
        f"{per_rollout} prompts × {config.num_generations} replies a rollout, {config.max_completion_length} tokens at most each",
        f"a rollout serves {min(config.rollout_steps, config.max_steps)} updates of {config.prompts_per_step} prompts"
        + (f", {config.num_iterations} passes over it" if config.num_iterations > 1 else ""),
        f"verifiers: {', '.join(f'{key} = {a.ref}' for key, a in inputs.many('verifiers').items()) or 'rules only'}",
    ]
    plan.lines += [f"warning: {text}" for text in config.warnings()]
    if config.share_prompts and config.launch.strategy == "fsdp":
        plan.lines.append("prompts are shared when sampling, and not in training: FSDP gathers a layer's weights for one pass at a time")
    positions = _written_positions(model.path)
    if positions is not None and config.max_completion_length >= positions:
        plan.refuse(
            f"max_completion_length={config.max_completion_length} leaves no room for a prompt in the {positions} positions of {model.ref}",
            "every prompt would be dropped",
            f"set max_completion_length below {positions}",
        )
    data = inputs.one("data")
    rows = rows_of(data, tasks)
    plan.lines += prompt_lines(rows)
    plan_images(plan, lambda: rows, data.ref, model, config.max_dropped)
    plan_tracking(plan, config.tracking)
    given = inputs.many("verifiers")
    independent_of = {given[name].digest if name in given else name for name in rewards}
    plan_evaluation(plan, config, inputs, lambda: training_rows(inputs.one("data")), independent_of)
    return plan


def prompt_lines(rows: Sequence[Row]) -> list[str]:
    """How many prompts each task has, about how many things (groups), and a note where these are few."""
    groups: dict[str, Counter[str]] = {}
    for row in rows:
        groups.setdefault(row.task, Counter())[row.group] += 1
    counts = {task: (of_task.total(), len(of_task)) for task, of_task in sorted(groups.items())}
    said = [f"{task} {number}" + (f" in {of} groups" if of < number else "") for task, (number, of) in counts.items()]
    few = [f"{task} {of}" for task, (number, of) in counts.items() if of < FEW_GROUPS and number >= 2 * of]
    lines = [f"prompts: {', '.join(said)}"] if said else []
    if few:
        lines.append(f"note: few groups ({', '.join(few)}): a policy can learn these and answer prompts about other things worse")
    return lines


def rows_of(data: Artifact, tasks: Collection[str]) -> list[Row]:
    """The rows that are drawn; none where they cannot be read: the run says why."""
    try:
        return [row for row in training_rows(data) if row.task in tasks]
    except SafeworkError:
        return []


def _written_positions(folder: Path) -> int | None:
    """The positions that a model's ``config.json`` gives, for prompt and reply together; None where it gives none."""
    try:
        written = json.loads((folder / "config.json").read_text())
        positions = written.get("text_config", written).get("max_position_embeddings")
    except (OSError, ValueError, AttributeError):
        return None  # the run says what is wrong with the folder
    return positions if isinstance(positions, int) else None


def rl_work(config: RlConfig, model: Artifact, data: Artifact) -> Work:
    """The work of one process, if every reply is as long as allowed: how long replies will be is not known."""
    shape = ModelShape.of(model.path)
    lengths, patches = _prompt_lengths(config, model, data)
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
        sampling=_sampling(config, round(longest)), loads_parts=not config.preflight_groups, others_divided=True,
        images=images_work(model.path, patches, prompts, passes, trained=config.train_vision),
    )  # fmt: skip


def _prompt_lengths(config: RlConfig, model: Artifact, data: Artifact) -> tuple[list[float], list[int]]:
    """Tokens of the prompts, about, and patches of their images."""
    try:
        rows = training_rows(data)
    except InputError:
        return [float(config.max_prompt_length)], []  # the run says what is wrong with the rows
    texts = ["".join(message["content"] for message in row.prompt) for row in rows]
    ratio, images = characters_per_token(model.path, texts), tokens_and_patches(model.path, rows, config.pixels)
    lengths = [min(len(text) / ratio + tokens, config.max_prompt_length) for text, (tokens, _) in zip(texts, images, strict=True)]
    return lengths, [patches for _, patches in images]


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
