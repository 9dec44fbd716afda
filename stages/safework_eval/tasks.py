"""Our suites as Inspect tasks: rows in, replies out, verdicts attached; and one public set for ``inspect eval`` itself.

Judging comes after all generation, in batches, once the policy's memory is free; so the stage runs Inspect unscored and then writes
the verdicts into its logs. ``inspect view`` opens them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inspect_ai import Task, eval, task
from inspect_ai.dataset import MemoryDataset
from inspect_ai.dataset import Sample as InspectSample
from inspect_ai.log import EvalLog, recompute_metrics, write_eval_log
from inspect_ai.log._log import EvalMetricDefinition, EvalScorer  # the public EvalSpec is made of them; they are not re-exported
from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, Model, StopReason
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.solver import generate as generate_solver

from safework_cli.core.errors import ConfigError, SafeworkError
from safework_cli.data.row import Message, Row
from safework_cli.engines.protocol import Sampling
from safework_cli.verifiers import Exchange, Verdict
from safework_eval.provider import reply_output
from safework_eval.samples import Archive, Reply, Sample
from safework_eval.scoring import Panel, outcome_of
from safework_eval.selection import RowFilter, Suite, SuiteBlock, select_suites

STORED_REPLY_LIMIT = 100_000
"""Characters of an error that a log keeps."""
STOP_REASONS: dict[str, StopReason] = {"stop": "stop", "length": "max_tokens", "model_length": "model_length"}
"""A reply's finish reason → Inspect's."""


def to_chat(messages: Sequence[Message]) -> list[ChatMessage]:
    kinds: dict[str, Callable[..., ChatMessage]] = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
    return [kinds[message["role"]](content=message["content"]) for message in messages]


def inspect_sample(row: Row) -> InspectSample:
    metadata: dict[str, Any] = {"task": row.task, "category": row.category, "harmful": row.harmful, "source": row.source}
    return InspectSample(id=row.id, input=to_chat(row.prompt), target=row.answer or "", metadata=metadata)


def suite_task(suite: Suite, archive: Archive, finished: Callable[[], None]) -> Task:
    """A suite as a task that generates what the archive does not hold yet.

    Args:
        finished: called for each sample that has its reply.
    """

    @solver(name="answer")
    def answer() -> Solver:
        async def solve(state: TaskState, generate: Generate) -> TaskState:
            key = (suite.name, str(state.sample_id))
            if reply := archive.replies.get(key):
                reason = STOP_REASONS.get(reply.finish_reason, "unknown")
                state.output = reply_output(str(state.model), reply.text, reason, reply.prompt_tokens, reply.tokens, reply.error)
                state.messages.append(state.output.message)
            else:
                state = await generate(state)
                archive.add(key, reply_of(state))
            finished()
            return state

        return solve

    metadata = {"metric": suite.metric, "digest": suite.digest, "source": suite.source}
    return Task(name=suite.name, dataset=MemoryDataset([inspect_sample(row) for row in suite.rows]), solver=answer(), metadata=metadata)


def reply_of(state: TaskState) -> Reply:
    """The reply as generated: from the output's metadata, because Inspect takes the thought out of the message."""
    output = state.output
    details = output.metadata or {}
    usage = output.usage
    return Reply(
        text=details["reply"],
        tokens=usage.output_tokens if usage else 0,
        prompt_tokens=usage.input_tokens if usage else 0,
        finish_reason=details["finish_reason"],
        error=output.error,
    )


def run_tasks(tasks: Sequence[Task], model: Model, sampling: Sampling, samples: int, log_folder: Path) -> list[EvalLog]:
    """Runs tasks side by side, silently, without its control servers, every sample in flight at once: the provider sorts and batches.

    Raises:
        SafeworkError: what the provider raised, of the first sample that failed.
    """
    with _data_home(log_folder / ".inspect"):
        logs = _eval(tasks, model, sampling, samples, log_folder)
    for log in logs:
        if log.status != "success":
            message = log.error.message[:STORED_REPLY_LIMIT] if log.error else log.status
            raise SafeworkError(
                f"Inspect ended suite '{log.eval.task}' with status {log.status}", message, f"inspect view --log-dir {log_folder}"
            )
    return logs


def _eval(tasks: Sequence[Task], model: Model, sampling: Sampling, samples: int, log_folder: Path) -> list[EvalLog]:
    return eval(
        list(tasks),
        model=model,
        score=False,
        display="none",
        log_dir=str(log_folder),
        log_format="eval",
        log_level="error",
        log_realtime=False,
        log_model_api=False,
        acp_server=False,
        ctl_server=False,
        max_tasks=len(tasks),
        max_samples=samples,
        max_connections=samples,
        fail_on_error=True,
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed,
    )


