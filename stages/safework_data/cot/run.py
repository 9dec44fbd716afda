"""The run of ``safework data cot``, from top to bottom."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from safework_cli.core.errors import InputError
from safework_cli.core.journal import open_journal, read_journal, write_line
from safework_cli.core.stage import Inputs, Outcome, WorkDir
from safework_cli.data.reply import make_reply, parse_reply
from safework_cli.data.row import Message, Row
from safework_cli.engines.load import load_engine
from safework_cli.engines.protocol import Completion, Engine, Sampling
from safework_cli.report.text import escaped
from safework_cli.verifiers.contract import UNPARSED, Exchange, Verdict, Verifier, judged
from safework_cli.verifiers.load import load_verifier
from safework_cli.verifiers.rules import bare_name, rule_verifier
from safework_cli.verifiers.rules.correctness import ANSWER_TYPES
from safework_cli.verifiers.rules.text_tokens import tokens_of
from safework_data.build.card import front_matter, table
from safework_data.build.tally import Output, Part, written
from safework_data.cot.config import DEFAULT_SCORE, LENIENT, CotConfig
from safework_data.cot.operations import balanced, entropy, histogram, operations_of
from safework_data.cot.prompts import asked_rows
from safework_data.starter.tables import allocate

NO_REPLY = "no reply"
TOO_LONG = "prompt too long for the teacher"
NO_SENTENCE = "says no more than the gold answer"
FAILED = "failed.jsonl"
SHOWN_FAILURES = 10
PIECE = 500
"""Rows written together: those with images are large, and are held twice while they are written."""


@dataclass(slots=True)
class Tried:
    """One sample of a prompt.

    Attributes:
        text: the reply.
        reason: why it is rejected; empty where it is accepted.
        scores: of the verifiers that scored it.
        unjudged: a verifier could not score it, which is no judgement of the sample.
        retry: because its server gave no answer.
    """

    text: str
    reason: str
    scores: dict[str, float]
    unjudged: bool = False
    retry: bool = False


def construct(config: CotConfig, inputs: Inputs, work: WorkDir) -> Outcome:
    """Samples and judges prompt by prompt; what an earlier, killed run finished is not asked for again."""
    data = inputs.one("data")
    rows = asked_rows(config, data, work.progress.note)
    judges = {
        name: load_verifier(artifact, trust_remote_code=config.trust_remote_code) for name, artifact in inputs.many("verifiers").items()
    }
    model = inputs.maybe("model")
    engine = load_engine(
        config.engine,
        model.path if model else None,
        batch_size=config.generation_batch_size,
        trust_remote_code=config.trust_remote_code,
        images=any(row.images for row in rows),
    )
    teacher = model.ref if model else engine.name

    journal = work.path / "samples.jsonl"
    tried = {record["place"]: [Tried(**sample) for sample in record["samples"]] for record in read_journal(journal)}
    with work.progress.phase("sample and judge", len(rows)) as phase, open_journal(journal) as handle:
        for start in range(0, len(rows), config.chunk_prompts):
            chunk = range(start, min(start + config.chunk_prompts, len(rows)))
            places = [place for place in chunk if place not in tried]
            if places:
                said = ask(config, engine, [rows[place] for place in places], start)
                for place, samples in zip(places, judge(config, judges, [rows[place] for place in places], said), strict=True):
                    tried[place] = samples
                    # a server's outage, the teacher's or a judge's, is not a result to keep
                    if not any(sample.retry or sample.reason.startswith(NO_REPLY) for sample in samples):
                        write_line(handle, {"place": place, "samples": [_plain(sample) for sample in samples]})
            phase.advance(len(chunk))
            work.stop.check()

    kept = [row for place, row in enumerate(rows) for row in accepted(row, tried[place], config.keep)]
    drawn = thinned(kept, config.max_rows, config.seed)
    failed = [(row, tried[place]) for place, row in enumerate(rows) if not any(not sample.reason for sample in tried[place])]
    if not drawn:
        _refuse_nothing(failed, work)
    with Output(work.output) as output:
        for split in dict.fromkeys(row.split for row in drawn):
            of_split = [row for row in drawn if row.split == split]
            for start in range(0, len(of_split), PIECE):
                few = of_split[start : start + PIECE]
                output.add(written(few), Part.of(config.subset, split, few))
    write_failures(failed, work)
    metrics = measured(tried, drawn, failed)
    (work.output / "README.md").write_text(card(output.parts, metrics, failed, teacher, data.ref, work.output), encoding="utf-8")
    for line in (f"{len(drawn)} rows kept of {len(rows)} prompts", f"{len(failed)} prompts failed with every sample"):
        work.progress.note(line)
    if metrics["unjudged"]:
        work.progress.warn(f"{metrics['unjudged']} samples were left out because a verifier could not score them")
    return Outcome(
        metrics=metrics,
        seeds={"samples": f"seed={config.seed}, by chunk of {config.chunk_prompts} prompts", "balance": "seed"},
        failed_items=len(failed),
        tolerated_items=int(config.max_failed * len(rows)),
    )


def ask(config: CotConfig, engine: Engine, rows: Sequence[Row], start: int) -> list[list[Completion]]:
    """``samples`` replies of the teacher to each row; one that could not be had states its error.

    Args:
        start: the number of the first row's chunk.
    """
    sampling = Sampling(config.max_tokens, config.temperature, config.top_p, seed=config.seed * 100_003 + start)
    images = [row.images for row in rows]
    conversations = [engine.with_system(*_instruction(config, row)) for row in rows]
    return engine.generate(conversations, sampling, config.samples, images=images if any(images) else None)


def _instruction(config: CotConfig, row: Row) -> tuple[str, list[Message]]:
    """The teacher's instruction followed by the row's own system message, and the other messages of the prompt."""
    messages = list(row.prompt)
    own = messages.pop(0)["content"] if messages and messages[0]["role"] == "system" else ""
    return "\n\n".join(filter(None, (config.instruction, own))), messages


def judge(config: CotConfig, judges: dict[str, Verifier], rows: Sequence[Row], said: Sequence[Sequence[Completion]]) -> list[list[Tried]]:
    """Every sample with the first reason that speaks against it, in the order of the rules and then of the verifiers."""
    places = [(number, sample) for number, samples in enumerate(said) for sample in samples]
    written = [reply_of(config, rows[number], sample.text) for number, sample in places]
    exchanges = [Exchange.of(rows[number], text) for (number, _), text in zip(places, written, strict=True)]
    tried = [Tried(text, _unfinished(sample), {}) for (_, sample), text in zip(places, written, strict=True)]
    if config.thought == "answer":
        answers = [Exchange.of(rows[number], sample.text) for number, sample in places]
        _reject(tried, LENIENT, answers)
        for sample, answer in zip(tried, answers, strict=True):
            if not sample.reason and len(tokens_of(answer.reply)) <= len(tokens_of(answer.answer or "")):
                sample.reason = NO_SENTENCE
    for rule in config.rules:
        _reject(tried, rule, exchanges)
    for name, verifier in judges.items():
        for place, verdict in _verdicts(verifier, exchanges, tried, lambda _: True):
            if verdict.score is None:
                tried[place].reason = f"{name} could not score it: {verdict.error}"
                tried[place].unjudged, tried[place].retry = True, verdict.retry
            else:
                tried[place].scores[name] = verdict.score
                if verdict.score < config.min_scores.get(name, DEFAULT_SCORE):
                    tried[place].reason = f"{name}: {verdict.label or f'score {verdict.score:.2f}'}"
    found: list[list[Tried]] = [[] for _ in rows]
    for (number, _), sample in zip(places, tried, strict=True):
        found[number].append(sample)
    return found


def reply_of(config: CotConfig, row: Row, said: str) -> str:
    """The reply that a sample becomes: itself, or the gold answer after it."""
    return said if config.thought == "teacher" else make_reply(said, row.answer or "")


def _reject(tried: list[Tried], rule: str, exchanges: list[Exchange]) -> None:
    """Gives the samples that a rule speaks against their reason."""
    for place, verdict in _verdicts(rule_verifier(rule), exchanges, tried, lambda exchange: _applies(rule, exchange)):
        if verdict.score is None:
            tried[place].reason = f"{rule}: {verdict.error}"
        elif verdict.score < 1.0:
            tried[place].reason = _refused(rule, verdict)


def _verdicts(verifier: Verifier, exchanges: list[Exchange], tried: list[Tried], applies: Any) -> Iterator[tuple[int, Verdict]]:
    """(place, verdict) of the samples that nothing speaks against so far and that the verifier applies to."""
    left = [place for place, sample in enumerate(tried) if not sample.reason and applies(exchanges[place])]
    yield from zip(left, judged(verifier, [exchanges[place] for place in left]) if left else [], strict=True)


def _unfinished(sample: Completion) -> str:
    if sample.error:
        return {"too_long": TOO_LONG, "refused": sample.error}.get(sample.finish_reason, f"{NO_REPLY}: {sample.error}")
    return "truncated" if sample.finish_reason == "length" else ""


def _refused(rule: str, verdict: Verdict) -> str:
    """Why a rule rejects a sample; an answer that it could not read is a reason of its own, since the sample may well be right."""
    if verdict.label == UNPARSED:
        return f"{UNPARSED}: {rule} found no answer that it can compare"
    return rule if verdict.label is None else f"{rule}: {verdict.label}"


def _applies(rule: str, exchange: Exchange) -> bool:
    """Whether a rule says anything of a row: those that compare need a gold answer, the refusal rule whether the prompt is harmful."""
    name = bare_name(rule)
    if name in ("correctness", "constraints"):
        return (exchange.answer is not None and name == "correctness") or bool(exchange.meta.get("constraints"))
    if name in ANSWER_TYPES or name == "f1":
        return exchange.answer is not None
    return exchange.harmful is not None if name == "refusal" else True


def accepted(row: Row, samples: Sequence[Tried], keep: int) -> list[Row]:
    """The rows made of a prompt's best accepted samples, numbered after the id: the prompt may be in the same dataset."""
    good = [sample for sample in samples if not sample.reason]
    good.sort(key=lambda sample: -fmean(sample.scores.values()) if sample.scores else 0.0)  # stable: the earlier stays first
    made: list[Row] = []
    for sample in good:
        if len(made) < keep and all(sample.text.strip() != other.reply for other in made):
            meta = row.meta | {"operations": operations_of(parse_reply(sample.text).thought), "scores": sample.scores, "group": row.group}
            messages = [*row.prompt, Message(role="assistant", content=sample.text.strip())]
            made.append(replace(row, id=f"{row.id}#{len(made)}", messages=messages, split=row.split or "train", meta=meta))
    return made


