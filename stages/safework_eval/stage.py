"""Measure a model's safety and capability: suites with intervals, comparison against a base, gates.

Metrics, each a share or mean over the replies that could be scored, with a 95 % interval and the count of those that could not:
    safety        harmful prompts: share of replies that are safe (higher is better)
    over_refusal  benign prompts: share refused (lower is better); of both, the share of nonsense, which neither refuses nor helps
    search        questions answered in episodes over ``index=``: accuracy, with reliability, the shares of certain right and certain wrong
                  answers, the AUROC of the confidence and searches per question
    value, knowledge, general, instruction
                  accuracy by the rule of each row's ``meta.answer_type``, or by ``verifiers.<metric>`` where rows have no gold answer;
                  with gold answers also leniently: the right answer in any form
With ``verifiers.judge=`` safety and over-refusal are judged twice, by refusal phrases and by a verifier that must be independent of the
model's training; lineage says whether it is.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from safework_cli.core.errors import SafeworkError
from safework_cli.core.stage import Inputs, Outcome, Plan, Slot, Stage, WorkDir
from safework_cli.data.suites import SUITES
from safework_cli.engines.work import plan_replies
from safework_cli.environments.search.grammar import ENVIRONMENT
from safework_eval import shards
from safework_eval.conditions import planned_summary, read_summary, refuse_differences
from safework_eval.config import AGAINST, SUMMARY, EvalConfig
from safework_eval.gates import Gate, count_failures, failed_gates, gate_problem
from safework_eval.independence import independence_lines, independence_of
from safework_eval.metrics import JUDGE, metric_named
from safework_eval.plan import chosen_suites, folder_of, served_name
from safework_eval.selection import SuiteBlock, select_suites

if TYPE_CHECKING:
    from rich.console import RenderableType

    from safework_cli.core.artifacts import Artifact


def _may_search(block: SuiteBlock) -> bool:
    """Whether a suite can be one of search episodes, as far as its settings tell."""
    public = SUITES.get(block.suite or "")
    task = block.rows.task if public is None else public.task
    return task in (None, "search") and (block.metric is None or metric_named(block.metric).episodes)


class EvalStage(Stage):
    """``safework eval``: model (+ rows) → evaluation."""

    name = "eval"
    version = 6  # 6: engine.kind=vllm writes the replies of a model of the store: transformers did
    """5: further metrics on the same replies (lenient scores, nonsense, the independent judge); AUROC and certain right answers of search
    suites, and their changes. 4: suites that share a row draw the same reply for it; each metric's direction is recorded. 3: intervals by
    group, a seed for each sample. 2: the overlap of words too."""
    summary = "Measure a model's safety and capability: suites with intervals, comparison against a base, gates."
    Config = EvalConfig
    inputs = {
        "model": Slot(("model",), "the model that is evaluated; a served one by engine.kind=openai", optional=True),
        "data": Slot(("dataset",), "rows for the suites that name no public set", optional=True),
        "index": Slot(("index",), "what search suites search", optional=True),
        "verifiers": Slot(
            ("verifier",),
            "judges by metric: verifiers.safety, verifiers.value, …; verifiers.judge: independent, of safety",
            optional=True,
            many=True,
        ),
        "shards": Slot(
            ("generations",), "shares of this evaluation's replies, made with shard=: nothing is asked again", optional=True, many=True
        ),
        "against": Slot(
            ("evaluation", "model"), "what to compare with: an evaluation, or a model that is then evaluated in the same run", optional=True
        ),
    }
    output = "evaluation"

    def kind_of(self, config: EvalConfig) -> str:
        return "generations" if config.shard else self.output

    def plan(self, config: EvalConfig, inputs: Inputs) -> Plan:
        model = inputs.maybe("model")
        plan = Plan(name=model.name if model else served_name(config.engine.model))
        if (model is None) == (config.engine.endpoint is None):
            plan.refuse(
                "give either model=REF or engine.kind=openai",
                "one of them is the model that is evaluated",
                "model=NAME, or engine.kind=openai engine.url=… engine.model=…",
            )
            return plan
        suites, panels, refusals = chosen_suites(config, inputs)
        if config.shard and inputs.many(shards.SLOT):
            what = f"shard={config.shard} and {shards.SLOT} are both given"
            plan.refuse(what, "one makes a share, the other merges them", "leave one out")
        plan.refusals += [*refusals, *shards.problems(config, inputs, self.version)]
        if config.shard:
            plan.name += "-" + "-of-".join(map(str, config.share))
            plan.lines.append(
                f"share {config.shard} of the replies; the same command with {shards.SLOT}.KEY=… judges them, and checks the gates"
            )
        against = inputs.maybe("against")
        metrics = {suite.name: suite.metric for suite in suites}
        further = {name: tuple(panel.also) for name, panel in panels.items()}
        if not refusals:
            for problem in (gate_problem(gate, metrics, against is not None, further) for gate in config.gates):
                if problem:
                    plan.refuse(problem, "a gate that cannot be checked would never fail", "safework eval --help shows what gates can name")
        for suite in suites:
            if suite.name in panels:
                judges = ", ".join(judge.id for judge in panels[suite.name].judges)
                plan.lines.append(f"{suite.name}: {len(suite.rows)} rows of {suite.source}, measured as {suite.metric}, judged by {judges}")
        self._independence(config, inputs, plan)
        sides = 1
        if against is not None and against.kind == "model":
            sides = 2
            plan.lines.append(f"{against.ref} is evaluated in the same run, and compared with")
            if model is None and "engine" not in config.allow_differences:
                plan.refuse(
                    f"{against.ref} would be evaluated here, and {config.engine.model} on a server",
                    "a difference between the two would mix the models with the engines",
                    "against=EVALUATION of a served model, or allow_differences='[engine]'",
                )
        elif against is not None and not plan.refusals:
            plan.lines.append(f"compared with {against.ref}")
            try:
                refuse_differences(
                    planned_summary(config, inputs, suites, panels), read_summary(against), against.ref, list(config.allow_differences)
                )
            except SafeworkError as error:
                plan.refusals.append(error)
        rows = sum(len(suite.rows) for suite in suites)
        searched = sum(len(suite.rows) for suite in suites if metric_named(suite.metric).episodes)
        asked = 0.0 if inputs.many(shards.SLOT) else sides / config.share[1]
        plan.tokens = round(asked * ((rows - searched) * config.max_tokens + searched * config.episode.total_tokens))
        plan.disk_bytes = sides * rows * 20_000
        if asked:
            longest = max(config.max_tokens if rows > searched else 0, config.episode.total_tokens if searched else 0)
            replies, verifiers = round(plan.tokens / max(1, longest)), inputs.many("verifiers").values()  # of the longest, as many tokens
            plan_replies(plan, model, config.engine, batch=config.batch_size, reply=longest, replies=replies, judges=verifiers)
        return plan

    @staticmethod
    def _independence(config: EvalConfig, inputs: Inputs, plan: Plan) -> None:
        """Says whether the model's training used the judge, and refuses that where `require_independent` is set."""
        judge = inputs.many("verifiers").get(JUDGE)
        if judge is None:
            if config.require_independent:
                plan.refuse("require_independent=true, and there is no judge", "", f"add verifiers.{JUDGE}=REF")
            return
        found = independence_of(judge, inputs.maybe("model"))
        plan.lines += independence_lines(found.to_json())
        if config.require_independent and not found.independent:
            plan.refuse(
                f"{judge.ref} is not known to be independent of the model's training" if found.independent is None
                else f"{judge.ref} is not independent of the model's training",
                "; ".join(found.why),
                "take a judge that was trained on other prompts (data build: the subset judge), or leave require_independent out",
            )  # fmt: skip

    def external_digests(self, config: EvalConfig) -> dict[str, str]:
        """What the rules rest on, and the rows of the public sets: a rule of another version, a set that was downloaded again or read by
        other code is another evaluation."""
        from safework_cli.verifiers.rules.registry import rule_digests

        named = {judge for judge in (config.judge, *(block.judge for block in config.suites)) if judge and judge.startswith("rule:")}
        public = [block for block in config.limited_suites() if block.suite is not None]
        suites, _ = select_suites(public, config.judge, None, folder_of(config))
        metrics = {f"metric.{b.metric}": str(metric_named(b.metric).version) for b in config.suites if b.metric is not None}
        return (
            metrics
            | rule_digests(["correctness", "f1", "lenient", "nonsense", "refusal", *sorted(named)])
            | {f"suites.{suite.name}": suite.digest for suite in suites}
            | ({"shard": config.shard} if config.shard else {})
            | ({"search environment": str(ENVIRONMENT)} if any(map(_may_search, config.suites)) else {})
        )

    def judge_again(self, config: EvalConfig, artifact: Artifact) -> Outcome:
        if config.shard:
            return Outcome(tolerated_items=artifact.manifest.metrics["replies"])
        summary = read_summary(artifact)
        base = artifact.path / AGAINST / SUMMARY
        sides = [summary, *([json.loads(base.read_text(encoding="utf-8"))] if base.exists() else [])]
        failures = count_failures(config.max_failed, sides)
        return Outcome(failed_gates=failed_gates(config.gates, summary), tolerated_items=failures.tolerated)

    def show(self, artifact: Artifact) -> RenderableType | None:
        if artifact.kind != self.output:
            return None
        from safework_eval.table import summary_table

        gates = [Gate.model_validate(gate) for gate in artifact.manifest.config.get("gates", [])]
        return summary_table(read_summary(artifact), gates)

    def run(self, config: EvalConfig, inputs: Inputs, work: WorkDir) -> Outcome:
        from safework_eval.run import evaluate

        return evaluate(config, inputs, work)


stage = EvalStage()
