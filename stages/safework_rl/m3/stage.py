"""M3-RL: multimodal, multitask, multiobjective reinforcement learning with CPGD.

Takes a policy, prompts of four tasks and verifiers; makes a model. Two curriculum phases: knowledge and general first, then all four
tasks. Refuses: a phase with a task that has no rows, a route to a verifier that was not given, a group size that does not divide the
step's completions.
"""

from __future__ import annotations

from safework_cli.core.registry import load_registered
from safework_cli.core.stage import Inputs, Outcome, Plan, Slot, WorkDir
from safework_cli.training.heldout import EVAL_SLOTS
from safework_rl.closing import PolicyStage
from safework_rl.config import MODEL_SLOT, VERIFIERS_SLOT
from safework_rl.m3.config import M3Config
from safework_rl.plan import plan_rl
from safework_rl.reference import REFERENCE_SLOT, plan_reference, without_reward
from safework_rl.registry import LOSSES, OBJECTIVES, package_digests
from safework_rl.routing import check_routes, digests_of_rules, rewarded_by

PROMPTS_SLOT = Slot(("dataset",), "prompts of the tasks, such as starter:rl")


class M3Stage(PolicyStage):
    name = "rl m3"
    version = 6  # 6: held-out prompts by task; 5: bf16; 4: several updates a rollout, sample deviation; 3: refill, language term; 2: draws
    summary = "M3-RL: multimodal, multitask, multiobjective reinforcement learning with CPGD."
    Config = M3Config
    inputs = {"model": MODEL_SLOT, "data": PROMPTS_SLOT, "verifiers": VERIFIERS_SLOT, "reference": REFERENCE_SLOT, **EVAL_SLOTS}
    output = "model"

    def plan(self, config: M3Config, inputs: Inputs) -> Plan:
        tasks = config.drawn
        rewards = rewarded_by(config.rewards, tasks)
        plan = plan_rl(config, inputs, f"{inputs.one('model').name.removesuffix('-sft')}-m3", rewards, tasks)
        plan.lines += [f"phase {i}: {', '.join(phase.tasks)} ({phase.share:g} parts)" for i, phase in enumerate(config.phases, 1)]
        check_routes(plan, config.rewards, tasks, inputs)
        plan_reference(plan, config, inputs, tasks, config.rewards)
        return plan

    def external_digests(self, config: M3Config) -> dict[str, str]:
        """What the rules rest on, and the packages of what is registered."""
        named = [(LOSSES, config.algorithm), (OBJECTIVES, config.objective)]
        return digests_of_rules(config.rewards) | package_digests(named)

    def run(self, config: M3Config, inputs: Inputs, work: WorkDir) -> Outcome:
        from safework_rl.run import task_rewards, train

        rewards = task_rewards(config, config.rewards, inputs, work.world)
        objective = load_registered(OBJECTIVES, config.objective, "objective")(config, rewards)
        unrewarded = without_reward(config.rewards, config.drawn)
        return train(
            config, objective, inputs, work,
            phases=config.curriculum, task_weights=config.task_weights, refill=config.refills, unrewarded=unrewarded,
        )  # fmt: skip


stage = M3Stage()