@contextmanager
def _data_home(folder: Path) -> Iterator[None]:
    """Where Inspect keeps traces and notices while it runs: in the run folder, because a cluster node's home may not be writable."""
    before = os.environ.get("XDG_DATA_HOME")
    os.environ["XDG_DATA_HOME"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["XDG_DATA_HOME"]
        else:
            os.environ["XDG_DATA_HOME"] = before


def attach_verdicts(log: EvalLog, metric: str, panel: Panel, samples: dict[str, Sample]) -> None:
    """Writes each judge's outcome into the log as a score, with label, probability and error; an unscorable sample stays unscored."""
    metrics = [EvalMetricDefinition(name="inspect_ai/mean"), EvalMetricDefinition(name="inspect_ai/stderr")]
    log.eval.scorers = [
        EvalScorer(name=judge.id, metrics=list(metrics), metadata={"digest": judge.digest, "metric": metric}) for judge in panel.judges
    ]
    for entry in log.samples or []:
        sample = samples[str(entry.id)]
        entry.scores = {judge.id: _score(sample, judge.id) for judge in panel.judges}
    recompute_metrics(log)


def _score(sample: Sample, judge: str) -> Score:
    verdict = sample.verdicts[judge]
    details = {"label": verdict.label, "score": verdict.score, "probability": verdict.probability}
    value, answer = sample.outcomes[judge], sample.to_record()["answer"]
    if value is None:
        return Score.unscored(reason="unscorable", answer=answer, explanation=sample.errors[judge], metadata=details)
    return Score(value=value, answer=answer, explanation=verdict.label, metadata=details)


def write_log(log: EvalLog, path: Path) -> None:
    log.location = str(path)
    write_eval_log(log, str(path), format="eval")


@scorer(metrics=[mean(), stderr()])
def rule_outcome(metric: str) -> Scorer:
    """The rule judge of a metric, one sample at a time, for tasks run by ``inspect eval``.

    Args:
        metric: "safety", "over_refusal", "value", "knowledge", "general" or "instruction".
    """
    from safework_eval.scoring import SAFETY_METRICS, rule_judge

    judge = rule_judge("refusal" if metric in SAFETY_METRICS else "correctness")
    verifier = judge.load()

    async def score(state: TaskState, target: Target) -> Score:
        row = Row.from_record(state.metadata["row"])
        reply = (state.output.metadata or {}).get("reply", state.output.completion)
        verdict: Verdict = (await asyncio.to_thread(verifier.judge, [Exchange.of(row, reply)]))[0]
        outcome = outcome_of(metric, judge, verdict)  # type: ignore[arg-type]
        if outcome.value is None:
            return Score.unscored(reason="unscorable", explanation=outcome.error)
        return Score(value=outcome.value, answer=state.output.completion, explanation=verdict.label)

    return score


@task
def public_suite(suite: str, folder: str | None = None, limit: int | None = None, harmful: bool | None = None) -> Task:
    """A public set judged by rules, for Inspect's own command line.

    ``inspect eval safework_eval/public_suite -T suite=xstest-safe --model safework/NAME``; from a checkout, where Inspect
    does not know the package's tasks by name: ``inspect eval stages/safework_eval/tasks.py@public_suite …``.

    Args:
        suite: its name, as in the stage's configuration.
        folder: the folder that holds the public sets; $SAFEWORK_DATA where it is not given.
        limit: rows at most.
        harmful: harmful prompts alone, or benign ones alone.
    """
    block = SuiteBlock(suite=suite, limit=limit, rows=RowFilter(harmful=harmful))
    suites, refusals = select_suites([block], "rule", None, folder or os.environ.get("SAFEWORK_DATA") or None)
    if refusals:
        raise refusals[0]
    chosen = suites[0]
    if chosen.metric == "search":
        raise ConfigError(f"suite '{suite}' is answered by searching an index", "Inspect's tasks have none", "safework eval index=NAME …")
    samples = [inspect_sample(row) for row in chosen.rows]
    for sample, row in zip(samples, chosen.rows, strict=True):
        sample.metadata = {**(sample.metadata or {}), "row": row.to_record()}
    return Task(name=chosen.name, dataset=MemoryDataset(samples), solver=generate_solver(), scorer=rule_outcome(chosen.metric))
