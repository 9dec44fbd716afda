"""An evaluation from top to bottom: load, ask, let go of the model, judge, sum up, compare, write.

Replies are kept as they finish (``samples.jsonl`` in the run folder), so a killed run does not ask twice.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safework_cli.core.artifacts import Artifact
from safework_cli.core.errors import InputError
from safework_cli.core.stage import Inputs, Outcome, WorkDir
from safework_cli.engines.protocol import Sampling
from safework_eval.compare import compare
from safework_eval.conditions import read_summary, refuse_unlike, search_conditions
from safework_eval.config import AGAINST, SAMPLES, SUMMARY, EvalConfig
from safework_eval.gates import failed_gates
from safework_eval.plan import chosen_suites
from safework_eval.samples import Archive, Key, Sample, read_samples, write_samples
from safework_eval.scoring import Judge, Panel, judge_all, outcome_of
from safework_eval.searching import SEARCH_MEASURES, batches_of
from safework_eval.selection import Suite
from safework_eval.summary import Conditions, summarise

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog

    from safework_cli.engines.protocol import TokenEngine


@dataclass(slots=True)
class Side:
    """One model's replies: the evaluated model's, or the base's."""

    artifact: Artifact
    samples: list[Sample]
    logs: dict[str, EvalLog]
    conditions: Conditions


def evaluate(config: EvalConfig, inputs: Inputs, work: WorkDir) -> Outcome:
    """Runs the stage; the payload lies in ``work.output`` afterwards."""
    suites, panels, refusals = chosen_suites(config, inputs)
    if refusals:
        raise refusals[0]
    base = inputs.maybe("against")
    with redirect_stdout(sys.stderr):  # stdout carries the reference alone, whatever a library prints
        sides = [_ask(config, inputs, inputs.one("model"), suites, work, "samples.jsonl")]
        if base is not None and base.kind == "model":
            sides.append(_ask(config, inputs, base, suites, work, "samples-against.jsonl"))
        _judge(sides, suites, panels, work)
        data = inputs.maybe("data")
        summaries = [_summary(side, data, suites, panels) for side in sides]
        if base is not None:
            _compare(config, base, sides, summaries)
        for side, summary, folder in zip(sides, summaries, (work.output, work.output / AGAINST), strict=False):
            _write(side, summary, suites, panels, folder)
    return _outcome(config, sides, summaries, panels)


# ---------------------------------------------------------------- asking


def _ask(config: EvalConfig, inputs: Inputs, artifact: Artifact, suites: list[Suite], work: WorkDir, archive_name: str) -> Side:
    """Every suite's replies from one model, through Inspect."""
    from safework_cli.engines.load import load_token_engine
    from safework_cli.engines.settings import EngineSettings

    with work.progress.phase(f"load {artifact.ref}"):
        engine = load_token_engine(
            EngineSettings(),
            artifact.path,
            batch_size=config.batch_size,
            dtype=config.dtype,
            trust_remote_code=config.trust_remote_code,
        )
    sampling = Sampling(config.max_tokens, config.temperature, config.top_p, (), config.seed)
    archive = Archive(work.path / archive_name)
    try:
        batches = _batches(engine, suites, sampling)
        episodes = [suite for suite in suites if suite.metric == "search"]
        played = [[(suite.name, row.id) for row in rows] for suite in episodes for rows in batches_of(suite, engine.batch_size)]
        archive.keep_whole(batches + played)
        to_come = sum(key not in archive.replies for batch in batches for key in batch)
        _play(config, inputs, engine, artifact, episodes, sampling, archive, work)
        logs = _run_inspect(engine, artifact, suites, sampling, archive, to_come, work)
    finally:
        archive.close()
    samples = [Sample(suite.name, row, archive.replies[suite.name, row.id]) for suite in suites for row in suite.rows]
    conditions = Conditions(
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=config.seed if config.temperature > 0 else None,
        template_hash=engine.template_hash,
        engine=engine.name,
        **search_conditions(config, inputs, suites),
    )
    return Side(artifact, samples, logs, conditions)


