"""Settings of ``safework rl search``."""

from __future__ import annotations

from pydantic import Field, model_validator

from safework_cli.core.settings import Settings, Weight
from safework_cli.environments.search.measures import AUROC, SEARCHES
from safework_cli.training.config import EvaluationConfig
from safework_rl.config import RlConfig


class LimitSettings(Settings):
    """How long an episode may be, and how much a search shows."""

    turns: int = Field(4, ge=1, le=1000)
    """Assistant turns."""
    results: int = Field(3, ge=1, le=1000)
    """Search results shown."""
    turn_tokens: int = Field(96, ge=8, le=10**6)
    """Sampled tokens of one turn."""


class ReliabilitySettings(Settings):
    """The constraint. Its constants are not published; these are choices (docs/safeladder.md 6)."""

    threshold: float = Field(0.9, gt=0, le=1)
    """Share of episodes that must be reliable."""
    certain: int = Field(5, ge=1, le=10)
    """Confidence (0–10) from which an answer counts as certain."""
    multiplier: float = Field(0.1, gt=0, le=1e6)
    """λ at the start."""
    step: float = Field(0.1, ge=0, le=1000)
    """Step size of λ's multiplicative update; 0 keeps it fixed."""
    low: float = Field(1e-3, gt=0, le=1e6)
    """Lower bound of λ."""
    high: float = Field(5.0, gt=0, le=1e6)
    """Upper bound of λ."""
    decay: float = Field(0.9, ge=0, lt=1)
    """Decay of the moving average of the measured reliability."""

    @model_validator(mode="after")
    def _ordered(self) -> ReliabilitySettings:
        if not self.low <= self.multiplier <= self.high:
            raise ValueError(f"multiplier={self.multiplier:g} is not between low={self.low:g} and high={self.high:g}")
        return self


OF_EVALUATION = {"reliability": True, "true_certain": True, "false_certain": False, AUROC: True, SEARCHES: False}
"""What an evaluation measures of its episodes (``environments.search.measures``), and whether a larger value is better."""


class SearchConfig(RlConfig):
    """Settings of ``safework rl search``."""

    measured = {**EvaluationConfig.measured, **OF_EVALUATION}
    in_mean = ("reliability",)
    evaluation_limit = "max_completion_length"

    max_completion_length: int = Field(768, ge=8, le=10**6)
    """Tokens of an episode after the question, retrieved text included."""
    category_weights: dict[str, Weight] = Field(default_factory=dict)
    """How often questions of a category (`category` of a row, such as two_hop) are drawn, relative to the others; 1 where not given. Where
    empty, all questions are drawn alike."""
    limits: LimitSettings = LimitSettings()
    """Caps of an episode."""
    reliability: ReliabilitySettings = ReliabilitySettings()
    """The reliability constraint."""

    def unused(self) -> list[str]:
        """Also what an episode's own format and reward leave unread."""
        unused = [text for text in super().unused() if not text.startswith(("format.", "language."))]
        blocks = {"format": self.format, "language": self.language}
        names = [f"{name}.{key}" for name, block in blocks.items() for key in sorted(block.model_fields_set)]
        if "eval_max_tokens" in self.model_fields_set:
            unused.append("eval_max_tokens is not read: limits and max_completion_length end an episode in evaluations, too")
        return unused + [f"{name} is not read: an episode has a format of its own" for name in names]
