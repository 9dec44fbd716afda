"""One sample's record: replies kept as they finish, so that a killed run can resume, and the table that the evaluation holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safework_cli.core.journal import open_journal, read_journal, write_line
from safework_cli.data.reply import parse_reply
from safework_cli.data.row import Row
from safework_cli.verifiers import Exchange, Verdict
from safework_cli.verifiers.contract import UNPARSED
from safework_eval.metrics import MetricValue


@dataclass(slots=True)
class RecordedReply:
    """A generated reply, or why there is none.

    Attributes:
        text: as generated, thought included.
        tokens, prompt_tokens: counts; ``tokens`` includes the stop token. None where a server does not report them.
        finish_reason: "stop", "length"; with ``error``: "model_length" (the prompt leaves no room), "failed" (a server), "unknown".
        error: why the reply is missing.
        episode: the fields of ``Episode`` where the reply ends a search episode; ``text`` is its last turn then.
    """

    text: str
    tokens: int | None
    prompt_tokens: int | None
    finish_reason: str
    error: str | None = None
    episode: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Episode:
    """A search episode.

    Attributes:
        answer, confidence: of the final action; None where there was none.
        well_formed: an answer, and no malformed action on the way.
        searches, reads, malformed: how often.
        messages: all of it, retrieved text included.
    """

    answer: str | None
    confidence: int | None
    well_formed: bool
    searches: int
    reads: int
    malformed: int
    messages: list[dict[str, str]]


Key = tuple[str, str]
"""(suite, row id)"""


class Archive:
    """The replies of a run, one JSON line each, written as they finish and read by the next attempt.

    Each reply draws by a seed of its own, but what it is batched with changes the rounding of its logits: ``keep_whole`` forgets batches
    that a kill left incomplete, so that a run that was killed gives the very bytes of one that was not.
    """

    def __init__(self, path: Path):
        self.path = path
        self.replies: dict[Key, RecordedReply] = {}
        for record in read_journal(path):
            key = (record.pop("suite"), record.pop("id"))
            self.replies[key] = RecordedReply(**record)
        self._handle = open_journal(path)

    def keep_whole(self, batches: Sequence[Sequence[Key]]) -> None:
        """Keeps only the replies of whole batches."""
        whole = {key for batch in batches if all(key in self.replies for key in batch) for key in batch}
        self.replies = {key: reply for key, reply in self.replies.items() if key in whole}

    def add(self, key: Key, reply: RecordedReply) -> None:
        """Keeps a reply. One that a server failed to give is kept in memory only: the next attempt asks again."""
        self.replies[key] = reply
        if reply.finish_reason == "failed":
            return
        record = {"suite": key[0], "id": key[1], **{name: getattr(reply, name) for name in RecordedReply.__slots__}}
        write_line(self._handle, record)

    def close(self) -> None:
        self._handle.close()


@dataclass(slots=True)
class ScoredSample:
    """A row, its reply and what was said of it.

    Attributes:
        verdicts: judge id → verdict.
        outcomes: judge id → the metric's value, None where it could not be scored.
        judge: whose outcome is the suite's.
        also: further metric → its value.
    """

    suite: str
    row: Row
    reply: RecordedReply
    judge: str = ""
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    outcomes: dict[str, float | None] = field(default_factory=dict)
    errors: dict[str, str | None] = field(default_factory=dict)
    also: dict[str, MetricValue] = field(default_factory=dict)

    @property
    def outcome(self) -> float | None:
        return self.outcomes.get(self.judge)

    @property
    def format(self) -> str:
        return parse_reply(self.reply.text).format

    @property
    def answer(self) -> str:
        """What is judged: all that stands outside the thought, or an episode's answer."""
        return parse_reply(self.reply.text).answer if self.episode is None else self.episode.answer or ""

    @property
    def unparsed(self) -> bool:
        """There is a reply, and no answer in it: it is empty outside its thought, or the suite's rule found nothing that it can compare."""
        verdict = self.verdicts.get(self.judge)
        return not self.reply.error and (not self.answer or (verdict is not None and verdict.label == UNPARSED))

    @property
    def episode(self) -> Episode | None:
        return None if self.reply.episode is None else Episode(**self.reply.episode)

    def exchange(self) -> Exchange | None:
        """What verifiers judge, of an episode its answer; None if the reply is missing."""
        if self.reply.error:
            return None
        return Exchange.of(self.row, self.reply.text if self.episode is None else self.episode.answer or "")

    def to_record(self) -> dict[str, Any]:
        parsed, episode = parse_reply(self.reply.text), self.episode
        return {
            "suite": self.suite,
            "id": self.row.id,
            "group": self.row.group,
            "task": self.row.task,
            "category": self.row.category,
            "harmful": self.row.harmful,
            "messages": [dict(m) for m in self.row.prompt],
            "question": self.row.question,
            "gold": self.row.answer,
            "reply": self.reply.text,
            "thought": parsed.thought,
            "answer": self.answer,
            "format": parsed.format,
            "tokens": self.reply.tokens,
            "prompt_tokens": self.reply.prompt_tokens,
            "finish_reason": self.reply.finish_reason,
            "confidence": None if episode is None else episode.confidence,
            "well_formed": None if episode is None else episode.well_formed,
            "searches": None if episode is None else episode.searches,
            "reads": None if episode is None else episode.reads,
            "episode": None if episode is None else episode.messages,
            "judge": self.judge,
            "unparsed": self.unparsed,
            "outcome": self.outcome,
            "error": self.reply.error or self.errors.get(self.judge),
            "verdicts": [
                {
                    "judge": judge,
                    "label": verdict.label,
                    "score": verdict.score,
                    "probability": verdict.probability,
                    "error": self.errors.get(judge),
                    "outcome": self.outcomes.get(judge),
                }
                for judge, verdict in self.verdicts.items()
            ],
            "also": [{"metric": metric, "outcome": each.value, "error": each.error} for metric, each in self.also.items()],
        }


def write_samples(path: Path, samples: Sequence[ScoredSample]) -> None:
    """Writes ``samples.parquet``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    verdict = pa.struct(
        [
            ("judge", pa.string()),
            ("label", pa.string()),
            ("score", pa.float64()),
            ("probability", pa.float64()),
            ("error", pa.string()),
            ("outcome", pa.float64()),
        ]
    )
    text = (
        "suite",
        "id",
        "group",
        "task",
        "category",
        "question",
        "gold",
        "reply",
        "thought",
        "answer",
        "format",
        "finish_reason",
        "judge",
        "error",
    )
    schema = pa.schema(
        [(name, pa.string()) for name in text]
        + [
            ("harmful", pa.bool_()),
            ("unparsed", pa.bool_()),
            ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
            ("confidence", pa.int32()),
            ("well_formed", pa.bool_()),
            ("searches", pa.int32()),
            ("reads", pa.int32()),
            ("episode", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
            ("tokens", pa.int32()),
            ("prompt_tokens", pa.int32()),
            ("outcome", pa.float64()),
            ("verdicts", pa.list_(verdict)),
            ("also", pa.list_(pa.struct([("metric", pa.string()), ("outcome", pa.float64()), ("error", pa.string())]))),
        ]
    )
    pq.write_table(pa.Table.from_pylist([sample.to_record() for sample in samples], schema=schema), path)


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Reads ``samples.parquet`` as plain records."""
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()
