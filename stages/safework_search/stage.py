"""Answer prompts with search at inference: best-of-n, or step by step under a verifier's guidance.

Takes a model, prompts and guiding verifiers or rules; makes generations. Refuses: no guide, a method that needs several candidates with
fewer than two, a guide weight for a verifier that was not given, weights that are all 0. A prompt that the chat template refuses or that
leaves no room for a reply is a failed item.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from safework_cli.errors import nearest
from safework_cli.stage import Inputs, Outcome, Plan, SamplingTemperature, Slot, Stage, StageConfig, Weight, WorkDir, cosmetic


class GuidedConfig(StageConfig):
    """Settings of ``safework search``."""

    method: Literal["best_of_n", "guided_steps"] = "guided_steps"
    """best_of_n: whole replies, the best one is kept; guided_steps: at each step several continuations, the best one is kept."""
    candidates: int = Field(4, ge=2, le=4096)
    """Replies (best_of_n) or continuations of each step (guided_steps)."""
    max_tokens: int = Field(256, ge=1, le=10**6)
    """Tokens of a reply at most."""
    step_tokens: int = Field(48, ge=1, le=10**6)
    """Tokens of one step at most."""
    boundaries: list[str] = Field(default_factory=lambda: ["\n", ". ", "。", "</think>"])
    """Strings that end a step."""
    temperature: SamplingTemperature = 0.8
    """Sampling temperature."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Nucleus mass."""
    guide_weights: dict[str, Weight] = Field(default_factory=dict)
    """Weight of each guide in the score of a candidate; 1 where not given."""
    likelihood_weight: float = Field(0.0, ge=0, le=1000)
    """Weight of the candidate's mean log-probability (nats per token) in its score; ties go to the likelier candidate anyway."""
    limit: int | None = Field(None, ge=1, le=10**9)
    """Prompts at most, the first of the data; all where not given."""
    tasks: list[str] = Field(default_factory=list)
    """Only prompts of these tasks; all where empty."""
    max_failed: float = Field(0.05, ge=0, le=1)
    """Share of prompts for which no candidate could be scored before the command exits with 5."""
    trust_remote_code: bool = False
    """Run Python code that the model's folder brings along."""
    batch_prompts: int = cosmetic(8, ge=1, le=2**16)
    """Prompts worked on together; finished batches survive a kill."""
    generation_batch_size: int = cosmetic(32, ge=1, le=2**16)
    """Sequences sampled together."""


class SearchStage(Stage):
    name = "search"
    version = 3  # 3: a seed for each candidate, a step's room is its own reply's; 2: other draws from the same seed
    summary = "Answer prompts with search at inference: best-of-n, or step by step under a verifier's guidance."
    Config = GuidedConfig
    inputs = {
        "model": Slot(("model",), "the model that answers"),
        "prompts": Slot(("dataset",), "rows whose prompts are answered, such as starter:heldout"),
        "guide": Slot(
            ("verifier",), "verifiers or rules that choose, by name: guide.safety=NAME, guide.refusal=rule:refusal", many=True, rules=True
        ),
    }
    output = "generations"

    def plan(self, config: GuidedConfig, inputs: Inputs) -> Plan:
        guides = inputs.many("guide")
        plan = Plan(name=f"{inputs.one('model').name}-{config.method.replace('_', '-')}")
        plan.lines = [
            f"answer {inputs.one('prompts').ref} with {inputs.one('model').ref} by {config.method}, {config.candidates} candidates",
            "guided by " + ", ".join(f"{name} = {a.ref} (weight {config.guide_weights.get(name, 1.0):g})" for name, a in guides.items()),
        ]
        for name in config.guide_weights:
            if name not in guides:
                plan.refuse(f"guide_weights names '{name}'{nearest(name, guides)}", "no such guide was given", f"add guide.{name}=…")
        if problem := weights_problem(list(guides), config.guide_weights, config.likelihood_weight):
            plan.refuse(*problem)
        if config.method == "guided_steps" and config.step_tokens > config.max_tokens:
            plan.refuse(
                f"step_tokens={config.step_tokens} exceeds max_tokens={config.max_tokens}",
                "one step would be longer than the reply may be",
                "raise max_tokens",
            )
        return plan

    def run(self, config: GuidedConfig, inputs: Inputs, work: WorkDir) -> Outcome:
        from safework_search.run import run

        return run(config, inputs, work)


def weights_problem(guides: Sequence[str], weights: Mapping[str, float], likelihood_weight: float) -> tuple[str, str, str] | None:
    """What, why and what to do where no weight is above 0; None where something guides."""
    if likelihood_weight > 0 or any(weights.get(name, 1.0) > 0 for name in guides):
        return None
    return (
        "every guide has the weight 0",
        "the likeliest candidate would be kept every time, as without search",
        "give one of guide_weights, or likelihood_weight, a number above 0",
    )


stage = SearchStage()
