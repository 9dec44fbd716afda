"""What a stage that has replies written asks its machine for. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable

from safework_cli.core.artifacts import Artifact
from safework_cli.core.artifacts.payload import parameter_count
from safework_cli.core.errors import InputError
from safework_cli.core.plan.shape import ModelShape
from safework_cli.core.plan.work import Sampling, Work
from safework_cli.core.stage import Plan
from safework_cli.engines.settings import EngineSettings

PROMPT_TOKENS = 512
"""Of a prompt, where a plan does not read them."""


def plan_replies(
    plan: Plan,
    model: Artifact | None,
    engine: EngineSettings,
    *,
    batch: int,
    reply: int,
    prompt: int = PROMPT_TOKENS,
    replies: int = 0,
    judges: Iterable[Artifact] = (),
) -> None:
    """Adds to a plan what its replies take; nothing where a server writes them.

    Args:
        batch: replies written together.
        reply, prompt: tokens of each, at most.
        replies: how many there will be; 0 where the plan does not know: it then says nothing of their time.
        judges: that are loaded as well; rules and served ones count as nothing.
    """
    if model is None or engine.kind == "openai":
        return
    try:
        shape, others = ModelShape.of(model.path), sum(map(_numbers, judges))
    except InputError:
        return  # the run says what is wrong with the folder
    vllm = engine.kind == "vllm"
    plan.work = Work(
        model.path, shape, held=shape.parameters // (engine.vllm.tensor_parallel_size if vllm else 1), trained=0, layers=shape.layers,
        backward=0, rows=batch, length=prompt + reply, pass_tokens=batch * prompt, head="last", head_tokens=batch,
        steps=1 if replies else 0, weight_bytes=None, other_half=others,
        sampling=Sampling(batch, prompt, reply, replies, engine.vllm.gpu_memory_utilization if vllm else 0.0),
    )  # fmt: skip


def _numbers(judge: Artifact) -> int:
    return parameter_count(judge.path) if (judge.path / "config.json").exists() else 0
