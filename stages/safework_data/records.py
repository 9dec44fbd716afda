"""From a record of somebody's table to a row, by the mapping that a source gives. What does not fit is named, never bent."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

from safework_cli.errors import InputError
from safework_cli.pictures import TAG, embedded, open_picture
from safework_cli.row_schema import META
from safework_cli.rows import Image, Message, Row, language_of, truth_of
from safework_cli.suites import render_choices
from safework_cli.suites.readers import LETTERS
from safework_data.settings import TableSource
from safework_data.text import words

_FLAGS = {key for key, kind in META.items() if kind.get("type") == "boolean"}


class Unfit(Exception):
    """A record that no row can be made of; the text is ``reason`` or ``reason: detail``."""


class RowMaker:
    """Makes rows of one source's records.

    Args:
        source: the mapping.
        name: the source's name, which begins every id.
        folder: where image files lie; None where the table brings their bytes.
    """

    def __init__(self, source: TableSource, name: str, folder: Path | None = None):
        self.source, self.name, self.folder = source, name, folder
        self._patterns = {target: re.compile(pattern) for target, pattern in source.extract.items()}

    @property
    def columns(self) -> list[str]:
        """Every column that the mapping reads, in order."""
        return list(dict.fromkeys(column for target in self.source.columns for column in self.of(target)))

    def of(self, target: str) -> list[str]:
        """The columns that make up one field of a row."""
        given = self.source.columns.get(target, [])
        return given if isinstance(given, list) else [given]

    def row(self, number: int, record: dict[str, Any]) -> tuple[Row, str | None]:
        """A row of a record, and why it is unfit (then the row holds what could be read, for the list of drops).

        Args:
            number: the record's place in the source, from 1; the row's id where no column gives one.
        """
        row = Row(id=f"{self.name}/{number}", task=self.source.task or "", messages=[], source=self.name, licence=self.source.licence)
        try:
            self._fill(row, self._values(record))
        except Unfit as unfit:
            return row, str(unfit)
        return row, None

    def _values(self, record: dict[str, Any]) -> dict[str, Any]:
        values: dict[str, Any] = dict(self.source.constants)
        for target, column in self.source.columns.items():
            values[target] = [_plain(record.get(c)) for c in column] if isinstance(column, list) else _plain(record.get(column))
        for target, pattern in self._patterns.items():
            found = list(pattern.finditer(_text(values[target], target)))
            if not found:
                raise Unfit(f"extract.{target} finds nothing: {str(values[target])[:60]!r}")
            values[target] = found[-1].group(1).strip()
        return values

    def _fill(self, row: Row, values: dict[str, Any]) -> None:
        if values.get("id") not in (None, ""):
            row.id = f"{self.name}/{values['id']}"
        row.meta = {target[5:]: value for target, value in values.items() if target.startswith("meta.") and value not in (None, "")}
        for key in row.meta.keys() & _FLAGS:
            row.meta[key] = _truth(row.meta[key], f"meta.{key}")
        row.messages = _messages(values["messages"]) if "messages" in values else _turns(values)
        if values.get("images") not in (None, "", []):
            self._picture(row, values["images"])
        for target in ("task", "category", "licence"):
            if values.get(target) not in (None, ""):
                setattr(row, target, _text(values[target], target))
        if values.get("harmful") not in (None, ""):
            row.harmful = _truth(values["harmful"], "harmful")
        self._answer(row, values.get("answer"))
        if isinstance(row.meta.get("choices"), list):
            _ask_with_choices(row)
        # Rows that ask the same are one group unless the source says otherwise: several replies to a prompt must not straddle a split.
        row.meta.setdefault("group", prompt_group(row))
        try:
            if not all(isinstance(value, str) for value in row.meta.values()):
                json.dumps(row.meta, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise Unfit(f"meta is not plain JSON: {error}") from None

    def _picture(self, row: Row, value: Any) -> None:
        for item in value if isinstance(value, list) else [value]:
            if item not in (None, ""):
                row.images.append(self._image(item))
        if row.images and not any(TAG in message["content"] for message in row.messages):
            first = next((m for m in row.messages if m["role"] == "user"), None)
            if first is not None:
                first["content"] = f"{TAG}\n" * len(row.images) + first["content"]

    def _image(self, item: Any) -> Image:
        try:
            if isinstance(item, dict) and isinstance(item.get("bytes"), bytes):
                image = Image(bytes=item["bytes"], path=Path(str(item.get("path") or "")).name or None)
                open_picture(image)
                return image
            if isinstance(item, str) and self.folder is not None:
                return embedded(item, self.folder)
        except InputError as error:
            raise Unfit(f"unreadable image: {error.what}; {error.why}") from None
        raise Unfit(f"unreadable image: a {type(item).__name__} is neither a path nor bytes")

    @staticmethod
    def _answer(row: Row, value: Any) -> None:
        if value in (None, "", []):
            return
        if isinstance(value, list):  # several accepted answers, as open-domain sets print them
            value, *others = value
            row.meta.setdefault("aliases", [str(other) for other in others])
        if isinstance(value, int) and not isinstance(value, bool) and isinstance(row.meta.get("choices"), list):
            value = LETTERS[value] if 0 <= value < len(row.meta["choices"]) else str(value)
        row.answer = _text(value, "answer").strip()


def prompt_group(row: Row) -> str:
    """A group's name from the words of the prompt's user turns; of an attack, from what it is after."""
    target = row.meta.get("target")
    asked = target if isinstance(target, str) else "\n".join(m["content"] for m in row.prompt if m["role"] == "user")
    return "prompt-" + hashlib.sha256("\0".join(words(asked) or [asked]).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _text(value: Any, target: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise Unfit(f"{target} is not text: {type(value).__name__}")


def _plain(value: Any) -> Any:
    """A cell; what tables without a word for "nothing" write as NaN is nothing."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _truth(value: Any, target: str) -> bool:
    try:
        return truth_of(value)
    except ValueError as error:
        raise Unfit(f"{target} is {error}") from None


def _turns(values: dict[str, Any]) -> list[Message]:
    if values.get("prompt") in (None, ""):
        raise Unfit("no prompt")
    turns = [("system", values.get("system")), ("user", values["prompt"]), ("assistant", values.get("reply"))]
    names = {"system": "system", "user": "prompt", "assistant": "reply"}
    return [Message(role=role, content=_text(value, names[role])) for role, value in turns if value not in (None, "")]


def _messages(value: Any) -> list[Message]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise Unfit("messages are not readable: text that is not JSON") from None
    if not isinstance(value, list) or not all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in value):
        raise Unfit("messages are not readable: not a list of {role, content}")
    return [Message(role=m["role"], content=_text(m.get("content"), "content")) for m in value]


def _ask_with_choices(row: Row) -> None:
    """Writes the options under the last question, as evaluation suites do, and keeps the bare question in ``meta.stem``."""
    choices = [_text(choice, "meta.choices") for choice in row.meta["choices"]]
    question = row.question
    asked = render_choices(question, choices, language_of(question))
    row.meta |= {"choices": choices, "answer_type": "choice", "stem": question}
    for message in reversed(row.prompt):
        if message["role"] == "user":
            message["content"] = asked
            break
