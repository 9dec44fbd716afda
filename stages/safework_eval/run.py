"""An evaluation from top to bottom: load, ask, let go of the model, judge, sum up, compare, write.

Replies are kept as they finish (``samples.jsonl`` in the run folder), so a killed run does not ask twice.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safework_cli.core.artifacts import Artifact
from safework_cli.core.artifacts.store import now
from safework_cli.core.stage import Inputs, Outcome, WorkDir
from safework_cli.data.row import Row
from safework_cli.engines.protocol import Sampling
from safework_cli.environments.search.measures import SEARCH_MEASURES, JudgedEpisode
from safework_cli.verifiers.contract import cut_for
from safework_eval.compare import compare, further_key
from safework_eval.conditions import read_summary, refuse_differences, search_conditions
from safework_eval.config import AGAINST, SAMPLES, SUMMARY, EvalConfig
from safework_eval.gates import count_failures, failed_gates
from safework_eval.independence import independence_lines, independence_of
from safework_eval.metrics import JUDGE, metric_named
from safework_eval.plan import chosen_suites
from safework_eval.requests import ReplyRequest, batches_of, build_request, complete, has_token_ids, record_of
from safework_eval.samples import Archive, Key, ScoredSample, read_samples, write_samples
from safework_eval.scoring import Judge, Panel, measure_further, score_samples
from safework_eval.search_measures import judged_episode, judged_episodes, search_changes
from safework_eval.searching import chunks_of
from safework_eval.selection import PlannedSuite
from safework_eval.shards import SLOT, Replies, merged, write_shard
from safework_eval.summary import Conditions, cut_lines, summarise

if TYPE_CHECKING:
    from safework_cli.engines.protocol import Engine, TokenEngine


@dataclass(slots=True)
class Side:
    """One model's replies: the evaluated model's, or the base's."""

    artifact: Artifact | None
    """None for a model on a server."""
    ref: str
    samples: list[ScoredSample]
    conditions: Conditions
    started: str


def evaluate(config: EvalConfig, inputs: Inputs, work: WorkDir) -> Outcome:
    """Runs the stage; the payload is in ``work.output`` afterwards."""
    suites, panels, refusals = chosen_suites(config, inputs)
    if refusals:
        raise refusals[0]
    base = inputs.maybe("against")
    models = [inputs.maybe("model"), *([base] if base is not None and base.kind == "model" else [])]
    with redirect_stdout(sys.stderr):  # stdout carries only the reference, whatever a library prints
        if shards := inputs.many(SLOT):
            replies = merged(shards, suites)
        else:
            archives = ("samples.jsonl", "samples-against.jsonl")
            replies = [_ask(config, inputs, model, suites, work, name) for model, name in zip(models, archives, strict=False)]
        if config.shard:
            write_shard(work.output, suites, replies)
            return _outcome_of_shard(config, replies)
        sides = [_side(config, inputs, model, suites, side) for model, side in zip(models, replies, strict=True)]
        cut = _judge(sides, suites, panels, work)
        data = inputs.maybe("data")
        summaries = [_summary(side, data, suites, panels, inputs.many("verifiers").get(JUDGE)) for side in sides]
        for summary in summaries:
            summary["cut_for_judges"] = cut
        if base is not None:
            _compare(config, base, sides, summaries)
        for side, summary, folder in zip(sides, summaries, (work.output, work.output / AGAINST), strict=False):
            _write(config, side, summary, suites, panels, folder)
    return _outcome(config, sides, summaries, panels, work)


# ---------------------------------------------------------------- generation


def _side(config: EvalConfig, inputs: Inputs, artifact: Artifact | None, suites: list[PlannedSuite], side: Replies) -> Side:
    conditions = Conditions(
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=config.seed if config.temperature > 0 else None,
        template_hash=side.template_hash,
        engine=side.engine,
        **search_conditions(config, inputs, suites),
    )
    samples = [ScoredSample(suite.name, row, side.replies[suite.name, row.id]) for suite in suites for row in suite.rows]
    return Side(artifact, artifact.ref if artifact else side.engine, samples, conditions, side.started)


