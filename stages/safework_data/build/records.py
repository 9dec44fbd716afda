"""From a record of a foreign table to a row, by the mapping that a source gives. What does not fit is named, never changed to fit."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from safework_cli.core.errors import InputError
from safework_cli.data.image_content import image_keys
from safework_cli.data.images import TAG, embedded, open_image
from safework_cli.data.reply import language_of
from safework_cli.data.row import HELD_OUT_NAMES, Image, Message, Row, truth_of
from safework_cli.data.schema import META
from safework_cli.data.suites import render_choices
from safework_cli.data.suites.readers import LETTERS
from safework_data.build.conversations import Conversation, Unfit, is_conversation, plain_number, read_conversation, whole
from safework_data.build.sources_config import TableSource
from safework_data.build.text import asked_text, words

SIDES = dict.fromkeys(("train", "training"), "train") | dict.fromkeys(HELD_OUT_NAMES, "test")
"""What split columns hold → the side of the split."""
_FLAGS = {key for key, kind in META.items() if kind.get("type") == "boolean"}


class Made(NamedTuple):
    """A row, why it is unfit (or None), what of its record was left out, and ``Candidate.chosen``."""

    row: Row
    problem: str | None
    remarks: tuple[str, ...] = ()
    chosen: tuple[int, int] | None = None


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

    def made(self, place: str, record: dict[str, Any]) -> Made:
        """A row of a record, or what could be read of it and why it is unfit.

        Args:
            place: of the record in the source: its number, from 1, after its file's name and a slash where there are several files. The
                row's id where no column gives one; else the file's part stands before it, since each file may number from 0.
        """
        row = Row(id=f"{self.name}/{place}", task=self.source.task or "", messages=[], source=self.name, licence=self.source.licence)
        try:
            unread, chosen = self._fill(row, self._values(record), place.rpartition("/")[0])
        except Unfit as unfit:
            return Made(row, str(unfit))
        return Made(row, None, tuple(f"of messages, '{key}' is not read" for key in sorted(unread)), chosen)

    def _values(self, record: dict[str, Any]) -> dict[str, Any]:
        values: dict[str, Any] = dict(self.source.constants)
        for target, column in self.source.columns.items():
            values[target] = [_plain(cell(record, c)) for c in column] if isinstance(column, list) else _plain(cell(record, column))
        for target, pattern in self._patterns.items():
            found = list(pattern.finditer(_text(values[target], target)))
            if not found:
                raise Unfit(f"extract.{target} finds nothing: {str(values[target])[:60]!r}")
            values[target] = found[-1].group(1).strip()
        return values

    def _fill(self, row: Row, values: dict[str, Any], file: str) -> tuple[set[str], tuple[int, int] | None]:
        """Fills a row, and returns the keys of messages that it has no place for, and ``Candidate.chosen``."""
        if values.get("id") not in (None, ""):
            row.id = "/".join(filter(None, (self.name, file, _gold(values["id"]))))
        if values.get("split") not in (None, ""):  # before what may be unfit: which side loses a row is counted
            row.split = _side(values["split"])
        row.meta = {target[5:]: value for target, value in values.items() if target.startswith("meta.") and value not in (None, "")}
        for key in row.meta.keys() & _FLAGS:
            row.meta[key] = _truth(row.meta[key], f"meta.{key}")
        conversation = read_conversation(values["messages"]) if "messages" in values else _turns(values)
        row.messages = conversation.messages
        self._add_images(row, conversation.images, values.get("images"))
        for target in ("task", "category", "licence"):
            if values.get(target) not in (None, ""):
                setattr(row, target, _text(values[target], target))
        if values.get("harmful") not in (None, ""):
            row.harmful = _truth(values["harmful"], "harmful")
        chosen = self._answer(row, values.get("answer"))
        if isinstance(row.meta.get("choices"), list):
            _ask_with_choices(row)
        # Rows that ask the same, or about the same images, are one group unless the source says otherwise: they must not straddle a split.
        row.meta.setdefault("group", prompt_group(row))
        try:
            if not all(isinstance(value, str) for value in row.meta.values()):
                json.dumps(row.meta, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise Unfit(f"meta is not plain JSON: {error}") from None
        return conversation.unread, chosen

    def _add_images(self, row: Row, inside: list[Any], value: Any) -> None:
        """Images of the messages' own parts, or of a column."""
        if any(item is not None for item in inside):
            if value not in (None, "", []) or None in inside:
                raise Unfit("images twice: some in the messages, others in a column")
            value = inside
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
                open_image(image)
                return image
            if isinstance(item, str) and self.folder is not None:
                return embedded(item, self.folder)
        except InputError as error:
            raise Unfit(f"unreadable image: {error.what}; {error.why}") from None
        raise Unfit(f"unreadable image: a {type(item).__name__} is neither a path nor bytes")

    def _answer(self, row: Row, value: Any) -> tuple[int, int] | None:
        """Sets a row's answer; a place among its choices becomes the letter, and is returned with their number."""
        if value in (None, "", []):
            return None
        if isinstance(value, list):  # several accepted answers, as open-domain sets print them
            value, *others = value
            row.meta.setdefault("aliases", [_gold(other) for other in others])
        if isinstance(value, float):
            value = whole(value)
        chosen, choices, start = None, row.meta.get("choices"), self.source.answers_from
        if start is not None and isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value.strip()):
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and isinstance(choices, list):
            chosen = value, len(choices)
            letters = LETTERS[: len(choices)]
            place = value - (start or 0)
            value = letters[place] if 0 <= place < len(letters) else str(value)  # the latter is dropped: it is none of the choices
        row.answer = _gold(value).strip()
        return chosen


