"""Safe-and-efficient RL: shorter reasoning, paid for only where the reply is safe and right.

Takes a policy, prompts and verifiers; makes a model. The conditional length advantage is CANON's (default) or DDCA's: both stand in
for CALE, whose formula is not published. Refuses what ``rl m3`` refuses.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from safework_cli.stage import Inputs, Outcome, Plan, Slot, Stage, TaskName, WorkDir
from safework_rl.routing import Routes, check_routes, digests_of_rules
from safework_rl.settings import MODEL_SLOT, VERIFIERS_SLOT, RlConfig, plan_rl


class EfficientConfig(RlConfig):
    """Settings of ``safework rl efficient``."""

    length_advantage: Literal["canon", "ddca"] = "canon"
    """The form of the conditional length advantage."""
    mu: float = Field(1.0, ge=0, le=1)
    """CANON: weight of the comparison between the short and the long half; 0 compares within a half."""
    alpha: float = Field(0.9, gt=0, le=1)
    """CANON: discount of long replies; 1 has no preference for length."""
    ddca_beta: float = Field(0.2, ge=0, le=1000)
    """DDCA: weight of the length advantage."""
    tasks: list[TaskName] = Field(default_factory=lambda: ["safety", "value", "knowledge", "general"], min_length=1)
    """Tasks whose prompts are drawn, equally often."""
    rewards: Routes = Field(default_factory=dict, validate_default=True)
    """As in rl m3."""


class EfficientStage(Stage):
    name = "rl efficient"
    version = 3  # 3: language term; 2: other draws from the same seed
    summary = "Safe-and-efficient RL: shorter reasoning, paid for only where the reply is safe and right."
    Config = EfficientConfig
    inputs = {"model": MODEL_SLOT, "data": Slot(("dataset",), "prompts of the tasks, such as starter:rl"), "verifiers": VERIFIERS_SLOT}
    output = "model"

    def plan(self, config: EfficientConfig, inputs: Inputs) -> Plan:
        plan = plan_rl(config, inputs, f"{inputs.one('model').name.removesuffix('-m3')}-efficient")
        plan.lines.append(f"length advantage: {config.length_advantage} (a stand-in for CALE), alpha {config.alpha}")
        check_routes(plan, config.rewards, set(config.tasks), inputs)
        return plan

    def external_digests(self, config: EfficientConfig) -> dict[str, str]:
        """What the rules rest on."""
        return digests_of_rules(config.rewards)

    def run(self, config: EfficientConfig, inputs: Inputs, work: WorkDir) -> Outcome:
        from safework_rl.objectives import EfficientObjective
        from safework_rl.train import task_rewards, train

        rewards = task_rewards(config, config.rewards, inputs)
        objective = EfficientObjective(rewards, config.length_advantage, mu=config.mu, alpha=config.alpha, beta=config.ddca_beta)
        return train(config, objective, inputs, work, phases=[(config.tasks, 1.0)], task_weights={})


stage = EfficientStage()
