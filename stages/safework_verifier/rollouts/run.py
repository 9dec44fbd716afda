"""The run of ``safework verifier rollouts``, from top to bottom.

The value of a prefix under a principle is the mean score of its continuations: an unbiased estimate of the score of a reply of this policy
that begins with the prefix (Wang et al., arXiv 2312.08935, "hard" and "soft" estimation; this is the soft one).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from safework_cli.core.errors import InputError
from safework_cli.core.journal import open_journal, read_journal, write_line
from safework_cli.core.stage import Inputs, Outcome, WorkDir
from safework_cli.data.dataset import prompts_of
from safework_cli.data.row import Message, Row, write_rows
from safework_cli.engines.load import load_token_engine
from safework_cli.engines.prompts import continued, encode_for
from safework_cli.engines.protocol import Completion, Sampling, TokenEngine, derived_seed
from safework_cli.models.thoughts import ThoughtReader
from safework_cli.statistics.intervals import estimate, share_figure
from safework_cli.verifiers.contract import Exchange, Verifier, judged
from safework_cli.verifiers.load import load_verifier
from safework_verifier.rollouts.config import RolloutsConfig


@dataclass(slots=True)
class Prefix:
    """A beginning of a reply.

    Attributes:
        ids: its tokens as sampled.
        text: of these tokens.
        of: the index of its prompt in the chunk.
        number: its index among the prefixes of its prompt.
    """

    ids: list[int]
    text: str
    of: int
    number: int = 0


@dataclass(slots=True)
class Chunk:
    """What became of some prompts.

    Attributes:
        rows: of their prefixes that have a value.
        without_value: principle → prefixes that its judge could not score.
        errors: principle → the first reason.
        retry: a judge's server gave no answer: another attempt may give more.
    """

    rows: list[Row]
    without_value: dict[str, int] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    retry: bool = False


def roll_out(config: RolloutsConfig, inputs: Inputs, work: WorkDir) -> Outcome:
    """Processes chunk by chunk; chunks that an earlier, killed run finished are not sampled again."""
    data, model = inputs.one("data"), inputs.one("model")
    rows = prompts_of(data, tasks=config.tasks, limit=config.limit, say=work.progress.note)
    judges = {
        name: load_verifier(artifact, trust_remote_code=config.trust_remote_code) for name, artifact in inputs.many("verifiers").items()
    }
    judges |= {name: load_verifier(f"rule:{rule}") for name, rule in config.rules.items()}
    engine = load_token_engine(
        config.engine,
        model.path,
        batch_size=config.generation_batch_size,
        trust_remote_code=config.trust_remote_code,
        images=any(row.images for row in rows),
    )

    journal = work.path / "prefixes.jsonl"
    done = {
        record["start"]: Chunk([Row.from_record(row) for row in record["rows"]], record.get("without_value", {}), record.get("errors", {}))
        for record in read_journal(journal)
    }
    with work.progress.phase("roll out", len(rows)) as phase, open_journal(journal) as handle:
        for start in range(0, len(rows), config.chunk_prompts):
            chunk = rows[start : start + config.chunk_prompts]
            if start not in done:
                done[start] = now = valued(config, engine, judges, chunk)
                if not now.retry:  # a server's outage is not a result to keep: the same command asks again
                    records = [replace(row, images=[]).to_record() for row in now.rows]
                    write_line(handle, {"start": start, "rows": records, "without_value": now.without_value, "errors": now.errors})
            phase.advance(len(chunk))
            work.stop.check()
    images = {row.id: row.images for row in rows}  # the journal has texts only
    chunks = [done[start] for start in sorted(done)]
    made = [replace(row, images=images[_prompt_id(row)]) for chunk in chunks for row in chunk.rows]
    errors = {name: error for chunk in reversed(chunks) for name, error in chunk.errors.items()}  # the first of each
    if not made:
        why = "; ".join(f"{name}: {error}" for name, error in errors.items()) or "no reply has a step to cut at"
        raise InputError("no prefix could be valued", why, "check that the prompts have what the judges need, and that servers answer")
    (work.output / "rollouts").mkdir()
    write_rows(work.output / "rollouts" / "train.parquet", made)
    valued_ids = set(map(_prompt_id, made))
    has_value = [row.id in valued_ids for row in rows]
    failed = {name: sum(chunk.without_value.get(name, 0) for chunk in chunks) for name in judges}
    outcome = Outcome(
        metrics=measured(made, has_value, failed),
        seeds={"replies and continuations": f"seed={config.seed}, by row, prefix and number"},
        failed_items=has_value.count(False),
        tolerated_items=int(config.max_failed * len(rows)),
    )
    for name in judges:
        if not outcome.metrics["principles"][name]["n"]:
            why = errors.get(name, "nothing to judge")
            outcome.not_measured(f"no prefix has a value under {name}, and no value model can learn it: {why}")
            work.progress.warn(outcome.notes[-1])
        elif failed[name]:
            outcome.notes.append(f"{failed[name]} prefixes have no value under {name}: {errors.get(name)}")
    return outcome


def valued(config: RolloutsConfig, engine: TokenEngine, judges: Mapping[str, Verifier], rows: Sequence[Row]) -> Chunk:
    """The rows of a chunk's prefixes: prompt and prefix, with the mean score of its continuations under each principle."""
    sampling = Sampling(config.max_tokens, config.temperature, config.top_p)
    asked = [encode_for(engine, row.prompt, sampling, row.images) for row in rows]
    fitting = [place for place, prompt in enumerate(asked) if prompt.problem is None]
    rows, prompts = [rows[place] for place in fitting], [asked[place] for place in fitting]  # the others count as failed
    prefixes: list[Prefix] = []
    seeds = [[derived_seed(config.seed, row.id, "reply", number) for number in range(config.replies)] for row in rows]
    for place, replies in enumerate(continued(prompts, [[]] * len(prompts), engine, sampling, config.replies, seeds)):
        of_prompt = [prefix for reply in replies for prefix in cut(engine.tokenizer, reply, place, config.prefixes, config.boundaries)]
        prefixes += [replace(prefix, number=number) for number, prefix in enumerate(of_prompt)]
    groups: list[list[Completion]] = [[] for _ in prefixes]
    for room, places in by_room(prefixes, config.max_tokens).items():
        drawn = continued(
            [prompts[prefixes[i].of] for i in places],
            [prefixes[i].ids for i in places],
            engine,
            replace(sampling, max_tokens=room),
            config.continuations,
            [
                [derived_seed(config.seed, rows[prefixes[i].of].id, prefixes[i].number, number) for number in range(config.continuations)]
                for i in places
            ],
        )
        for i, completions in zip(places, drawn, strict=True):
            groups[i] = completions
    exchanges = [
        Exchange.of(rows[prefix.of], engine.text_of(prompts[prefix.of].prompt_ids, prefix.ids + completion.token_ids))
        for prefix, group in zip(prefixes, groups, strict=True)
        for completion in group
    ]
    verdicts = {name: judged(judge, exchanges) for name, judge in judges.items()}
    made, start = Chunk([], dict.fromkeys(judges, 0)), 0
    for prefix, group in zip(prefixes, groups, strict=True):
        part = slice(start, start + len(group))
        start += len(group)
        values: dict[str, float] = {}
        for name, of_judge in verdicts.items():
            scored = [verdict.score for verdict in of_judge[part] if verdict.score is not None]
            if len(scored) == len(group):
                values[name] = fmean(scored)
            else:
                made.without_value[name] += 1
                made.errors.setdefault(name, next(str(verdict.error) for verdict in of_judge[part] if verdict.error))
        if values:
            made.rows.append(_row(rows[prefix.of], prefix, values, len(group)))
    made.retry = any(verdict.retry for of_judge in verdicts.values() for verdict in of_judge)
    return made