def _play(
    config: EvalConfig,
    inputs: Inputs,
    engine: TokenEngine,
    artifact: Artifact,
    suites: list[Suite],
    sampling: Sampling,
    archive: Archive,
    work: WorkDir,
) -> None:
    """The episodes of search suites. Inspect then finds their replies in the archive, and logs them."""
    from safework_cli.environments.search.index import SearchIndex
    from safework_eval.searching import play

    if not suites:
        return
    reference = inputs.one("index")
    index = SearchIndex.load(reference.path)
    for suite in suites:
        lost = sum(any(passage not in index for passage in row.meta.get("passages") or ()) for row in suite.rows)
        if lost:
            raise InputError(
                f"{lost} of {len(suite.rows)} questions of suite '{suite.name}' have their answers in passages that {reference.ref} lacks",
                "a model that searches well could not find them",
                "build the index from the suite's own passages: safework data index",
            )
    missing = sum((suite.name, row.id) not in archive.replies for suite in suites for row in suite.rows)
    with work.progress.phase(f"search with {artifact.ref}", missing) as phase, work.stop.deferred():

        def between(count: int) -> None:
            phase.advance(count)
            work.stop.check()

        for suite in suites:
            play(engine, index, suite, config.episode, sampling, archive, between)


def _run_inspect(
    engine: TokenEngine, artifact: Artifact, suites: list[Suite], sampling: Sampling, archive: Archive, to_come: int, work: WorkDir
) -> dict[str, EvalLog]:
    from inspect_ai.model import get_model

    from safework_eval.provider import SafeworkAPI
    from safework_eval.tasks import run_tasks, suite_task

    total = sum(len(suite.rows) for suite in suites)
    log_folder = work.path / "inspect" / archive.path.stem  # one for each side: Inspect reads the samples back from there
    shutil.rmtree(log_folder, ignore_errors=True)  # of an attempt that did not end: the archive is what is kept
    model = get_model(f"safework/{artifact.ref}", memoize=False)
    api = model.api
    assert isinstance(api, SafeworkAPI)
    api.attach(engine)
    api.batcher.expected = to_come
    api.batcher.before_batch = work.stop.check
    if archive.replies:
        work.progress.note(f"{len(archive.replies)} of {total} replies were made before, and are kept")
    with work.progress.phase(f"ask {artifact.ref}", total) as phase, work.stop.deferred():
        tasks = [suite_task(suite, archive, phase.advance) for suite in suites]
        try:
            logs = run_tasks(tasks, model, sampling, total, log_folder)
        except Exception:
            if api.batcher.failure is not None:  # a signal, a full memory: that, and not what Inspect made of it
                raise api.batcher.failure from None
            raise
        finally:
            api.detach()
    return {log.eval.task.rpartition("/")[2]: log for log in logs}


def _batches(engine: TokenEngine, suites: list[Suite], sampling: Sampling) -> list[list[Key]]:
    """The batches that an undisturbed run makes: the provider's order, over every prompt that can be asked."""
    from safework_cli.engines.prompts import encode_for

    single = [suite for suite in suites if suite.metric != "search"]
    asked = {(suite.name, row.id): encode_for(engine, row.prompt, sampling) for suite in single for row in suite.rows}
    order = [key for key, prompt in asked.items() if prompt.problem is None]
    order.sort(key=lambda key: (len(asked[key].prompt_ids), asked[key].prompt_ids))
    return [order[start : start + engine.batch_size] for start in range(0, len(order), engine.batch_size)]


# ---------------------------------------------------------------- judging


def _judge(sides: list[Side], suites: list[Suite], panels: Mapping[str, Panel], work: WorkDir) -> None:
    """Every judge over every suite that it sits on, one judge in memory at a time."""
    judges: dict[str, Judge] = {judge.id: judge for panel in panels.values() for judge in panel.judges}
    for judge in judges.values():
        mine = [suite for suite in suites if judge.id in {j.id for j in panels[suite.name].judges}]
        groups = [(suite, [s for s in side.samples if s.suite == suite.name]) for side in sides for suite in mine]
        with work.progress.phase(f"judge by {judge.ref or judge.id}", sum(len(samples) for _, samples in groups)) as phase:
            jobs = [(suite, [sample.exchange() for sample in samples]) for suite, samples in groups]
            for (suite, samples), verdicts in zip(groups, judge_all(judge, jobs, judge.load()), strict=True):
                for sample, verdict in zip(samples, verdicts, strict=True):
                    outcome = outcome_of(suite.metric, judge, verdict)
                    sample.verdicts[judge.id], sample.outcomes[judge.id], sample.errors[judge.id] = verdict, outcome.value, outcome.error
                    sample.judge = panels[suite.name].first.id
                phase.advance(len(samples))


