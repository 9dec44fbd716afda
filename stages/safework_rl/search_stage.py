"""Deliberative-search RL: think, search, read, say how sure you are, answer; reliability is a constraint.

Takes a policy, an index and questions with gold answers; makes a model. Reliability (certain when right, uncertain when wrong) is
held above a threshold by a Lagrange multiplier. Refuses: questions without gold answers, limits that leave no room for a turn.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from safework_cli.stage import Inputs, Outcome, Plan, Settings, Slot, Stage, WorkDir
from safework_rl.settings import MODEL_SLOT, RlConfig, plan_rl


class LimitSettings(Settings):
    """Caps of an episode."""

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
            raise ValueError(f"multiplier={self.multiplier:g} lies outside low={self.low:g} and high={self.high:g}")
        return self


class SearchConfig(RlConfig):
    """Settings of ``safework rl search``."""

    max_completion_length: int = Field(768, ge=8, le=10**6)
    """Tokens of an episode after the question, retrieved text included."""
    limits: LimitSettings = LimitSettings()
    """Caps of an episode."""
    reliability: ReliabilitySettings = ReliabilitySettings()
    """The reliability constraint."""


class SearchRlStage(Stage):
    name = "rl search"
    version = 3  # 3 and 2: other draws from the same seed
    summary = "Deliberative-search RL: think, search, read, say how sure you are, answer; reliability is a constraint."
    Config = SearchConfig
    inputs = {
        "model": MODEL_SLOT,
        "index": Slot(("index",), "what is searched"),
        "data": Slot(("dataset",), "questions of the task search with gold answers, such as starter:rl"),
    }
    output = "model"

    def plan(self, config: SearchConfig, inputs: Inputs) -> Plan:
        plan = plan_rl(config, inputs, f"{inputs.one('model').name.removesuffix('-efficient')}-search")
        plan.lines += [
            f"episodes over {inputs.one('index').ref}: {config.limits.turns} turns of {config.limits.turn_tokens} tokens, "
            f"{config.limits.results} results",
            f"reliability ≥ {config.reliability.threshold:g}, λ from {config.reliability.multiplier:g}",
        ]
        if config.limits.turn_tokens > config.max_completion_length:
            plan.refuse(
                f"limits.turn_tokens={config.limits.turn_tokens} exceeds max_completion_length={config.max_completion_length}",
                "no episode could take a single turn",
                "raise max_completion_length",
            )
        return plan

    def external_digests(self, config: SearchConfig) -> dict[str, str]:
        """What the rule that compares answers rests on."""
        from safework_cli.verifiers.rules import rule_digests

        return rule_digests(["correctness"])

    def run(self, config: SearchConfig, inputs: Inputs, work: WorkDir) -> Outcome:
        from safework_cli.episode.index import SearchIndex
        from safework_cli.episode.runner import EpisodeLimits
        from safework_cli.verifiers.rules import rule_verifier
        from safework_rl.lagrange import Multiplier
        from safework_rl.objectives import SearchObjective
        from safework_rl.train import train

        r = config.reliability
        multiplier = Multiplier(r.multiplier, r.threshold, r.step, r.low, r.high, r.decay)
        objective = SearchObjective(rule_verifier("correctness"), multiplier, r.certain, config.weighting, config.correct_threshold)
        limits = EpisodeLimits(config.limits.turns, config.limits.results, config.limits.turn_tokens, config.max_completion_length)
        index = SearchIndex.load(inputs.one("index").path)
        return train(config, objective, inputs, work, phases=[(["search"], 1.0)], task_weights={}, search=(index, limits))


stage = SearchRlStage()
