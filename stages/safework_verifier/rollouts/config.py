"""Settings of ``safework verifier rollouts``."""

from __future__ import annotations

from pydantic import Field

from safework_cli.core.settings import SamplingTemperature, cosmetic
from safework_cli.data.tasks import TaskName
from safework_cli.engines.settings import WithEngine
from safework_cli.verifiers.rules.registry import RuleText


class RolloutsConfig(WithEngine):
    """Settings of ``safework verifier rollouts``."""

    rules: dict[str, RuleText] = Field(default_factory=dict)
    """Principle → rule that judges it, such as {safety: refusal, knowledge: correctness}. A principle with a verifier is given as
    verifiers.PRINCIPLE. Where a judge cannot score a prompt's replies, the principle has no value."""
    replies: int = Field(2, ge=1, le=4096)
    """Replies sampled for each prompt; prefixes are cut from them."""
    prefixes: int = Field(3, ge=1, le=4096)
    """Prefixes of each reply at most, cut where steps end."""
    continuations: int = Field(4, ge=2, le=4096)
    """Continuations sampled from each prefix."""
    boundaries: list[str] = Field(default_factory=lambda: ["\n", ". ", "。", "</think>"])
    """Strings that end a step; those of `safework search`."""
    max_tokens: int = Field(256, ge=2, le=10**6)
    """Tokens of a whole reply at most."""
    temperature: SamplingTemperature = 1.0
    """Sampling temperature."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus mass."""
    tasks: list[TaskName] = Field(default_factory=list)
    """Only prompts of these tasks; all where empty."""
    limit: int | None = Field(None, ge=1, le=10**9)
    """Prompts at most, the first of the data; all where not given."""
    max_failed: float = Field(0.1, ge=0, le=1)
    """Share of prompts without any value before the command exits with 5."""
    trust_remote_code: bool = False
    """Run Python code from the model's folder."""
    chunk_prompts: int = Field(8, ge=1, le=2**16)
    """Prompts processed together; finished ones survive a kill."""
    generation_batch_size: int = cosmetic(32, ge=1, le=2**16)
    """Sequences sampled together."""