def _prompt_id(made: Row) -> str:
    return made.id.rpartition("@")[0]


def _row(row: Row, prefix: Prefix, values: dict[str, float], count: int) -> Row:
    messages = [*row.prompt, Message(role="assistant", content=prefix.text)]
    meta = {"group": row.group, "values": values, "continuations": count}
    if "language" in row.meta:
        meta["language"] = row.meta["language"]
    return Row(
        f"{row.id}@{prefix.number}", row.task, messages, row.images, category=row.category, harmful=row.harmful, source=row.source,
        licence=row.licence, split=row.split or "train", meta=meta,
    )  # fmt: skip


def cut(tokenizer: Any, reply: Completion, of: int, most: int, boundaries: Sequence[str]) -> list[Prefix]:
    """Prefixes of a reply that end where a step ends, spread evenly over them; never the whole reply, never empty text."""
    ends = [
        end for end in range(1, len(reply.token_ids)) if any(tokenizer.decode(reply.token_ids[:end]).endswith(mark) for mark in boundaries)
    ]
    if len(ends) > most:
        ends = [ends[round((i + 0.5) * len(ends) / most - 0.5)] for i in range(most)]
    reader = ThoughtReader(tokenizer)
    prefixes = [Prefix(reply.token_ids[:end], reader.text_of(reply.prompt_ids, reply.token_ids[:end]), of) for end in ends]
    return [prefix for prefix in prefixes if prefix.text.strip()]


def by_room(prefixes: Sequence[Prefix], max_tokens: int) -> dict[int, list[int]]:
    """Tokens left for a continuation, rounded down to a few sizes → indices: prefixes of similar length are continued together."""
    rooms: dict[int, list[int]] = {}
    for place, prefix in enumerate(prefixes):
        left = max(max_tokens - len(prefix.ids), 1)
        rooms.setdefault(max(left // 32 * 32, min(left, 32)), []).append(place)
    return rooms


def measured(rows: Sequence[Row], has_value: list[bool], failed: Mapping[str, int]) -> dict[str, Any]:
    """Counts, and of each principle: its mean value, and how often a value is neither 0 nor 1, so that a step still matters.

    Args:
        has_value: of each prompt, whether one of its prefixes has a value.
        failed: principle → prefixes that its judge could not score.
    """
    principles: dict[str, Any] = {}
    for name in sorted(failed):
        of_principle = [row for row in rows if name in row.meta["values"]]
        values, groups = [row.meta["values"][name] for row in of_principle], [row.group for row in of_principle]
        principles[name] = {
            "n": len(values),
            "failed": failed[name],
            "mean": round(fmean(values), 4) if values else None,
            "undecided": round(fmean(0 < v < 1 for v in values), 4) if values else None,
            "mean_interval": estimate(values, groups).to_json()["interval"],
            "undecided_interval": estimate([float(0 < v < 1) for v in values], groups).to_json()["interval"],
        }
    return {
        "prompts": len(has_value),
        "without_value": has_value.count(False),
        "prefixes": len(rows),
        "coverage": share_figure(has_value),
        "principles": principles,
    }
