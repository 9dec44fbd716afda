"""The one row that every stage reads and writes, and the one format of a reasoned reply.

A row is a conversation with what is needed to judge a reply to it. Rows live in Parquet (``arrow_schema``); ``meta`` is
JSON text there, because its keys differ between tasks and Arrow would otherwise need a new schema for each.

Keys of ``meta`` that stages understand (``data/schema.py`` gives the same to other programs):
    group         str   rows of one group never fall on two sides of a split (default: the row's id)
    language      str   "en" or "zh"
    answer_type   str   how ``answer`` is compared: "exact" | "choice" | "choices" | "math" | "contains"; "constraints": by those
    aliases       list  further accepted answers
    choices       list  the texts of a multiple-choice question, in order A, B, C, …
    stem          str   the bare question of a multiple-choice row, without options and instructions
    finish_reason str   "length" where the reply was cut: such a row is dropped
    label         str   the gold label of the last assistant message, for training and testing verifiers
    annotators    list  the labels of two people who labelled it one by one
    constraints   list  instruction constraints, checked by the rule verifier of that name
    passages      list  ids of the passages that hold the answer (search rows)
    target        str   what an attack is after: splits and the search for evaluation prompts go by it
    jailbreak     bool  the prompt is an attack that hides what it asks: safety is judged by the strict reading
    verdict       list  start and end of the word that states the decision: characters of the last assistant message
    template      str   what the prompt was written with, apart from its topic
    pair          str   id of the harmful prompt that a benign look-alike was written against, or the reverse
    shows         list  phrases that are true of the row's images, for the visual-focus reward
    shows_not     list  phrases that are not true of them
    safety_warning str  what is dangerous about the prompt with its image, for a judge that reads it
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypedDict

from safework_cli.core.errors import InputError

Task = Literal["safety", "value", "knowledge", "general", "search"]
TASKS: tuple[str, ...] = ("safety", "value", "knowledge", "general", "search")
ROLES = ("system", "user", "assistant")
SPLITS = ("train", "test")
HELD_OUT_NAMES = ("test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation", "heldout", "held_out")
"""What data sets call a split that is not for training, in a column or as a file's name: "test" here."""
SCHEMA_VERSION = 1


class Message(TypedDict):
    role: str
    content: str


class Image(TypedDict):
    """The layout of ``datasets.Image``: encoded bytes, or a path next to the file that the row came from."""

    bytes: bytes | None
    path: str | None


@dataclass(slots=True)
class Row:
    """One conversation and what a reply to it is judged by.

    Attributes:
        id: unique within a dataset artifact.
        task: the ladder's task, which routes the row to its verifiers.
        messages: roles alternate user/assistant after an optional system message.
        images: one per ``<image>`` tag in the messages, in order.
        answer: the gold answer where one exists.
        category: a topic within the task, for histograms and balancing.
        harmful: whether the *prompt* asks for something harmful; ``None`` where the question does not arise.
        source, licence: where the row came from and under which terms.
        split: "train", "test" or empty before splitting.
    """

    id: str
    task: str
    messages: list[Message]
    images: list[Image] = field(default_factory=list)
    answer: str | None = None
    category: str | None = None
    harmful: bool | None = None
    source: str = ""
    licence: str = ""
    split: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def group(self) -> str:
        return str(self.meta.get("group") or self.id)

    @property
    def prompt(self) -> list[Message]:
        """The messages before the reply that is asked for: all but the last one where that is the assistant's, else all of them."""
        return self.messages[:-1] if self.reply is not None else self.messages

    @property
    def question(self) -> str:
        """The text of the last user message of the prompt."""
        return next((m["content"] for m in reversed(self.prompt) if m["role"] == "user"), "")

    @property
    def reply(self) -> str | None:
        """The last assistant message, or None where the row is only a prompt."""
        last = self.messages[-1] if self.messages else None
        return last["content"] if last and last["role"] == "assistant" else None

    def to_record(self) -> dict[str, Any]:
        """A dict that fits ``arrow_schema``."""
        record: dict[str, Any] = {name: getattr(self, name) for name in ROW_FIELDS}
        record["meta"] = _META_TEXT.encode(self.meta)
        return record

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Row:
        """The inverse of ``to_record``; also takes ``meta`` as a dict. Unknown keys raise TypeError."""
        values = dict(record)
        meta = values.get("meta") or {}
        values["meta"] = json.loads(meta) if isinstance(meta, str) else dict(meta)
        values["images"] = list(values.get("images") or [])
        values["messages"] = [Message(role=m["role"], content=m["content"]) for m in values.get("messages") or []]
        return cls(**values)