def _ask(
    config: EvalConfig, inputs: Inputs, artifact: Artifact | None, suites: list[PlannedSuite], work: WorkDir, archive_name: str
) -> Replies:
    """Every suite's replies from one model, the artifact or the one on a server; or this run's share of them."""
    from safework_cli.engines.load import load_engine
    from safework_cli.engines.settings import EngineSettings

    served = artifact is not None and config.engine.endpoint  # the model on a server is compared with one of the store
    settings = EngineSettings() if served else config.engine
    started, folder = now(), artifact.path if artifact else None
    images = any(row.images for suite in suites for row in suite.rows)
    with work.progress.phase(f"load {artifact.ref if artifact else config.engine.model}"):
        engine = load_engine(
            settings, folder, batch_size=config.batch_size, dtype=config.dtype, trust_remote_code=config.trust_remote_code, images=images
        )
    sampling = sampling_of(config)
    ref = artifact.ref if artifact else engine.name
    archive = Archive(work.path / archive_name)
    try:
        single, episodes = (
            [s for s in suites if not metric_named(s.metric).episodes],
            [s for s in suites if metric_named(s.metric).episodes],
        )
        requests = {
            (suite.name, row.id): build_request(engine, row.prompt, sampling, (row.id, 1), row.images)
            for suite in single
            for row in suite.rows
        }
        number, count = config.share
        batches = batches_of(requests, engine.batch_size)[number - 1 :: count]
        own = {key for batch in batches for key in batch}
        # what cannot be asked is in no batch, and belongs to the first share
        requests = {key: request for key, request in requests.items() if key in own or (request.problem and number == 1)}
        if has_token_ids(engine):  # a server's replies do not depend on their batch
            chunks = [(suite, rows) for suite in episodes for rows in chunks_of(suite, engine.batch_size)][number - 1 :: count]
            archive.keep_whole(batches + [[(suite.name, row.id) for row in rows] for suite, rows in chunks])
            _play(config, inputs, engine, ref, chunks, sampling, archive, work)
        _generate(engine, ref, requests, batches, sampling, archive, work)
    finally:
        archive.close()
    return Replies(engine.name, engine.template_hash, started, archive.replies)


def sampling_of(config: EvalConfig) -> Sampling:
    return Sampling(config.max_tokens, config.temperature, config.top_p, (), config.seed)


def _generate(
    engine: Engine,
    ref: str,
    requests: Mapping[Key, ReplyRequest],
    batches: Sequence[Sequence[Key]],
    sampling: Sampling,
    archive: Archive,
    work: WorkDir,
) -> None:
    """Asks for the replies that the archive does not hold, a batch at a time; each batch is archived as it finishes."""
    kept = sum(key in archive.replies for key in requests)
    if kept:
        work.progress.note(f"{kept} of {len(requests)} replies are kept from an earlier attempt")
    with work.progress.phase(f"ask {ref}", len(requests)) as phase, work.stop.deferred():
        for key, request in requests.items():
            if request.problem:
                archive.add(key, request.refusal())
        phase.advance(sum(key in archive.replies for key in requests))
        for batch in batches:
            missing = [key for key in batch if key not in archive.replies]
            if not missing:
                continue
            work.stop.check()
            asked = [requests[key] for key in missing]
            for key, (completion,) in zip(missing, complete(engine, asked, sampling, [request.seeds() for request in asked]), strict=True):
                archive.add(key, record_of(completion))
            phase.advance(len(missing))


def _play(
    config: EvalConfig,
    inputs: Inputs,
    engine: TokenEngine,
    ref: str,
    chunks: Sequence[tuple[PlannedSuite, Sequence[Row]]],
    sampling: Sampling,
    archive: Archive,
    work: WorkDir,
) -> None:
    """The episodes of search suites, some of them at a time."""
    from safework_cli.environments.search.index import SearchIndex
    from safework_eval.searching import play

    if not chunks:
        return
    index = SearchIndex.load(inputs.one("index").path)
    missing = sum((suite.name, row.id) not in archive.replies for suite, rows in chunks for row in rows)
    with work.progress.phase(f"search with {ref}", missing) as phase, work.stop.deferred():
        for suite, rows in chunks:
            phase.advance(play(engine, index, suite.name, rows, config.episode, sampling, archive))
            work.stop.check()


