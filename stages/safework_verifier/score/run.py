"""The run of ``safework verifier score``, from top to bottom."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from safework_cli.core.artifacts import Artifact
from safework_cli.core.errors import InputError
from safework_cli.core.journal import open_journal, read_journal, write_line
from safework_cli.core.paths import user_path
from safework_cli.core.stage import Inputs, Outcome, WorkDir
from safework_cli.data.dataset import read_dataset
from safework_cli.data.row import Message, truth_of
from safework_cli.data.suites.tables import read_table
from safework_cli.statistics.intervals import estimate, share_figure
from safework_cli.verifiers.contract import Exchange, Verdict, Verifier, judged, summarise
from safework_cli.verifiers.load import load_verifier
from safework_verifier.score.config import ScoreConfig

Item = tuple[str, Exchange]
"""(id, exchange)"""


def score(config: ScoreConfig, inputs: Inputs, work: WorkDir) -> Outcome:
    """Judges chunk by chunk; chunks that an earlier, killed run finished are not judged again."""
    data = inputs.maybe("data")
    items = list(islice(of_artifact(data) if data else of_file(user_path(str(config.file))), config.limit))
    if not items:
        raise InputError(f"{data.ref if data else config.file} has no replies", "there is nothing to judge")
    verifiers: dict[str, Verifier] = {
        n: load_verifier(a, batch_size=config.batch_size, trust_remote_code=config.trust_remote_code)
        for n, a in inputs.many("verifiers").items()
    }
    verifiers |= {f"rule:{name}": load_verifier(f"rule:{name}") for name in config.rules}

    journal = work.path / "verdicts.jsonl"
    verdicts: dict[int, dict[str, Any]] = {record["place"]: record["verdicts"] for record in read_journal(journal)}
    with work.progress.phase("judge", len(items)) as phase, open_journal(journal) as handle:
        for start in range(0, len(items), config.chunk_rows):
            chunk = range(start, min(start + config.chunk_rows, len(items)))
            left = [place for place in chunk if place not in verdicts]
            judgements = {name: judged(verifier, [items[place][1] for place in left]) for name, verifier in verifiers.items() if left}
            for number, place in enumerate(left):
                verdicts[place] = {name: asdict(of_verifier[number]) for name, of_verifier in judgements.items()}
                if all(verdict["error"] is None for verdict in verdicts[place].values()):  # errors are judged again
                    write_line(handle, {"place": place, "verdicts": verdicts[place]})
            phase.advance(len(chunk))
            work.stop.check()

    pq.write_table(
        pa.Table.from_pylist([_record(*item, verdicts[place]) for place, item in enumerate(items)]), work.output / "scored.parquet"
    )
    prompts = [json.dumps(exchange.messages) for _, exchange in items]
    by_verifier = {
        name: measured([Verdict(**verdicts[place][name]) for place in range(len(items))], prompts, verifier)
        for name, verifier in verifiers.items()
    }
    failed = sum(summary["failed"] for summary in by_verifier.values())
    return Outcome(
        metrics={"replies": len(items), "verifiers": by_verifier},
        failed_items=failed,
        tolerated_items=int(config.max_failed * len(items) * len(verifiers)),
    )


def measured(verdicts: Sequence[Verdict], prompts: Sequence[str], verifier: Verifier) -> dict[str, Any]:
    """Mean score and counts, with intervals by prompt, and the share of the replies that were scored; of a label verifier also how many
    replies lost their middle or were empty."""
    scored = [(verdict.score, prompt) for verdict, prompt in zip(verdicts, prompts, strict=True) if verdict.score is not None]
    mean = estimate([score for score, _ in scored], [prompt for _, prompt in scored])
    counts = {key: count for key in ("truncated", "empty") if (count := getattr(verifier, key, 0))}
    coverage = share_figure([verdict.score is not None for verdict in verdicts], prompts)
    return summarise(verdicts) | {"interval": mean.to_json()["interval"], "coverage": coverage} | counts


def of_artifact(data: Artifact) -> Iterator[Item]:
    """The replies of a dataset's rows, or of generations. Raises InputError where a row has none."""
    if data.kind == "dataset":
        for row in read_dataset(data):
            if row.reply is None:
                raise InputError(
                    f"row '{row.id}' of {data.ref} has no reply", "there is nothing to judge", "name a subset of rows with replies"
                )
            yield row.id, Exchange.of(row)
        return
    files = sorted(data.path.rglob("*.parquet"))
    if not files:
        raise InputError(f"{data.ref} has no Parquet file", "there is nothing to judge")
    for path in files:
        for number, record in enumerate(read_table(path), start=1):
            yield _item(record, str(path), number)


def of_file(path: Path) -> Iterator[Item]:
    """The replies of a table. Raises InputError that names the first record without a prompt or a reply."""
    for number, record in enumerate(read_table(path), start=1):
        yield _item(record, str(path), number)


def _item(record: dict[str, Any], where: str, number: int) -> Item:
    prompt, reply = record.get("messages") or record.get("prompt"), record.get("reply")
    try:
        messages = _messages(prompt) if prompt else []
        "".join([*(message["content"] for message in messages), reply if isinstance(reply, str) else ""]).encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}, record {number}: not valid Unicode", "it has a lone surrogate, which cannot be saved") from None
    except ValueError as error:
        raise InputError(f"{where}, record {number}: the prompt cannot be read", str(error), "text, or a list of {role, content}") from None
    if reply is None and messages and messages[-1]["role"] == "assistant":  # a conversation with its reply, as chat data is published
        *messages, last = messages
        reply = last["content"]
    if not messages or not isinstance(reply, str):
        missing = "reply" if messages else "prompt"
        what = f"{where}, record {number}: no {missing}"
        raise InputError(what, f"its columns: {', '.join(map(str, record))}", f"name the column `{missing}`")
    meta, harmful = record.get("meta") or {}, record.get("harmful")
    try:
        meta = json.loads(meta) if isinstance(meta, str) else meta
        harmful = None if harmful in (None, "") else truth_of(harmful)
    except ValueError as error:
        raise InputError(f"{where}, record {number}: meta or harmful cannot be read", str(error), "fix the record") from None
    answer = record.get("answer")
    exchange = Exchange(messages, reply, None if answer in (None, "") else str(answer), harmful, meta)
    return str(record.get("id") or record.get("row") or number), exchange


def _messages(prompt: Any) -> list[Message]:
    """A prompt as text, as a list of messages, or as JSON text of such a list (the form in generations). Raises ValueError for others."""
    if isinstance(prompt, str):
        with suppress(ValueError):  # most text is not JSON
            turns = json.loads(prompt)
            if isinstance(turns, list) and turns and all(isinstance(turn, dict) and turn.keys() >= {"role", "content"} for turn in turns):
                return _messages(turns)
        return [Message(role="user", content=prompt)]
    turns = list(prompt) if isinstance(prompt, list | tuple) else [prompt]
    for turn in turns:
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str) or not isinstance(turn.get("content"), str):
            raise ValueError(f"{str(turn)[:60]!r} is not a message")
    return [Message(role=turn["role"], content=turn["content"]) for turn in turns]


def _record(key: str, exchange: Exchange, verdicts: dict[str, Any]) -> dict[str, Any]:
    flat = {f"{name}.{part}": value for name, verdict in verdicts.items() for part, value in verdict.items()}
    return {"id": key, "prompt": exchange.question, "reply": exchange.reply, **flat}
