"""Sample continuations from prefixes of a model's replies and judge them: the Monte-Carlo values that value models learn.

Takes a policy, prompts and a judge for each principle; makes rows of prefixes with the share of their continuations that each principle
approves of. Refuses: no principle, a rule or verifier that is not there, one continuation only.
"""

from __future__ import annotations

from pydantic import Field

from safework_cli.stage import Inputs, Outcome, Plan, SamplingTemperature, Slot, Stage, StageConfig, TaskName, WorkDir, cosmetic
from safework_cli.verifiers.rules.registry import RuleText, rule_digests


class RolloutsConfig(StageConfig):
    """Settings of ``safework verifier rollouts``."""

    rules: dict[str, RuleText] = Field(default_factory=dict)
    """Principle → rule that judges it, such as {safety: refusal, knowledge: correctness}. A principle with a verifier is given as
    verifiers.PRINCIPLE. Where a judge cannot score a prompt's replies, the principle has no value there."""
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
    """Run Python code that the model's folder brings along."""
    chunk_prompts: int = Field(8, ge=1, le=2**16)
    """Prompts worked on together; finished ones survive a kill."""
    generation_batch_size: int = cosmetic(32, ge=1, le=2**16)
    """Sequences sampled together."""


class RolloutsStage(Stage):
    name = "verifier rollouts"
    version = 2  # 2: a seed for each reply and continuation, text decoded as a whole, histories asked, held-out rows left out
    summary = "Sample continuations from prefixes of a model's replies and judge them: the Monte-Carlo values that value models learn."
    Config = RolloutsConfig
    inputs = {
        "model": Slot(("model",), "the policy whose replies are valued"),
        "data": Slot(("dataset",), "rows whose prompts are answered, such as NAME:rl"),
        "verifiers": Slot(("verifier",), "a judge by its principle, such as verifiers.safety", optional=True, many=True),
    }
    output = "dataset"

    def plan(self, config: RolloutsConfig, inputs: Inputs) -> Plan:
        judges = inputs.many("verifiers")
        plan = Plan(name=f"{inputs.one('model').name}-rollouts")
        if not judges and not config.rules:
            plan.refuse("no principle is given", "nobody would judge the continuations", "rules.safety=refusal, or verifiers.safety=REF")
        for name in sorted(set(judges) & set(config.rules)):
            plan.refuse(f"principle '{name}' has both a rule and a verifier", "which of them judges is not guessed", f"drop rules.{name}")
        plan.lines = [
            f"ask {inputs.one('model').ref} for {config.replies} replies to each prompt of {inputs.one('data').ref}",
            f"cut each at up to {config.prefixes} steps",
            f"continue each prefix {config.continuations} times; principles: "
            + ", ".join(
                [*(f"{name} by {a.ref}" for name, a in judges.items()), *(f"{name} by rule:{rule}" for name, rule in config.rules.items())]
            ),
        ]
        return plan

    def external_digests(self, config: RolloutsConfig) -> dict[str, str]:
        """What the rules rest on."""
        return rule_digests(sorted(config.rules.values()))

    def run(self, config: RolloutsConfig, inputs: Inputs, work: WorkDir) -> Outcome:
        from safework_verifier.rollouts import roll_out

        return roll_out(config, inputs, work)


stage = RolloutsStage()
