"""Public sets as tasks of Inspect's own command line, with the requests, the judges and the scores of ``safework eval``."""

from __future__ import annotations

import asyncio
import os

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import TaskState
from inspect_ai.solver import generate as generate_solver

from safework_cli.core.errors import ConfigError
from safework_cli.data.row import Row
from safework_eval import provider as provider  # Inspect imports this module to register both the tasks and the provider
from safework_eval.config import EvalConfig
from safework_eval.inspect_log import inspect_sample, reply_of, score_of
from safework_eval.metrics import metric_named
from safework_eval.samples import ScoredSample
from safework_eval.scoring import panel_for, rule_judge, score_samples
from safework_eval.selection import RowFilter, SuiteBlock, select_suites


@scorer(metrics=[mean(), stderr()])
def rule_outcome(suite: str, metric: str, rule: str) -> Scorer:
    """The outcome that ``safework eval`` gives a reply by a rule, one sample at a time.

    Args:
        suite: its name.
        metric: "safety", "over_refusal", "value", "knowledge", "general" or "instruction".
        rule: as settings name it, "rule:refusal".
    """
    judge = rule_judge(rule)
    verifier = judge.load()

    async def score(state: TaskState, target: Target) -> Score:
        sample = ScoredSample(suite, Row.from_record(state.metadata["row"]), reply_of(state.output), judge.id)
        await asyncio.to_thread(score_samples, judge, verifier, [sample], {suite: metric})
        return score_of(sample, judge.id)

    return score


@task
def public_suite(suite: str, folder: str | None = None, limit: int | None = None, harmful: bool | None = None) -> Task:
    """A public set judged by rules, for Inspect's own command line.

    ``inspect eval safework_eval/public_suite -T suite=xstest-safe --model safework/NAME``; from a checkout, where Inspect
    does not know the package's tasks by name: ``inspect eval stages/safework_eval/tasks.py@public_suite …``.

    Args:
        suite: its name, as in the stage's configuration.
        folder: the folder that holds the public sets; $SAFEWORK_DATA if it is not given.
        limit: rows at most.
        harmful: only harmful prompts, or only benign ones.
    """
    block = SuiteBlock(suite=suite, limit=limit, rows=RowFilter(harmful=harmful))
    suites, refusals = select_suites([block], "rule", None, folder or os.environ.get("SAFEWORK_DATA") or None)
    if refusals:
        raise refusals[0]
    chosen = suites[0]
    if metric_named(chosen.metric).episodes:
        raise ConfigError(f"suite '{suite}' is answered by searching an index", "Inspect's tasks have none", "safework eval index=NAME …")
    if any(row.images for row in chosen.rows):
        raise ConfigError(
            f"suite '{suite}' asks by images", "with Inspect's own command the questions are text", f"safework eval suites='[{suite}]'"
        )
    samples = [inspect_sample(row) for row in chosen.rows]
    for sample, row in zip(samples, chosen.rows, strict=True):
        sample.metadata = {**(sample.metadata or {}), "row": row.to_record()}
    scorers = [rule_outcome(chosen.name, chosen.metric, judge.id) for judge in panel_for(chosen, {}, 1).judges]
    as_eval = GenerateConfig(max_tokens=EvalConfig.model_fields["max_tokens"].default)
    return Task(name=chosen.name, dataset=MemoryDataset(samples), solver=generate_solver(), scorer=scorers, config=as_eval)