ROW_FIELDS = tuple(f.name for f in fields(Row))
_META_TEXT = json.JSONEncoder(ensure_ascii=False, sort_keys=True)  # kept: json.dumps would make one for every row


def arrow_schema():
    """The Parquet schema of rows (pyarrow is imported here: the CLI never needs it for help)."""
    import pyarrow as pa

    return pa.schema(
        [
            ("id", pa.string()),
            ("task", pa.string()),
            ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
            ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
            ("answer", pa.string()),
            ("category", pa.string()),
            ("harmful", pa.bool_()),
            ("source", pa.string()),
            ("licence", pa.string()),
            ("split", pa.string()),
            ("meta", pa.string()),
        ],
        metadata={"safework_row_schema": str(SCHEMA_VERSION)},
    )


def write_rows(path, rows: list[Row]) -> None:
    """Writes rows as one Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([row.to_record() for row in rows], schema=arrow_schema()), path)


def read_rows(path) -> list[Row]:
    """Every row of a Parquet file, or of all Parquet files below a folder in name order."""
    return list(stream_rows(path))


def stream_rows(path) -> Iterator[Row]:
    """The rows of ``read_rows``, a batch of records in memory at a time."""
    from pathlib import Path

    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    for file in files:
        with pq.ParquetFile(file) as table:
            names = set(table.schema_arrow.names)
            if wrong := sorted(names - {*ROW_FIELDS}) or sorted({"id", "task", "messages"} - names):
                has = "has no" if wrong[0] not in names else "has a"
                why = f"it {has} column '{wrong[0]}'; rows have {', '.join(ROW_FIELDS)}"
                raise InputError(f"{file} holds no rows of ours", why, "safework data build makes rows of any table")
            try:
                for batch in table.iter_batches(1024):
                    yield from map(Row.from_record, batch.to_pylist())
            except (ValueError, TypeError, KeyError, pa.ArrowException) as error:  # bytes that are not UTF-8, meta that is not JSON, …
                why = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
                raise InputError(f"{file} holds rows that cannot be read", why, "safework data build makes rows of any table") from None


def problems(row: Row) -> list[str]:
    """Names every rule of the schema that the row breaks; an empty list means that it is valid."""
    found = []
    if not row.id:
        found.append("id is empty")
    if row.task not in TASKS:
        found.append(f"task '{row.task}' is not one of {', '.join(TASKS)}")
    if row.split not in ("", *SPLITS):
        found.append(f"split '{row.split}' is not one of {', '.join(SPLITS)}")
    if not row.messages:
        found.append("no messages")
    roles = [m["role"] for m in row.messages]
    unknown = sorted(set(roles) - set(ROLES))
    if unknown:
        found.append(f"unknown role '{unknown[0]}'")
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if row.messages and turns != [("user", "assistant")[i % 2] for i in range(len(turns))]:
        found.append("roles do not alternate user/assistant")
    if any(not isinstance(m["content"], str) or not m["content"].strip() for m in row.messages):
        found.append("a message is empty")
    tags = sum(m["content"].count("<image>") for m in row.messages if isinstance(m["content"], str))
    if tags != len(row.images):
        found.append(f"{tags} <image> tags for {len(row.images)} images")
    return found


TRUTHS = {1: True, 0: False, "true": True, "false": False, "1": True, "0": False}
"""What a yes-or-no column may hold; ``True`` and ``False`` are found under 1 and 0."""


def truth_of(value: Any) -> bool:
    """A yes-or-no column's value. Raises ValueError where it is neither."""
    key = value.strip().lower() if isinstance(value, str) else value
    if isinstance(key, str | int) and key in TRUTHS:
        return TRUTHS[key]
    raise ValueError(f"neither true nor false: {str(value)[:40]!r}")
