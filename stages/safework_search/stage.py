"""Answer prompts with search at inference: best-of-n, or step by step under a verifier's guidance.

Takes a model, prompts and guiding verifiers or rules; makes generations. Refuses: no guide, a method that needs several candidates with
fewer than two, a guide weight for a verifier that was not given, weights that are all 0. A prompt that the chat template refuses or that
leaves no room for a reply is a failed item.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from safework_cli.core.errors import nearest
from safework_cli.core.formats import percent, plain
from safework_cli.core.stage import Inputs, Outcome, Plan, Slot, Stage, WorkDir
from safework_cli.data.dataset import prompts_of
from safework_cli.data.image_rows import plan_images
from safework_cli.engines.work import plan_replies
from safework_cli.training.closing import closing_table
from safework_cli.verifiers.rules.inputs import rule_artifact
from safework_search.config import GuidedConfig, weights_problem

if TYPE_CHECKING:
    from rich.console import RenderableType

    from safework_cli.core.artifacts import Artifact


class SearchStage(Stage):
    name = "search"
    version = 3  # 3: a seed for each candidate, a step's room is its own reply's; 2: other draws from the same seed
    summary = "Answer prompts with search at inference: best-of-n, or step by step under a verifier's guidance."
    Config = GuidedConfig
    inputs = {
        "model": Slot(("model",), "the model that answers"),
        "prompts": Slot(("dataset",), "rows whose prompts are answered, such as starter:heldout"),
        "guide": Slot(
            ("verifier",),
            "verifiers or rules that choose, by name: guide.safety=NAME, guide.refusal=rule:refusal",
            many=True,
            external=rule_artifact,
        ),
    }
    output = "generations"
    engine_protocol = "tokens"

    def plan(self, config: GuidedConfig, inputs: Inputs) -> Plan:
        guides = inputs.many("guide")
        plan = Plan(name=f"{inputs.one('model').name}-{config.method.replace('_', '-')}")
        plan.lines = [
            f"answer {inputs.one('prompts').ref} with {inputs.one('model').ref} by {config.method}, {config.candidates} candidates",
            "guided by " + ", ".join(f"{name} = {a.ref} (weight {config.guide_weights.get(name, 1.0):g})" for name, a in guides.items()),
        ]
        prompts = inputs.one("prompts")
        rows = partial(prompts_of, prompts, tasks=config.tasks, limit=config.limit, held_out=True)
        plan_images(plan, rows, prompts.ref, inputs.one("model"))
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
        model, batch = inputs.one("model"), config.generation_batch_size
        plan_replies(plan, model, config.engine, batch=batch, reply=config.max_tokens, judges=guides.values())
        return plan

    def show(self, artifact: Artifact) -> RenderableType:
        """What the guides made of the choice: the score of the chosen candidates next to that of all candidates."""
        return closing_table([*_closing_lines(artifact.manifest.metrics, artifact.manifest.failed_items)])

    def run(self, config: GuidedConfig, inputs: Inputs, work: WorkDir) -> Outcome:
        from safework_search.run import run

        return run(config, inputs, work)


def _closing_lines(metrics: Mapping[str, Any], failed: int) -> Iterator[tuple[str, str]]:
    yield "prompts", f"{metrics['prompts']:,}, {metrics['scored']:,} with a score, {failed:,} failed"
    if metrics["score_chosen"] is not None:
        chosen, offered = metrics["score_chosen"], metrics["score_offered"]
        yield "guides' score", f"{plain(chosen)} chosen, {plain(offered)} mean of all candidates ({chosen - offered:+.3f})"
    if metrics["mean_tokens"] is not None:
        yield "replies", f"{plain(metrics['mean_tokens'])} tokens on average, {percent(metrics['stop_rate'], metrics['prompts'])} stopped"


stage = SearchStage()
