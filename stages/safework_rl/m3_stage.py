"""M3-RL: multimodal, multitask, multiobjective reinforcement learning with CPGD.

Takes a policy, prompts of four tasks and verifiers; makes a model. Two curriculum phases: knowledge and general first, then all four
tasks. Refuses: a phase with a task that has no rows, a route to a verifier that was not given, a group size that does not divide the
step's completions.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from safework_cli.stage import Inputs, Outcome, Plan, Settings, Slot, Stage, TaskName, TaskWeights, WorkDir
from safework_rl.routing import Routes, check_routes, digests_of_rules
from safework_rl.settings import MODEL_SLOT, VERIFIERS_SLOT, RlConfig, plan_rl

PROMPTS_SLOT = Slot(("dataset",), "prompts of the tasks, such as starter:rl")


class Phase(Settings):
    """A part of the curriculum."""

    tasks: list[TaskName]
    """Tasks whose prompts are drawn."""
    share: float = Field(gt=0, le=1e6)
    """Share of the steps, relative to the other phases."""


def _two_phases() -> list[Phase]:
    return [Phase(tasks=["knowledge", "general"], share=1.0), Phase(tasks=["safety", "value", "knowledge", "general"], share=2.0)]


class M3Config(RlConfig):
    """Settings of ``safework rl m3``."""

    phases: list[Phase] = Field(default_factory=_two_phases, min_length=1)
    """The curriculum, in order. (That knowledge and general come first is known; the proportions are not published.)"""
    task_weights: TaskWeights = Field(default_factory=dict)
    """How often a task is drawn beside the others of its phase; 1 where not given."""
    filter_groups: bool = True
    """Give no gradient to groups that are all right or all wrong in the task, and look for others in their place."""
    refill_attempts: int = Field(2, ge=0, le=1000)
    """Dynamic sampling: how often a step may sample other prompts for such groups. 0 leaves them, without a gradient."""
    rewards: Routes = Field(default_factory=dict, validate_default=True)
    """Task → verifier → weight, in place of the task's usual route; the first verifier says whether a reply is right. Names: a KEY
    of verifiers.KEY, or a rule (correctness, refusal, language, …)."""

    @model_validator(mode="after")
    def _drawn(self) -> M3Config:
        for number, phase in enumerate(self.phases, 1):
            if phase.tasks and not any(self.task_weights.get(task, 1.0) for task in phase.tasks):
                raise ValueError(f"task_weights leave phase {number} without a task: {', '.join(phase.tasks)} all have the weight 0")
        return self


class M3Stage(Stage):
    name = "rl m3"
    version = 3  # 3: groups that teach nothing are sampled again, language term; 2: other draws from the same seed
    summary = "M3-RL: multimodal, multitask, multiobjective reinforcement learning with CPGD."
    Config = M3Config
    inputs = {"model": MODEL_SLOT, "data": PROMPTS_SLOT, "verifiers": VERIFIERS_SLOT}
    output = "model"

    def plan(self, config: M3Config, inputs: Inputs) -> Plan:
        plan = plan_rl(config, inputs, f"{inputs.one('model').name.removesuffix('-sft')}-m3")
        plan.lines += [f"phase {i}: {', '.join(phase.tasks)} ({phase.share:g} parts)" for i, phase in enumerate(config.phases, 1)]
        check_routes(plan, config.rewards, {task for phase in config.phases for task in phase.tasks}, inputs)
        return plan

    def external_digests(self, config: M3Config) -> dict[str, str]:
        """What the rules rest on."""
        return digests_of_rules(config.rewards)

    def run(self, config: M3Config, inputs: Inputs, work: WorkDir) -> Outcome:
        from safework_rl.objectives import M3Objective
        from safework_rl.train import task_rewards, train

        objective = M3Objective(task_rewards(config, config.rewards, inputs), config.weighting, config.filter_groups)
        phases = [(phase.tasks, phase.share) for phase in config.phases]
        refill = config.refill_attempts if config.filter_groups else 0
        return train(config, objective, inputs, work, phases=phases, task_weights=config.task_weights, refill=refill)


stage = M3Stage()