class OwnRows:
    """Makes rows of records that are in the product's own schema (``data/schema.py``): they stay as they are, but for the source's name
    before their ids.

    Args:
        folder: where image files lie that a row names by their path.
    """

    def __init__(self, source: TableSource, name: str, folder: Path):
        self.source, self.name, self.folder = source, name, folder

    def made(self, place: str, record: dict[str, Any]) -> Made:
        """A row of a record, or what could be read of it and why it is unfit; ``place`` as ``RowMaker.made`` has it."""
        row = Row(id=f"{self.name}/{place}", task="", messages=[], source=self.name, licence=self.source.licence)
        try:
            for name, kinds in _OWN_TYPES.items():
                value = record.get(name)
                if value is not None and not isinstance(value, kinds):
                    raise Unfit(f"schema: {name} is {type(value).__name__}")
                if value not in (None, "") and name not in ("id", "messages", "images", "meta"):
                    setattr(row, name, value)
            if record.get("id"):
                row.id = "/".join(filter(None, (self.name, place.rpartition("/")[0], record["id"])))
            row.messages = [_own_message(message) for message in record.get("messages") or []]
            row.images = [self._image(image) for image in record.get("images") or []]
            meta = record.get("meta") or {}
            try:
                row.meta = json.loads(meta) if isinstance(meta, str) else dict(meta)
                json.dumps(row.meta, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise Unfit(f"schema: meta is not plain JSON: {error}") from None
            if not isinstance(row.meta, dict):
                raise Unfit("schema: meta is not an object")
            row.meta.setdefault("group", prompt_group(row))
        except Unfit as unfit:
            return Made(row, str(unfit))
        return Made(row, None)

    def _image(self, image: Any) -> Image:
        """An image with its bytes: as they are in Parquet, in Base64 in JSON, or of the file that the path names."""
        if not isinstance(image, dict):
            raise Unfit(f"schema: an image is {type(image).__name__}")
        content, path = image.get("bytes"), image.get("path")
        try:
            if content is None:
                return embedded(str(path), self.folder)
            if isinstance(content, str):
                content = base64.b64decode(content, validate=True)
            read = Image(bytes=content, path=Path(str(path or "")).name or None)
            open_image(read)
            return read
        except InputError as error:
            raise Unfit(f"unreadable image: {error.what}; {error.why}") from None
        except ValueError as error:
            raise Unfit(f"unreadable image: {error}") from None


_OWN_TYPES: dict[str, type | tuple[type, ...]] = {
    "id": str, "task": str, "messages": list, "images": list, "answer": str, "category": str, "harmful": bool, "source": str,
    "licence": str, "split": str, "meta": (dict, str),
}  # fmt: skip


def _own_message(message: Any) -> Message:
    is_message = isinstance(message, dict) and message.keys() == {"role", "content"}
    if not is_message or not all(isinstance(text, str) for text in message.values()):
        raise Unfit("schema: a message is not {role, content}")
    return Message(role=message["role"], content=message["content"])


def _side(value: Any) -> str:
    """A split column's value as "train" or "test"."""
    side = SIDES.get(str(value).strip().lower())
    if side is None:
        raise Unfit(f"split is neither train nor test: {str(value)[:40]!r}")
    return side


def prompt_group(row: Row) -> str:
    """A group's name: of an attack, from what it is after; of other prompts with images, from the images, since one image is asked about
    several times, and one question about several images; of the rest, from the words of the user's turns."""
    target = row.meta.get("target")
    if row.images and not isinstance(target, str):
        return "images-" + hashlib.sha256("\0".join(sorted(image_keys(row.images))).encode()).hexdigest()[:16]
    text = target if isinstance(target, str) else asked_text(row)
    return "prompt-" + hashlib.sha256("\0".join(words(text) or [text]).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _text(value: Any, target: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return plain_number(value)
    raise Unfit(f"{target} is not text: {type(value).__name__}")


def _gold(value: Any) -> str:
    """A gold answer as its author wrote it, whatever type the table's format made of it."""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, Decimal):
        return format(value.normalize(), "f") if value.is_finite() else str(value)
    if isinstance(value, datetime):
        return value.isoformat(" ") if value.time() != time() else value.date().isoformat()
    if isinstance(value, date | time):
        return value.isoformat()
    return _text(value, "answer")


def cell(record: Mapping[str, Any], column: str) -> Any:
    """A cell by its column's name, or by a path into nested ones: ``reward_model.ground_truth``, ``answers.text``, ``turns.0``."""
    if column in record:
        return record[column]
    value: Any = record
    for part in column.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdigit():
            value = value[int(part)] if int(part) < len(value) else None
        else:
            return None
    return value


def has_column(record: Mapping[str, Any], column: str) -> bool:
    """Whether a record knows a column, or the nested one that a path leads to."""
    if column in record:
        return True
    head, dot, rest = column.partition(".")
    inner = record.get(head)
    if not dot or inner is None:
        return False
    if isinstance(inner, list):
        index, _, rest = rest.partition(".")
        inner = inner[int(index)] if index.isdigit() and int(index) < len(inner) else None
        return inner is not None and (not rest or (isinstance(inner, Mapping) and has_column(inner, rest)))
    return isinstance(inner, Mapping) and has_column(inner, rest)


def _plain(value: Any) -> Any:
    """A cell; what tables without a word for "nothing" write as NaN is nothing."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _truth(value: Any, target: str) -> bool:
    try:
        return truth_of(whole(value))
    except ValueError as error:
        raise Unfit(f"{target} is {error}") from None


def _turns(values: dict[str, Any]) -> Conversation:
    """System, prompt and reply, each a text, or a list of messages as TRL has them."""
    if values.get("prompt") in (None, "", []):
        raise Unfit("no prompt")
    found = Conversation()
    names = {"system": "system", "user": "prompt", "assistant": "reply"}
    for role, name in names.items():
        value = values.get(name)
        if value in (None, "", []):
            continue
        if name != "system" and is_conversation(value):
            found.extend(read_conversation(value))
        else:
            found.messages.append(Message(role=role, content=_text(value, name)))
    return found


def _ask_with_choices(row: Row) -> None:
    """Writes the options under the last question, as evaluation suites do, and keeps the bare question in ``meta.stem``."""
    choices = [_gold(choice) for choice in row.meta["choices"]]
    if len(choices) > len(LETTERS):
        raise Unfit(f"more choices than letters: {len(choices):,}")
    question = row.question
    asked = render_choices(question, choices, language_of(question))
    row.meta |= {"choices": choices, "answer_type": "choice", "stem": question}
    for message in reversed(row.prompt):
        if message["role"] == "user":
            message["content"] = asked
            break
