"""Measure a model's safety and capability: suites with intervals, comparison against a base, gates.

Metrics, each a share or mean over the replies that could be scored, with a 95 % interval and the count of those that could not:
    safety        harmful prompts: share of replies that are safe (higher is better)
    over_refusal  benign prompts: share refused (lower is better)
    search        questions answered in episodes over ``index=``: accuracy, with reliability and the share of certain wrong answers
    value, knowledge, general, instruction
                  accuracy by the rule of each row's ``meta.answer_type``, or by ``verifiers.<metric>`` where rows have no gold answer
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from safework_cli.errors import ConfigError, InputError, SafeworkError
from safework_cli.stage import Inputs, Outcome, Plan, Slot, Stage, StageConfig, Temperature, WorkDir, cosmetic, verdict
from safework_eval.gates import Gate, failed_gates, gate_problem
from safework_eval.likeness import refuse_unlike
from safework_eval.scoring import Panel, panel_for
from safework_eval.searching import EpisodeSettings
from safework_eval.selection import JudgeChoice, Suite, SuiteBlock, select_suites

if TYPE_CHECKING:
    from rich.console import RenderableType

    from safework_cli.artifacts import Artifact

SUMMARY = "summary.json"
SAMPLES = "samples.parquet"
AGAINST = "against"
"""Folder of the payload that holds the base's record where it was evaluated in the same run."""

Condition = Literal[
    "metric", "digest", "judge", "suites", "max_tokens", "temperature", "top_p", "seed", "template_hash", "engine", "index", "episode"
]  # fmt: skip


class EvalConfig(StageConfig):
    """Settings of ``safework eval``."""

    suites: list[SuiteBlock] = Field(default_factory=list)
    """What is measured: `{name: harmful, rows: {task: safety, harmful: true}, limit: 40}` takes rows of the `data` input,
    `{suite: harmbench-test, limit: 100}` reads a public set from `suites_folder`."""
    suites_folder: str | None = cosmetic(None)
    """The folder that holds the public sets, one folder each; $SAFEWORK_DATA where it is not given. The rows that are read from it, and not
    the folder's name, are part of what is asked for."""
    judge: JudgeChoice = "auto"
    """Who decides: "rule" (refusal phrases, gold answers), "rule:NAME" or "rule:NAME{parameter: value}" (that rule), "verifier"
    (`verifiers.<metric>`; `verifiers.safety` for over-refusal too), or "auto": the safety verifier where one is given, gold answers
    where rows have them. Both verdicts are kept where both exist."""
    max_tokens: int = Field(512, ge=1, le=10**6)
    """Tokens of a reply at most; a reply cut there counts as truncated."""
    temperature: Temperature = 0.0
    """0 is greedy; above it tokens are sampled, each reply by a seed derived from `seed`, its sample and its prompt."""
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    """Nucleus mass, where tokens are sampled."""
    batch_size: int = Field(16, ge=1, le=2**16)
    """Replies generated together, and exchanges judged together."""
    episode: EpisodeSettings = EpisodeSettings()
    """How search suites are answered."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number type of the weights; "auto" is bfloat16 where the hardware multiplies in it, float32 elsewhere."""
    trust_remote_code: bool = False
    """Run Python code that the models' folders bring along."""
    gates: list[Gate] = verdict(default_factory=list)
    """What must hold: `{metric: harmful.safety, min: 0.5}`, `{metric: capability, change_min: -0.02}`. The artifact is made either way;
    a gate that does not hold makes the command exit with 4. Other gates are applied to a finished evaluation without asking again."""
    max_failed: float = verdict(0.0, ge=0.0, le=1.0)
    """Share of samples that may be unscorable before the command exits with 5; like the gates, applied to a finished evaluation."""
    allow_differences: list[Condition] = Field(default_factory=list)
    """Conditions in which an `against` evaluation may differ from this one. None by default: unlike records are not compared."""


