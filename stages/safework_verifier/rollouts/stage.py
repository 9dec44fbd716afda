"""Sample continuations from prefixes of a model's replies and judge them: Monte-Carlo values to train value models on.

Takes a policy, prompts and a judge for each principle; makes rows of prefixes with the mean score of their continuations under each
principle. Refuses settings without a principle, and a principle with two judges.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from safework_cli.core.stage import Inputs, Outcome, Plan, Slot, Stage, WorkDir
from safework_cli.data.dataset import prompts_of
from safework_cli.data.image_rows import plan_images
from safework_cli.engines.work import plan_replies
from safework_cli.verifiers.rules.registry import rule_digests
from safework_verifier.rollouts.config import RolloutsConfig

if TYPE_CHECKING:
    from rich.console import RenderableType

    from safework_cli.core.artifacts import Artifact


class RolloutsStage(Stage):
    name = "verifier rollouts"
    version = 3  # 3: images kept as they are; 2: a seed for each reply and continuation, histories asked, held-out rows left out
    summary = "Sample continuations from prefixes of a model's replies and judge them: Monte-Carlo values to train value models on."
    Config = RolloutsConfig
    inputs = {
        "model": Slot(("model",), "the policy whose replies are valued"),
        "data": Slot(("dataset",), "rows whose prompts are answered, such as NAME:rl"),
        "verifiers": Slot(("verifier",), "a judge by its principle, such as verifiers.safety", optional=True, many=True),
    }
    output = "dataset"
    engine_protocol = "tokens"

    def plan(self, config: RolloutsConfig, inputs: Inputs) -> Plan:
        judges = inputs.many("verifiers")
        plan = Plan(name=f"{inputs.one('model').name}-rollouts")
        if not judges and not config.rules:
            plan.refuse("no principle is given", "no judge for the continuations", "rules.safety=refusal, or verifiers.safety=REF")
        data = inputs.one("data")
        plan_images(plan, lambda: prompts_of(data, tasks=config.tasks, limit=config.limit), data.ref, inputs.one("model"))
        for name in sorted(set(judges) & set(config.rules)):
            plan.refuse(f"principle '{name}' has both a rule and a verifier", "one principle has one judge", f"remove rules.{name}")
        plan.lines = [
            f"ask {inputs.one('model').ref} for {config.replies} replies to each prompt of {inputs.one('data').ref}",
            f"cut each at up to {config.prefixes} steps",
            f"continue each prefix {config.continuations} times; principles: "
            + ", ".join(
                [*(f"{name} by {a.ref}" for name, a in judges.items()), *(f"{name} by rule:{rule}" for name, rule in config.rules.items())]
            ),
        ]
        model, batch = inputs.one("model"), config.generation_batch_size
        plan_replies(plan, model, config.engine, batch=batch, reply=config.max_tokens, judges=judges.values())
        return plan

    def external_digests(self, config: RolloutsConfig) -> dict[str, str]:
        """Digests of the rules' versions, parameters and libraries."""
        return rule_digests(sorted(config.rules.values()))

    def show(self, artifact: Artifact) -> RenderableType:
        from safework_verifier.table import rollouts_table

        return rollouts_table(artifact)

    def run(self, config: RolloutsConfig, inputs: Inputs, work: WorkDir) -> Outcome:
        from safework_verifier.rollouts.run import roll_out

        return roll_out(config, inputs, work)


stage = RolloutsStage()