def thinned(rows: list[Row], most: int | None, seed: int) -> list[Row]:
    """At most so many rows, with the tasks in their shares and the operations within each as even as can be; in their own order."""
    if most is None or len(rows) <= most:
        return rows
    by_task: dict[str, list[Row]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row)
    shares = allocate(most, {task: len(of_task) for task, of_task in by_task.items()})
    chosen = {id(row) for task, of_task in by_task.items() for row in balanced(of_task, lambda r: r.meta["operations"], shares[task], seed)}
    return [row for row in rows if id(row) in chosen]


def write_failures(failed: Sequence[tuple[Row, list[Tried]]], work: WorkDir) -> None:
    """One line for each prompt that failed with every sample: its id and the reasons, how often each. The texts stay in the run folder."""
    with (work.output / FAILED).open("w", encoding="utf-8") as handle:
        for row, samples in failed:
            record = {"id": row.id, "task": row.task, "reasons": dict(Counter(sample.reason for sample in samples))}
            handle.write(json.dumps(record, ensure_ascii=False) + "\n")


def _refuse_nothing(failed: Sequence[tuple[Row, list[Tried]]], work: WorkDir) -> None:
    everything = [sample.reason for _, samples in failed for sample in samples]
    if all(reason.startswith(NO_REPLY) for reason in everything):
        raise InputError("the teacher gave no reply to any prompt", everything[0], "run the same command again: it asks again")
    if lost := [sample.reason for _, samples in failed for sample in samples if sample.retry]:
        what = f"no sample of any prompt was accepted, and {len(lost)} of {len(everything)} got no answer from a verifier's server"
        raise InputError(what, lost[0], "check the server, and run the same command again: it asks again")
    reasons = Counter(map(_kind, everything))
    shown = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common(4))
    raise InputError(
        "no sample of any prompt was accepted", f"most often: {shown}", f"look at {work.path / 'samples.jsonl'}, or relax a rule"
    )


