"""Which column is what, where a source does not say: found by the names that other tools use. Nothing ambiguous is guessed: the error shows
the line to type. Rows in the product's own schema are recognised and need no mapping.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from safework_cli.core.errors import ConfigError, InputError
from safework_cli.data.row import ROW_FIELDS, TASKS, truth_of
from safework_cli.data.schema import META
from safework_cli.data.suites.tables import read_table
from safework_data.build.sources_config import FileSource, mapping_line, plain_word
from safework_data.files import listed, matching_files

PROMPT_NAMES = ("prompt", "instruction", "question", "query", "input")
REPLY_NAMES = ("reply", "response", "completion", "output")
OTHER_NAMES = {
    "messages": ("messages", "conversations", "conversation"),
    "system": ("system", "system_prompt"),
    "images": ("images", "image"),
    "licence": ("licence", "license"),
    "id": ("id",), "split": ("split",), "category": ("category",),
}  # fmt: skip
_KNOWN = {*PROMPT_NAMES, *REPLY_NAMES, *(name for names in OTHER_NAMES.values() for name in names), "answer", "task", "harmful"}
LOOKED_AT = 100
"""Rows whose columns are looked at: a line of JSON may leave out what others have."""


class Columns(NamedTuple):
    """How a file is read.

    Attributes:
        source: the source with its columns filled in; as it was given where ``own``.
        own: the file holds rows in the product's own schema.
        split: rows of the file say on which side of the split they are.
        note: what was found, for people; empty where the settings say it all.
        have: the columns of the rows that were looked at; None where the settings say what is read.
    """

    source: FileSource
    own: bool
    split: bool
    note: str
    have: frozenset[str] | None = None

    def overlooked(self, record: Mapping[str, Any]) -> str | None:
        """A column of a later row that would have been read, had the rows that were looked at had it; None where there is none."""
        if self.have is None:
            return None
        if self.own:
            return next((str(key) for key in record if key not in ROW_FIELDS), None)
        for key, value in record.items():
            if key not in self.have and value not in (None, "") and str(key).lower() in _KNOWN:
                return str(key)
        meta = record.get("meta")
        known = (f"meta.{key}" for key, value in meta.items() if key in META and value is not None) if isinstance(meta, dict) else ()
        return next((name for name in known if name not in self.source.columns), None)


def columns_of(source: FileSource) -> Columns:
    """How the files of a source are read: by its ``columns``, else by the names of the first file's columns.

    Raises:
        InputError: a file is missing or broken, or which column is the prompt or the reply is open.
    """
    if source.columns:
        return Columns(source, False, "split" in source.columns, "")
    path = matching_files(source.path)[0]
    records = list(islice(read_table(path, source.format), LOOKED_AT))
    if not records:
        raise InputError(f"{path} holds no rows", "a dataset of nothing would train nothing", "check the files that the sources name")
    if _is_own(records) and not (source.constants or source.extract):
        split = any(record.get("split") for record in records)
        return Columns(source, True, split, f"{path.name}: rows in the schema of safework, read as they are", frozenset(ROW_FIELDS))
    have = list(dict.fromkeys(str(key) for record in records for key in record))
    columns = {target: column for target, column in _found(records, have, path).items() if target not in source.constants}
    read = {column.partition(".")[0] for column in columns.values()}
    unread = [name for name in have if name not in read]
    note = f"{path.name}: columns: {mapping_line(columns)}" + (f"; not read: {listed(unread)}" if unread else "")
    settings = source.model_dump() | {"columns": columns}
    if source.task is None and not {"task"} & {*columns, *source.constants}:
        settings["task"] = "general"
    try:
        return Columns(FileSource.model_validate(settings), False, "split" in columns, note, frozenset(have))
    except ValidationError as error:
        raise ConfigError(f"{path}: {error.errors()[0]['msg'].removeprefix('Value error, ')}", note) from None


def refuse_overlooked(columns: Columns, records: Iterable[tuple[str, dict[str, Any]]], where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records as they come. Raises InputError at one with a column that was not there when the columns were found by their names:
    held-out rows at the end of a file, say, of which only they have a ``split``."""
    for place, record in records:
        if (name := columns.overlooked(record)) is not None:
            read = {target: str(column) for target, column in columns.source.columns.items()} or {"messages": "messages"}
            raise InputError(
                f"{where}, row {place}: the column '{name}' is not in the first {LOOKED_AT} rows",
                "these decide which columns are read, and this one would be left out without a word",
                "give all rows the same columns, or name those to be read: "
                + _type(f"columns: {mapping_line(read)}", matching_files(columns.source.path)[0]),
            )
        yield place, record


