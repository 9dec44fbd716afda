"""Settings of ``safework search``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from safework_cli.core.settings import SamplingTemperature, Weight, cosmetic
from safework_cli.data.tasks import TaskName
from safework_cli.engines.settings import WithEngine


class GuidedConfig(WithEngine):
    """Settings of ``safework search``."""

    method: Literal["best_of_n", "guided_steps"] = "guided_steps"
    """best_of_n: complete replies, the best one is kept; guided_steps: at each step several continuations, the best one is kept."""
    candidates: int = Field(4, ge=2, le=4096)
    """Replies (best_of_n) or continuations of each step (guided_steps)."""
    max_tokens: int = Field(256, ge=1, le=10**6)
    """Most tokens of a reply."""
    step_tokens: int = Field(48, ge=1, le=10**6)
    """Most tokens of one step."""
    boundaries: list[str] = Field(default_factory=lambda: ["\n", ". ", "。", "</think>"])
    """Strings that end a step."""
    temperature: SamplingTemperature = 0.8
    """Sampling temperature."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Nucleus mass."""
    guide_weights: dict[str, Weight] = Field(default_factory=dict)
    """Weight of each guide in the score of a candidate; 1 if not given."""
    likelihood_weight: float = Field(0.0, ge=0, le=1000)
    """Weight of the candidate's mean log-probability (nats per token) in its score; ties go to the more likely candidate."""
    limit: int | None = Field(None, ge=1, le=10**9)
    """Only the first so many prompts of the data; all if not given."""
    tasks: list[TaskName] = Field(default_factory=list)
    """Only prompts of these tasks; all if empty."""
    max_failed: float = Field(0.05, ge=0, le=1)
    """Share of prompts for which no candidate could be scored before the command exits with 5."""
    trust_remote_code: bool = False
    """Run Python code from the model's folder."""
    batch_prompts: int = cosmetic(8, ge=1, le=2**16)
    """Prompts processed together; finished batches survive a kill."""
    generation_batch_size: int = cosmetic(32, ge=1, le=2**16)
    """Sequences sampled together."""

    def without_effect(self) -> list[str]:
        given = [name for name in ("step_tokens", "boundaries") if name in self.model_fields_set and self.method != "guided_steps"]
        return [f"{name} is not read with method={self.method}: its replies are complete" for name in given]


def weights_problem(guides: Sequence[str], weights: Mapping[str, float], likelihood_weight: float) -> tuple[str, str, str] | None:
    """What, why and what to do if no weight is above 0; None otherwise."""
    if likelihood_weight > 0 or any(weights.get(name, 1.0) > 0 for name in guides):
        return None
    return (
        "every guide has the weight 0",
        "the most likely candidate would always be kept, as without search",
        "give one of guide_weights, or likelihood_weight, a number above 0",
    )