class EvalStage(Stage):
    """``safework eval``: model (+ rows) → evaluation."""

    name = "eval"
    version = 3  # 3: intervals by group, a seed for each sample, other ways of counting; 2: the overlap of words beside containment
    summary = "Measure a model's safety and capability: suites with intervals, comparison against a base, gates."
    Config = EvalConfig
    inputs = {
        "model": Slot(("model",), "the model that is evaluated"),
        "data": Slot(("dataset",), "rows for the suites that name no public set", optional=True),
        "index": Slot(("index",), "what search suites search", optional=True),
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
        searched = sum(len(suite.rows) for suite in suites if suite.metric == "search")
        plan.tokens = sides * ((rows - searched) * config.max_tokens + searched * config.episode.total_tokens)
        plan.disk_bytes = sides * rows * 20_000
        return plan

    def external_digests(self, config: EvalConfig) -> dict[str, str]:
        """What the rules rest on, and the rows of the public sets: a rule of another version, a set that was downloaded again or read by
        other code is another evaluation."""
        from safework_cli.verifiers.rules.registry import rule_digests

        named = {judge for judge in (config.judge, *(block.judge for block in config.suites)) if judge and judge.startswith("rule:")}
        public = [block for block in config.suites if block.suite is not None]
        suites, _ = select_suites(public, config.judge, None, folder_of(config))
        return rule_digests(["correctness", "f1", "refusal", *sorted(named)]) | {f"suites.{suite.name}": suite.digest for suite in suites}

    def judge_again(self, config: EvalConfig, artifact: Artifact) -> Outcome:
        summary = read_summary(artifact)
        sides = 2 if (artifact.path / AGAINST / SUMMARY).exists() else 1
        samples = sides * sum(record["rows"] for record in summary["suites"].values())
        return Outcome(failed_gates=failed_gates(config.gates, summary), tolerated_items=int(config.max_failed * samples))

    def show(self, artifact: Artifact) -> RenderableType:
        from safework_eval.table import summary_table

        return summary_table(read_summary(artifact))

    def run(self, config: EvalConfig, inputs: Inputs, work: WorkDir) -> Outcome:
        from safework_eval.run import evaluate

        return evaluate(config, inputs, work)


def folder_of(config: EvalConfig) -> str | None:
    """The folder of public sets: as given, or $SAFEWORK_DATA."""
    return config.suites_folder or os.environ.get("SAFEWORK_DATA") or None


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
    suites, problems = select_suites(config.suites, config.judge, inputs.maybe("data"), folder_of(config))
    refusals += problems
    verifiers = inputs.many("verifiers")
    wanted = {"safety" if suite.metric in ("safety", "over_refusal") else suite.metric for suite in suites}
    panels: dict[str, Panel] = {}
    for suite in suites:
        try:
            panels[suite.name] = panel_for(suite, verifiers, config.batch_size, trust_remote_code=config.trust_remote_code)
        except SafeworkError as error:
            refusals.append(error)
    refusals += index_problems(config, inputs, suites)
    idle = sorted(set(verifiers) - wanted)
    if idle and not refusals:
        why = f"the suites measure {', '.join(sorted(wanted))}"
        refusals.append(ConfigError(f"verifiers.{idle[0]} would judge nothing", why, "leave it out, or add a suite"))
    return suites, panels, refusals


def index_problems(config: EvalConfig, inputs: Inputs, suites: list[Suite]) -> list[SafeworkError]:
    """Search suites without an index, an index without search suites, and episodes without room for a turn."""
    searching = [suite.name for suite in suites if suite.metric == "search"]
    index = inputs.maybe("index")
    if searching and index is None:
        why = "its questions are answered by searching passages, as in rl search; asked without them they would measure memory"
        return [
            ConfigError(
                f"suite '{searching[0]}' needs an index",
                why,
                "add index=NAME (safework data index makes one of its passages), or say metric: knowledge",
            )
        ]
    if index is not None and not searching and suites:
        return [ConfigError("the index is not used by any suite", "no suite has rows of the task search", "leave index= out, or add one")]
    if searching and config.episode.turn_tokens > config.episode.total_tokens:
        what = f"episode.turn_tokens={config.episode.turn_tokens} exceeds episode.total_tokens={config.episode.total_tokens}"
        return [ConfigError(what, "no episode could take a single turn", "raise episode.total_tokens")]
    return []


def search_conditions(config: EvalConfig, inputs: Inputs, suites: list[Suite]) -> dict[str, Any]:
    """The conditions that search suites add; none where there are no such suites."""
    index = inputs.maybe("index")
    if index is None or not any(suite.metric == "search" for suite in suites):
        return {"index": None, "episode": None}
    return {"index": index.digest, "episode": config.episode.model_dump()}


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
            **search_conditions(config, inputs, suites),
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