# ---------------------------------------------------------------- judging


def _judge(sides: list[Side], suites: list[PlannedSuite], panels: Mapping[str, Panel], work: WorkDir) -> dict[str, dict[str, int]]:
    """Every judge on every suite of its own, one judge in memory at a time.

    Returns:
        Judge id → ``cut_for`` of it, for all models of this run together; without the judges that cut nothing.
    """
    cut: dict[str, dict[str, int]] = {}
    judges: dict[str, Judge] = {judge.id: judge for panel in panels.values() for judge in panel.judges}
    metrics = {suite.name: suite.metric for suite in suites}
    for side in sides:
        for sample in side.samples:
            sample.judge = panels[sample.suite].first.id
    for judge in judges.values():
        own = [suite.name for suite in suites if judge.id in {j.id for j in panels[suite.name].judges}]
        samples = [sample for side in sides for name in own for sample in side.samples if sample.suite == name]
        with work.progress.phase(f"judge by {judge.ref or judge.id}", len(samples)) as phase:
            verifier = judge.load()
            score_samples(judge, verifier, samples, metrics)
            phase.advance(len(samples))
        if counts := cut_for(verifier):
            cut[judge.id] = counts
    measure_further([sample for side in sides for sample in side.samples], panels)
    return cut


# ---------------------------------------------------------------- summing up


def _summary(
    side: Side, data: Artifact | None, suites: list[PlannedSuite], panels: Mapping[str, Panel], judge: Artifact | None
) -> dict[str, Any]:
    if side.artifact is None:
        model = {"ref": side.ref, "digest": "", "stage": "", "name": side.ref}
    else:
        model = {"ref": side.ref, "digest": side.artifact.digest, "stage": side.artifact.manifest.stage, "name": side.artifact.name}
    summary = summarise(model, data.ref if data else None, side.conditions, suites, panels, side.samples)
    summary["independence"] = None if judge is None else independence_of(judge, side.artifact).to_json()
    return summary


def _compare(config: EvalConfig, base: Artifact, sides: list[Side], summaries: list[dict[str, Any]]) -> None:
    """Puts the comparison into the first summary. Raises ConfigError where an evaluation given as base was made under other conditions."""
    groups = _groups(sides[0])
    that_episodes: dict[str, dict[str, JudgedEpisode]] = {}
    if base.kind == "model":
        that, that_outcomes = summaries[1], _outcomes(sides[1])
        that_episodes = _episodes(sides[1])
        # In one run only the models differ, and a template is a part of its model.
    else:
        that = read_summary(base)
        that_outcomes = {}
        for record in read_samples(base.path / SAMPLES):
            that_outcomes.setdefault(record["suite"], {})[record["id"]] = record["outcome"]
            for each in record.get("also") or ():  # evaluations of before version 5 have none
                that_outcomes.setdefault(further_key(record["suite"], each["metric"]), {})[record["id"]] = each["outcome"]
            if episode := judged_episode(record, groups.get(record["suite"], {}).get(record["id"], record["id"])):
                that_episodes.setdefault(record["suite"], {})[record["id"]] = episode
        refuse_differences(summaries[0], that, base.ref, list(config.allow_differences))
    compared = compare(summaries[0], _outcomes(sides[0]), that, that_outcomes, groups, _classes(sides[0], summaries[0]))
    for name, episodes in _episodes(sides[0]).items():
        if name in compared["suites"]:
            compared["suites"][name]["search"] = search_changes(episodes, that_episodes.get(name, {}), config.episode.certain)
    summaries[0][AGAINST] = {"ref": base.ref, **compared}


def _outcomes(side: Side) -> dict[str, dict[str, float | None]]:
    found: dict[str, dict[str, float | None]] = {}
    for sample in side.samples:
        found.setdefault(sample.suite, {})[sample.row.id] = sample.outcome
        for metric, each in sample.also.items():
            found.setdefault(further_key(sample.suite, metric), {})[sample.row.id] = each.value
    return found