# ---------------------------------------------------------------- summing up


def _summary(side: Side, data: Artifact | None, suites: list[Suite], panels: Mapping[str, Panel]) -> dict[str, Any]:
    manifest = side.artifact.manifest
    model = {"ref": side.artifact.ref, "digest": side.artifact.digest, "stage": manifest.stage, "name": side.artifact.name}
    return summarise(model, data.ref if data else None, side.conditions, suites, panels, side.samples)


def _compare(config: EvalConfig, base: Artifact, sides: list[Side], summaries: list[dict[str, Any]]) -> None:
    """Puts the comparison into the first summary. Raises ConfigError where an evaluation given as base was made under other conditions."""
    if base.kind == "model":
        that, that_outcomes = summaries[1], _outcomes(sides[1])
        # In one run the models alone differ, and a template is a part of its model.
    else:
        that = read_summary(base)
        that_outcomes = {}
        for record in read_samples(base.path / SAMPLES):
            that_outcomes.setdefault(record["suite"], {})[record["id"]] = record["outcome"]
        refuse_unlike(summaries[0], that, base.ref, list(config.allow_differences))
    summaries[0][AGAINST] = {"ref": base.ref, **compare(summaries[0], _outcomes(sides[0]), that, that_outcomes, _groups(sides[0]))}


def _outcomes(side: Side) -> dict[str, dict[str, float | None]]:
    found: dict[str, dict[str, float | None]] = {}
    for sample in side.samples:
        found.setdefault(sample.suite, {})[sample.row.id] = sample.outcome
    return found


def _groups(side: Side) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for sample in side.samples:
        found.setdefault(sample.suite, {})[sample.row.id] = sample.row.group
    return found


def _write(side: Side, summary: dict[str, Any], suites: list[Suite], panels: Mapping[str, Panel], folder: Path) -> None:
    from safework_eval.tasks import attach_verdicts, write_log

    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for suite in suites:
        samples = {sample.row.id: sample for sample in side.samples if sample.suite == suite.name}
        attach_verdicts(side.logs[suite.name], suite.metric, panels[suite.name], samples)
        write_log(side.logs[suite.name], logs / f"{suite.name}.eval")
    write_samples(folder / SAMPLES, side.samples)
    (folder / SUMMARY).write_text(json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _outcome(config: EvalConfig, sides: list[Side], summaries: list[dict[str, Any]], panels: Mapping[str, Panel]) -> Outcome:
    summary = summaries[0]
    failed = sum(record["failed"] for side in summaries for record in side["suites"].values())
    total = sum(len(side.samples) for side in sides)
    metrics: dict[str, Any] = {
        f"{name}.{record['metric']}": {key: record[key] for key in ("value", "interval", "n", "failed")}
        for name, record in summary["suites"].items()
    }
    for name, record in summary["suites"].items():
        for measure in SEARCH_MEASURES if record["metric"] == "search" else ():
            metrics[f"{name}.{measure}"] = {key: record["search"][measure][key] for key in ("value", "interval", "n")}
    metrics |= {axis: value["value"] for axis, value in summary["axes"].items()}
    metrics["length"] = summary["length"]["value"]
    if AGAINST in summary:
        metrics |= {f"{axis}_change": change["change"] for axis, change in summary[AGAINST]["axes"].items()}
        metrics["angle"] = summary[AGAINST]["angle"]
    notes = []
    if any(panel.first.id == "rule:refusal" for panel in panels.values()):
        notes.append("safety is judged by refusal phrases: a lower bound, since a reply that neither refuses nor helps counts as unsafe")
    return Outcome(
        metrics=metrics,
        seeds={"sampling": "seed, sample and prompt of each reply" if config.temperature > 0 else "greedy: none", "intervals": "fixed (0)"},
        notes=notes,
        chat_template_hash=sides[0].conditions.template_hash,
        failed_gates=failed_gates(config.gates, summary),
        failed_items=failed,
        tolerated_items=int(config.max_failed * total),
    )
