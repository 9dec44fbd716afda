"""Measure a model's safety and capability: suites with intervals, comparison against a base, gates.

Metrics, each a share or mean over the replies that could be scored, with a 95 % interval and the count of those that could not:
    safety        harmful prompts: share of replies that are safe (higher is better)
    over_refusal  benign prompts: share refused (lower is better)
    value, knowledge, general, instruction
                  accuracy by the rule of each row's ``meta.answer_type``, or by ``verifiers.<metric>`` where rows have no gold answer
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from safework_cli.errors import ConfigError, InputError, SafeworkError
from safework_cli.stage import Inputs, Outcome, Plan, Slot, Stage, StageConfig, Temperature, WorkDir
from safework_eval.gates import Gate, gate_problem
from safework_eval.likeness import refuse_unlike
from safework_eval.scoring import Panel, panel_for
from safework_eval.selection import JudgeChoice, Suite, SuiteBlock, select_suites

if TYPE_CHECKING:
    from safework_cli.artifacts import Artifact

SUMMARY = "summary.json"
SAMPLES = "samples.parquet"
AGAINST = "against"
"""Folder of the payload that holds the base's record where it was evaluated in the same run."""


class EvalConfig(StageConfig):
    """Settings of ``safework eval``."""

    suites: list[SuiteBlock] = Field(default_factory=list)
    """What is measured: `{name: harmful, rows: {task: safety, harmful: true}, limit: 40}` takes rows of the `data` input,
    `{suite: harmbench-test, limit: 100}` reads a public set from `suites_folder`."""
    suites_folder: str | None = None
    """The folder that holds the public sets, one folder each."""
    judge: JudgeChoice = "auto"
    """Who decides: "rule" (refusal phrases, gold answers), "rule:NAME" or "rule:NAME{parameter: value}" (that rule), "verifier"
    (`verifiers.<metric>`; `verifiers.safety` for over-refusal too), or "auto": the safety verifier where one is given, gold answers
    where rows have them. Both verdicts are kept where both exist."""
    max_tokens: int = Field(512, ge=1, le=10**6)
    """Tokens of a reply at most; a reply cut there counts as truncated."""
    temperature: Temperature = 0.0
    """0 is greedy; above it tokens are sampled, seeded by `seed` and each batch's content."""
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    """Nucleus mass, where tokens are sampled."""
    batch_size: int = Field(16, ge=1, le=2**16)
    """Replies generated together, and exchanges judged together."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number type of the weights; "auto" is bfloat16 where the hardware multiplies in it, float32 elsewhere."""
    trust_remote_code: bool = False
    """Run Python code that the models' folders bring along."""
    gates: list[Gate] = Field(default_factory=list)
    """What must hold: `{metric: harmful.safety, min: 0.5}`, `{metric: capability, change_min: -0.02}`. The artifact is made either way;
    a gate that does not hold makes the command exit with 4."""
    max_failed: float = Field(0.0, ge=0.0, le=1.0)
    """Share of samples that may be unscorable before the command exits with 5."""
    allow_differences: list[
        Literal["metric", "digest", "judge", "suites", "max_tokens", "temperature", "top_p", "seed", "template_hash", "engine"]
    ] = Field(default_factory=list)
    """Conditions in which an `against` evaluation may differ from this one. None by default: unlike records are not compared."""