def _episodes(side: Side) -> dict[str, dict[str, JudgedEpisode]]:
    """Suite → row id → episode, of the suites that are answered in episodes."""
    names = {sample.suite for sample in side.samples if sample.episode is not None}
    return {name: judged_episodes([sample for sample in side.samples if sample.suite == name]) for name in names}


def _groups(side: Side) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for sample in side.samples:
        found.setdefault(sample.suite, {})[sample.row.id] = sample.row.group
    return found


def _classes(side: Side, summary: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Suite → row id → class, of the suites whose value is the mean over classes."""
    found: dict[str, dict[str, str]] = {}
    for sample in side.samples:
        if class_of := metric_named(summary["suites"][sample.suite]["metric"]).classes:
            found.setdefault(sample.suite, {})[sample.row.id] = class_of(sample.row)
    return found


def _write(
    config: EvalConfig, side: Side, summary: dict[str, Any], suites: list[PlannedSuite], panels: Mapping[str, Panel], folder: Path
) -> None:
    from safework_eval.inspect_log import write_log

    logs, times = folder / "logs", (side.started, now())
    logs.mkdir(parents=True, exist_ok=True)
    for suite in suites:
        samples = [sample for sample in side.samples if sample.suite == suite.name]
        model = f"safework/{side.ref}" if side.artifact else side.ref
        log = logs / f"{suite.name}.eval"
        write_log(log, suite, panels[suite.name], samples, model, sampling_of(config), times, config.episode.certain)
    write_samples(folder / SAMPLES, side.samples)
    (folder / SUMMARY).write_text(json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _outcome_of_shard(config: EvalConfig, sides: Sequence[Replies]) -> Outcome:
    """(How many failures are tolerated is a question to the whole evaluation.)"""
    replies = [reply for side in sides for reply in side.replies.values()]
    return Outcome(
        metrics={"shard": config.shard, "replies": len(replies)},
        seeds={"sampling": "seed, sample and prompt of each reply" if config.temperature > 0 else "greedy: none"},
        chat_template_hash=sides[0].template_hash,
        failed_items=sum(bool(reply.error) for reply in replies),
        tolerated_items=len(replies),
    )


def _outcome(config: EvalConfig, sides: list[Side], summaries: list[dict[str, Any]], panels: Mapping[str, Panel], work: WorkDir) -> Outcome:
    summary = summaries[0]
    failures = count_failures(config.max_failed, summaries)
    metrics: dict[str, Any] = {
        f"{name}.{record['metric']}": {key: record[key] for key in ("value", "interval", "n", "failed")}
        for name, record in summary["suites"].items()
    }
    for name, record in summary["suites"].items():
        for further, each in record["also"].items():
            metrics[f"{name}.{further}"] = {key: each[key] for key in ("value", "interval", "n", "failed")}
        for measure in SEARCH_MEASURES if metric_named(record["metric"]).episodes else ():
            metrics[f"{name}.{measure}"] = {key: record["search"][measure][key] for key in ("value", "interval", "n")}
    metrics |= {axis: value["value"] for axis, value in summary["axes"].items()}
    metrics["length"] = summary["length"]["value"]
    if AGAINST in summary:
        metrics |= {f"{axis}_change": change["change"] for axis, change in summary[AGAINST]["axes"].items()}
        metrics["angle"] = summary[AGAINST]["angle"]
    notes = independence_lines(summary["independence"])
    for line in (*failures.why, *cut_lines(summary)):
        notes.append(line)
        work.progress.warn(line)
    if any(panel.first.id == "rule:refusal" for panel in panels.values()):
        notes.append("safety is judged by refusal phrases: a lower bound, since a safe reply that does not refuse is not counted")
    return Outcome(
        metrics=metrics,
        seeds={"sampling": "seed, sample and prompt of each reply" if config.temperature > 0 else "greedy: none", "intervals": "fixed (0)"},
        notes=notes,
        chat_template_hash=sides[0].conditions.template_hash,
        failed_gates=failed_gates(config.gates, summary),
        failed_items=failures.failed,
        tolerated_items=failures.tolerated,
    )
