"""Safe-and-efficient RL: shorter reasoning, rewarded only where the reply is safe and right.

Takes a policy, prompts and verifiers; makes a model. The conditional length advantage is CANON's (default) or DDCA's: both replace
CALE, whose formula is not published. Refuses what ``rl m3`` refuses.
"""

from __future__ import annotations

from safework_cli.core.registry import load_registered
from safework_cli.core.stage import Inputs, Outcome, Plan, Slot, WorkDir
from safework_cli.training.heldout import EVAL_SLOTS
from safework_rl.closing import PolicyStage
from safework_rl.config import MODEL_SLOT, VERIFIERS_SLOT
from safework_rl.efficient.config import EfficientConfig
from safework_rl.plan import plan_rl
from safework_rl.reference import REFERENCE_SLOT, plan_reference, without_reward
from safework_rl.registry import LOSSES, OBJECTIVES, package_digests
from safework_rl.routing import check_routes, digests_of_rules, rewarded_by


class EfficientStage(PolicyStage):
    name = "rl efficient"
    version = 7
    # 7: held-out prompts by task; 6: groups are filtered and refilled, lengths that hardly differ do not count; 5: bf16; 4: several updates
    # a rollout, sample deviation, draws by completion; 3: language term; 2: other draws
    summary = "Safe-and-efficient RL: shorter reasoning, rewarded only where the reply is safe and right."
    Config = EfficientConfig
    inputs = {
        "model": MODEL_SLOT,
        "data": Slot(("dataset",), "prompts of the tasks, such as starter:rl"),
        "verifiers": VERIFIERS_SLOT,
        "reference": REFERENCE_SLOT,
        **EVAL_SLOTS,
    }
    output = "model"

    def plan(self, config: EfficientConfig, inputs: Inputs) -> Plan:
        tasks = config.drawn
        rewards = rewarded_by(config.rewards, tasks)
        plan = plan_rl(config, inputs, f"{inputs.one('model').name.removesuffix('-m3')}-efficient", rewards, tasks)
        strength = f"alpha {config.alpha:g}" if config.length_advantage == "canon" else f"beta {config.ddca_beta:g}"
        plan.lines.append(f"length advantage: {config.length_advantage} (in place of CALE), {strength}")
        check_routes(plan, config.rewards, tasks, inputs)
        plan_reference(plan, config, inputs, tasks, config.rewards)
        return plan

    def external_digests(self, config: EfficientConfig) -> dict[str, str]:
        """What the rules rest on, and the package of the loss."""
        return digests_of_rules(config.rewards) | package_digests([(LOSSES, config.algorithm)])

    def run(self, config: EfficientConfig, inputs: Inputs, work: WorkDir) -> Outcome:
        from safework_rl.run import task_rewards, train

        objective = load_registered(OBJECTIVES, "efficient", "objective")(config, task_rewards(config, config.rewards, inputs, work.world))
        unrewarded = without_reward(config.rewards, config.drawn)
        return train(
            config, objective, inputs, work,
            phases=config.curriculum, task_weights=config.task_weights, refill=config.refills, unrewarded=unrewarded,
        )  # fmt: skip


stage = EfficientStage()