class EvalStage(Stage):
    """``safework eval``: model (+ rows) → evaluation."""

    name = "eval"
    version = 2  # 2: the overlap of words beside containment
    summary = "Measure a model's safety and capability: suites with intervals, comparison against a base, gates."
    Config = EvalConfig
    inputs = {
        "model": Slot(("model",), "the model that is evaluated"),
        "data": Slot(("dataset",), "rows for the suites that name no public set", optional=True),
        "verifiers": Slot(
            ("verifier",), "judges by metric: verifiers.safety, verifiers.value, verifiers.knowledge, …", optional=True, many=True
        ),
        "against": Slot(
            ("evaluation", "model"), "what to compare with: an evaluation, or a model that is then evaluated in the same run", optional=True
        ),
    }
    output = "evaluation"

    def plan(self, config: EvalConfig, inputs: Inputs) -> Plan:
        plan = Plan(name=inputs.one("model").name)
        suites, panels, refusals = chosen_suites(config, inputs)
        plan.refusals += refusals
        against = inputs.maybe("against")
        metrics = {suite.name: suite.metric for suite in suites}
        if not refusals:
            for problem in (gate_problem(gate, metrics, against is not None) for gate in config.gates):
                if problem:
                    plan.refuse(problem, "a gate that cannot be checked would never fail", "safework eval --help shows what gates can name")
        for suite in suites:
            if suite.name in panels:
                judges = ", ".join(judge.id for judge in panels[suite.name].judges)
                plan.lines.append(f"{suite.name}: {len(suite.rows)} rows of {suite.source}, measured as {suite.metric}, judged by {judges}")
        sides = 1
        if against is not None and against.kind == "model":
            sides = 2
            plan.lines.append(f"{against.ref} is evaluated in the same run, and compared with")
        elif against is not None and not plan.refusals:
            plan.lines.append(f"compared with {against.ref}")
            try:
                refuse_unlike(
                    planned_summary(config, inputs, suites, panels), read_summary(against), against.ref, list(config.allow_differences)
                )
            except SafeworkError as error:
                plan.refusals.append(error)
        rows = sum(len(suite.rows) for suite in suites)
        plan.tokens = sides * rows * config.max_tokens
        plan.disk_bytes = sides * rows * 20_000
        return plan

    def external_digests(self, config: EvalConfig) -> dict[str, str]:
        """What the rules rest on: a rule of another version gives another evaluation."""
        from safework_cli.verifiers.rules.registry import rule_digests

        named = {judge for judge in (config.judge, *(block.judge for block in config.suites)) if judge and judge.startswith("rule:")}
        return rule_digests(["correctness", "f1", "refusal", *sorted(named)])

    def run(self, config: EvalConfig, inputs: Inputs, work: WorkDir) -> Outcome:
        from safework_eval.run import evaluate

        return evaluate(config, inputs, work)


def chosen_suites(config: EvalConfig, inputs: Inputs) -> tuple[list[Suite], dict[str, Panel], list[SafeworkError]]:
    """The suites with their rows, suite → judges, and why some of them cannot be run."""
    refusals: list[SafeworkError] = []
    if not config.suites:
        refusals.append(
            ConfigError(
                "no suites",
                "an evaluation of nothing would end green",
                "name rows of the data: suites='[{name: mine, rows: {task: general}}]', or take -c recipes/quickstart/eval.yaml",
            )
        )
    suites, problems = select_suites(config.suites, config.judge, inputs.maybe("data"), config.suites_folder)
    refusals += problems
    verifiers = inputs.many("verifiers")
    wanted = {"safety" if suite.metric in ("safety", "over_refusal") else suite.metric for suite in suites}
    panels: dict[str, Panel] = {}
    for suite in suites:
        try:
            panels[suite.name] = panel_for(suite, verifiers, config.batch_size, trust_remote_code=config.trust_remote_code)
        except SafeworkError as error:
            refusals.append(error)
    idle = sorted(set(verifiers) - wanted)
    if idle and not refusals:
        why = f"the suites measure {', '.join(sorted(wanted))}"
        refusals.append(ConfigError(f"verifiers.{idle[0]} would judge nothing", why, "leave it out, or add a suite"))
    return suites, panels, refusals


def planned_summary(config: EvalConfig, inputs: Inputs, suites: list[Suite], panels: dict[str, Panel]) -> dict[str, Any]:
    """What is known of this evaluation's conditions before a model is loaded."""
    return {
        "conditions": {
            "max_tokens": config.max_tokens,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "seed": config.seed if config.temperature > 0 else None,
            "template_hash": inputs.one("model").manifest.chat_template_hash,
            "engine": None,
        },
        "suites": {
            suite.name: {
                "metric": suite.metric,
                "digest": suite.digest,
                "judge": {"id": panels[suite.name].first.id, "digest": panels[suite.name].first.digest},
            }
            for suite in suites
        },
    }


def read_summary(artifact: Artifact) -> dict[str, Any]:
    """An evaluation's ``summary.json``. Raises InputError where it is missing or damaged."""
    try:
        return json.loads((artifact.path / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{artifact.ref} has no readable {SUMMARY}", str(error), f"safework artifacts verify {artifact.ref}") from None


stage = EvalStage()
