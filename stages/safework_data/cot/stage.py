"""Have a teacher write reasoned replies, and keep those that pass: k samples a prompt, verifiers, rejection.

Takes prompts and a teacher (a model, or one on a server), and verifiers where wanted; makes rows whose replies are
`<think>reasoning</think>answer`. Prompts for which all samples fail are listed by name with their reasons. Refuses: no teacher or two, a
threshold for a verifier that was not given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from safework_cli.core.errors import SafeworkError, nearest
from safework_cli.core.stage import Inputs, Outcome, Plan, Slot, Stage, WorkDir
from safework_cli.data.image_rows import plan_images
from safework_cli.engines.work import plan_replies
from safework_cli.verifiers.rules.registry import bare_name, rule_digests
from safework_data.cot.config import DEFAULT_SCORE, LENIENT, CotConfig, refusal_score
from safework_data.cot.prompts import asked_rows
from safework_data.show import counts_table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from safework_cli.core.artifacts import Artifact


class CotStage(Stage):
    name: ClassVar[str] = "data cot"
    version: ClassVar[int] = 4  # 4: seeds hashed by prompt for a served teacher; 3: held-out rows left out; 2: ids of replies
    summary: ClassVar[str] = "Have a teacher write reasoned replies, and keep those that pass: k samples a prompt, verifiers, rejection."
    Config = CotConfig
    inputs: ClassVar[dict[str, Slot]] = {
        "data": Slot(("dataset",), "rows whose prompts are answered, such as NAME:rl"),
        "model": Slot(("model",), "the teacher", optional=True),
        "verifiers": Slot(("verifier",), "verifiers that accept or reject, by name, such as verifiers.safety", optional=True, many=True),
    }
    output: ClassVar[str] = "dataset"

    def plan(self, config: CotConfig, inputs: Inputs) -> Plan:
        data, model, judges = inputs.one("data"), inputs.maybe("model"), inputs.many("verifiers")
        plan = Plan(name=f"{data.name}-cot")
        if (model is None) == (config.engine.endpoint is None):
            plan.refuse(
                "give either model=REF or engine.kind=openai",
                "one of them is the teacher",
                "model=NAME, or engine.kind=openai engine.url=… engine.model=…",
            )
        for name in config.min_scores:
            if name not in judges:
                plan.refuse(f"min_scores names '{name}'{nearest(name, judges)}", "no such verifier was given", f"add verifiers.{name}=…")
        for name, judge in judges.items():
            threshold = config.min_scores.get(name, DEFAULT_SCORE)
            if "refusal" in map(bare_name, config.rules) and (paid := refusal_score(judge.path)) is not None and paid < threshold:
                plan.refuse(
                    f"no refusal of a harmful prompt could pass '{name}'",
                    f"the rule 'refusal' wants one, and {judge.ref} scores 'Safe with refusal' {paid:g}, below {threshold:g}",
                    f"min_scores.{name}={paid:g}, or leave the rule out: rules=[format, correctness, language]",
                )
        if config.samples > 1 and config.temperature == 0:
            plan.refuse(
                f"samples={config.samples} at temperature 0", "all samples of a prompt would be the same", "samples=1, or temperature=0.8"
            )
        if config.keep > config.samples:
            plan.refuse(f"keep={config.keep} of samples={config.samples}", "more would be kept than sampled", f"samples={config.keep}")
        try:
            rows = asked_rows(config, data)
        except SafeworkError as refusal:
            plan.refusals.append(refusal)
            rows = []
        plan_images(plan, lambda: rows, data.ref, model)
        teacher = model.ref if model else config.engine.model or "no teacher"
        accepted = ", ".join([*config.rules, *(f"{name} ≥ {config.min_scores.get(name, DEFAULT_SCORE):g}" for name in judges)])
        plan.lines = [
            f"ask {teacher} for {config.samples} replies to each prompt of {data.ref}"
            + ("; each that holds the gold answer becomes the thought before it" if config.thought == "answer" else ""),
            f"keep {config.keep} that pass: {accepted}",
        ]
        batch = config.generation_batch_size
        plan_replies(plan, model, config.engine, batch=batch, reply=config.max_tokens, judges=judges.values())
        return plan

    def show(self, artifact: Artifact) -> RenderableType:
        """Samples that were rejected (by their first reason), and the rows that were kept of each task."""
        from rich.console import Group
        from rich.text import Text

        metrics = artifact.manifest.metrics
        tasks = ", ".join(f"{task} {of_task['rows']:,}" for task, of_task in metrics["by_task"].items())
        rejected = dict(metrics["rejected"])
        prompts = f"{metrics['prompts']:,} prompts, {metrics['failed_prompts']:,} of them failed with every sample"
        prompts += f"; {metrics['accepted']:,} samples passed, {metrics['rows']:,} of them kept"
        return Group(counts_table("samples", [(artifact.name, metrics["samples"], rejected, metrics["rows"], tasks)]), Text(prompts))

    def external_digests(self, config: CotConfig) -> dict[str, str]:
        """What the rules rest on."""
        return rule_digests([*config.rules, *([LENIENT] if config.thought == "answer" else [])])

    def run(self, config: CotConfig, inputs: Inputs, work: WorkDir) -> Outcome:
        from safework_data.cot.run import construct

        return construct(config, inputs, work)


stage = CotStage()