def _is_own(records: Sequence[Mapping[str, Any]]) -> bool:
    return all(
        {"id", "task", "messages"} <= record.keys() <= {*ROW_FIELDS} and isinstance(record.get("meta"), dict | str | None)
        for record in records
    )


def _found(records: Sequence[Mapping[str, Any]], have: Sequence[str], path: Path) -> dict[str, str]:
    """Row field → column. Raises InputError with the line to type where it is open."""
    named = {name.lower(): name for name in reversed(have)}
    columns = {}
    for target, usual in OTHER_NAMES.items():
        if here := [named[name] for name in usual if name in named]:
            columns[target] = here[0]
    prompts = [named[name] for name in PROMPT_NAMES if name in named]
    replies = [named[name] for name in REPLY_NAMES if name in named]
    others = [name for name in have if name not in (*columns.values(), *prompts, *replies)]
    if "messages" in columns:
        if prompts or replies:
            more = " and ".join(repr(name) for name in [*prompts[:1], *replies[:1]])
            way = f"columns: {{messages: {columns['messages']}}}"
            raise InputError(
                f"{path}: the conversation may be '{columns['messages']}', or {more}", f"its columns: {listed(have)}", _type(way, path)
            )
        columns.pop("system", None)
    elif not prompts:
        guess = {"prompt": (others or ["COLUMN"])[0], "reply": (replies or [*others[1:], "COLUMN"])[0]}
        raise InputError(
            f"{path}: which column holds the prompts is not clear",
            f"its columns: {listed(have)}",
            _type(f"columns: {mapping_line(guess)}", path),
        )
    elif len(prompts) > 1 or len(replies) > 1:
        which, names = ("prompt", prompts) if len(prompts) > 1 else ("reply", replies)
        guess = {"prompt": prompts[0], "reply": (replies or others or ["COLUMN"])[0]}
        raise InputError(
            f"{path}: {len(names)} columns may be the {which}: {', '.join(names)}",
            f"its columns: {listed(have)}",
            _type(f"columns: {mapping_line(guess)}", path) + f", or with the other as {which}",
        )
    elif not replies and "answer" in named:
        train = mapping_line({"prompt": prompts[0], "reply": named["answer"]})
        compare = mapping_line({"prompt": prompts[0], "answer": named["answer"]})
        raise InputError(
            f"{path}: 'answer' may be the reply to train on, or the gold answer that replies are compared with",
            f"its columns: {listed(have)}",
            f"{_type(f'columns: {train}', path)}\n       to train on it; to compare with it:  columns: {compare}",
        )
    else:
        columns |= {"prompt": prompts[0]} | ({"reply": replies[0]} if replies else {})
    if "answer" in named:
        columns["answer"] = named["answer"]
    if all(record.get("task") in TASKS for record in records):
        columns["task"] = "task"
    if all(record.get("harmful") is None or _is_truth(record["harmful"]) for record in records) and "harmful" in named:
        columns["harmful"] = named["harmful"]
    for key in META:
        if any(isinstance(record.get("meta"), dict) and record["meta"].get(key) is not None for record in records):
            columns[f"meta.{key}"] = f"meta.{key}"
    return columns


def _is_truth(value: Any) -> bool:
    try:
        truth_of(value)
    except ValueError:
        return False
    return True


def _type(columns: str, path: Path) -> str:
    """The command with which the file is built."""
    return "safework data build sources=" + shlex.quote(f"[{{kind: file, path: {plain_word(str(path))}, task: general, {columns}}}]")