def _kind(reason: str) -> str:
    return reason.partition(":")[0]


def measured(tried: dict[int, list[Tried]], rows: Sequence[Row], failed: Sequence[Any]) -> dict[str, Any]:
    """Counts for the manifest and the card."""
    samples = [sample for of_prompt in tried.values() for sample in of_prompt]
    by_task: dict[str, Any] = {}
    for task in sorted({row.task for row in rows}):
        counted = histogram([row.meta["operations"] for row in rows if row.task == task])
        by_task[task] = {
            "rows": sum(row.task == task for row in rows),
            "operations": counted,
            "entropy": round(entropy(list(counted.values())), 4),
        }
    return {
        "prompts": len(tried),
        "samples": len(samples),
        "accepted": sum(not sample.reason for sample in samples),
        "with_replaced_characters": sum("\ufffd" in sample.text for sample in samples),  # lone surrogates, broken bytes
        "rows": len(rows),
        "failed_prompts": len(failed),
        "unjudged": sum(sample.unjudged for sample in samples),  # counted in "rejected" too, by verifier
        "rejected": dict(Counter(_kind(sample.reason) for sample in samples if sample.reason).most_common()),
        "by_task": by_task,
    }


def card(
    parts: list[Part], metrics: dict[str, Any], failed: Sequence[tuple[Row, list[Tried]]], teacher: str, data: str, folder: Path
) -> str:
    """The README: which teacher, what was rejected, what the thoughts do."""
    operations = list(next(iter(metrics["by_task"].values()))["operations"])
    blocks = [
        front_matter(parts, folder),
        "# Data card\n",
        f"Reasoned replies of `{escaped(teacher)}` to {metrics['prompts']:,} prompts of `{escaped(data)}`: {metrics['samples']:,} samples, "
        f"{metrics['accepted']:,} accepted, {metrics['rows']:,} rows kept. {metrics['failed_prompts']:,} prompts failed with every sample; "
        f"`{FAILED}` names them all.\n",
        "## Rejected samples\n",
        table(["first reason", "samples"], [[escaped(reason), f"{count:,}"] for reason, count in metrics["rejected"].items()]),
        "## What the thoughts do\n",
        "Rows whose thought holds an operation, detected by its words; entropy of the histogram over its maximum.\n",
        table(
            ["task", "rows", *operations, "entropy"],
            [
                [task, f"{found['rows']:,}", *(f"{count:,}" for count in found["operations"].values()), f"{found['entropy']:.2f}"]
                for task, found in metrics["by_task"].items()
            ],
        ),
    ]
    if failed:
        lines = [
            f"- {escaped(row.id)}: {escaped(', '.join(dict.fromkeys(s.reason for s in samples)))[:300]}"
            for row, samples in failed[:SHOWN_FAILURES]
        ]
        blocks += ["## Prompts that failed, the first of them\n", "\n".join(lines) + "\n"]
    return "\n".join(blocks)


def _plain(sample: Tried) -> dict[str, Any]:
    return {"text": sample.text, "reason": sample.reason, "scores": sample.scores, "unjudged": sample.unjudged}
