"""Rows to supervised token sequences, with the refusals that keep a useless run from ending green."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from safework_cli.core.errors import InputError
from safework_cli.data.row import Row
from safework_cli.data.verdict import Mark, Words
from safework_cli.models.chat_template import encode_conversation
from safework_cli.models.encodings import ONCE_BYTES, Encodings, tensor_bytes
from safework_cli.models.processors import Headers
from safework_cli.models.rendering import TemplateError
from safework_cli.models.verdict import Choice, choices
from safework_cli.models.vision import Prompt, Vision

IGNORE = -100
"""The label that torch's cross-entropy leaves out."""


@dataclass(slots=True)
class EncodedRows:
    """Rows ready for the trainer.

    Attributes:
        input_ids, labels: one list of (T,) per kept row; labels are ``IGNORE`` on tokens that are not supervised.
        dropped: reason → ids of the rows that were left out for it.
        rows: the kept ones.
        marked: the language and the tokens of each kept row's marked word; None where it has none.
    """

    input_ids: list[list[int]] = field(default_factory=list)
    labels: list[list[int]] = field(default_factory=list)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    marked: list[tuple[Mark, int, int] | None] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.input_ids))

    @property
    def supervised_tokens(self) -> int:
        return sum(label != IGNORE for labels in self.labels for label in labels)


def encode_rows(
    rows: list[Row],
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: list[int],
    max_length: int,
    positions: int | None = None,
    marks: Mapping[str, Mark] | None = None,
    processor: Any = None,
) -> EncodedRows:
    """Tokenizes rows; drops by name what is over-long, has no reply, or is changed by the chat template.

    Args:
        max_length: tokens of a row at most, as the settings say.
        positions: as the model says.
        marks: row id → the word that states its decision.
        processor: of a model that reads images. No image is decoded here: see ``VisionOf``.
    """
    encoded, headers = EncodedRows(), processor and Headers(processor)
    for row in rows:
        reason, mark = None, (marks or {}).get(row.id)
        if row.reply is None:
            reason = "does not end in an assistant reply"
        else:
            try:
                marked = None if mark is None else (mark.start, mark.end)
                one = encode_conversation(tokenizer, row.messages, stop_ids, marked, row.images, headers)
            except TemplateError as error:
                reason = error.what
            else:
                if len(one.input_ids) > max_length:
                    reason = f"longer than max_length={max_length} tokens"
                elif positions is not None and len(one.input_ids) > positions:
                    reason = f"longer than the model's {positions} positions"
        if reason:
            encoded.dropped.setdefault(reason, []).append(row.id)
            continue
        encoded.rows.append(row)
        encoded.input_ids.append(one.input_ids)
        encoded.labels.append([i if s else IGNORE for i, s in zip(one.input_ids, one.supervised, strict=True)])
        encoded.marked.append(None if mark is None or one.marked is None else (mark, *one.marked))
    return encoded


class VisionOf:
    """What the images of training rows are encoded to, made when a row's step comes: those of a data set do not fit into memory.

    Args:
        rows: the rows that are trained on, as ``TrainingRows.images`` numbers them.
    """

    def __init__(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, stop_ids: list[int], processor: Any):
        self._rows, self._tokenizer, self._stop_ids, self._processor = rows, tokenizer, stop_ids, processor
        self._encodings: Encodings[int, Prompt] = Encodings(self._encode, tensor_bytes, int, limit_bytes=ONCE_BYTES)

    def __call__(self, number: int) -> Vision | None:
        return self._encodings(number).vision

    def ahead(self, numbers: Iterable[int]) -> None:
        """Begins to encode the images of rows that come next; returns at once."""
        self._encodings.ahead(numbers)

    def _encode(self, number: int) -> Prompt:
        row = self._rows[number]
        return Prompt([], encode_conversation(self._tokenizer, row.messages, self._stop_ids, None, row.images, self._processor).vision)


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The tokens that decide.

    Attributes:
        choices: language → its words as tokens.
        places: the place of each row's deciding token; None where the row has none.
    """

    choices: dict[str, Choice]
    places: list[int | None]


def find_verdicts(encoded: EncodedRows, words: Words) -> Verdicts:
    """The deciding token of each encoded row.

    Raises:
        InputError: the words of a language begin with the same token.
    """
    written: dict[str, set[tuple[str, tuple[int, ...]]]] = {}
    for ids, marked in zip(encoded.input_ids, encoded.marked, strict=True):
        if marked is not None:
            mark, first, end = marked
            written.setdefault(mark.language, set()).add((mark.word, tuple(ids[first:end])))
    found = choices(words, written)
    return Verdicts(found, [None if one is None else one[1] + found[one[0].language].shared for one in encoded.marked])


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """What the trainer gets: columns of equal length.

    Attributes:
        verdicts: one list of (T,) per row, 1 on a deciding token and 0 elsewhere. Empty where verdicts are not learned as such.
        images: the number of each one's row among those that are trained on, or -1 where it has no images.
    """

    input_ids: list[list[int]]
    labels: list[list[int]]
    verdicts: list[list[int]]
    images: list[int] = field(default_factory=list)

    def dataset(self) -> Dataset:
        """As the trainer reads it; without ``verdicts`` or ``image_row`` where there are none."""
        columns: dict[str, list[Any]] = {"input_ids": self.input_ids, "labels": self.labels}
        if self.verdicts:
            columns["verdicts"] = self.verdicts
        if self.has_images:
            columns["image_row"] = self.images  # TRL takes a column "images" for its own kind
        return Dataset.from_dict(columns)

    @property
    def has_images(self) -> bool:
        return any(number >= 0 for number in self.images)

    def two_short_ones(self) -> list[dict[str, Any]]:
        """Two rows as the trainer gets them: the shortest with images, and the shortest one of another row's images or of text."""
        by_length = sorted(range(len(self.input_ids)), key=lambda row: len(self.input_ids[row]))
        first = next(row for row in by_length if self.images[row] >= 0)
        others = [row for row in by_length if self.images[row] != self.images[first]]
        second = next((row for row in others if self.images[row] >= 0), others[0] if others else first)
        return [{"input_ids": self.input_ids[row], "labels": self.labels[row], "image_row": self.images[row]} for row in (first, second)]


def rows_to_train(
    encoded: EncodedRows, verdicts: Verdicts | None, short_rows: bool, only_short: EncodedRows | None = None, passes: int = 1
) -> TrainingRows:
    """The encoded rows, and after them each marked row once more, cut after its deciding token, which only is supervised.

    Args:
        verdicts: of ``encoded`` and of ``only_short``, in this order.
        passes: how often each short row comes.
        only_short: rows that come in their short form and in no other.
    """
    both = encoded if only_short is None else joined(encoded, only_short)
    number_of = [number if row.images else -1 for number, row in enumerate(both.rows)]
    made = TrainingRows([*encoded.input_ids], [*encoded.labels], [], number_of[: len(encoded.input_ids)])
    if verdicts is None:
        return made
    made.verdicts.extend([0] * len(ids) for ids in encoded.input_ids)
    for row, place in enumerate(verdicts.places):
        if place is None:
            continue
        whole = row < len(encoded.input_ids)
        if whole:
            made.verdicts[row][place] = 1
        if short_rows or not whole:
            made.input_ids.extend([both.input_ids[row][: place + 1]] * passes)
            made.labels.extend([[IGNORE] * place + both.input_ids[row][place : place + 1]] * passes)
            made.verdicts.extend([[0] * place + [1]] * passes)
            made.images.extend([number_of[row]] * passes)
    return made


def joined(first: EncodedRows, second: EncodedRows) -> EncodedRows:
    """The kept rows of both, the first one's first."""
    return EncodedRows(
        [*first.input_ids, *second.input_ids],
        [*first.labels, *second.labels],
        {},
        [*first.rows, *second.rows],
        [*first.marked, *second.marked],
    )


def tokens_before_reply(labels: list[int]) -> int:
    """How many tokens stand before the last run of supervised ones: about as many as the row's prompt has."""
    end = max((place for place, label in enumerate(labels) if label != IGNORE), default=-1)
    while end >= 0 and labels[end] != IGNORE:
        end -= 1
    return end + 1


def refuse_useless(encoded: EncodedRows, total: int, max_dropped: float, cut: EncodedRows | None = None) -> None:
    """Raises InputError where too many rows fell out, or the supervised share is 0 % or 100 %.

    Args:
        total: rows that were given, those of ``cut`` among them.
        cut: rows that come in their short form only.
    """
    fell_out: dict[str, list[str]] = {}
    for rows in filter(None, (encoded, cut)):
        for reason, ids in rows.dropped.items():
            fell_out[reason] = fell_out.get(reason, []) + ids
    dropped = sum(map(len, fell_out.values()))
    if not encoded.input_ids or dropped > max_dropped * total:
        reason, ids = max(fell_out.items(), key=lambda item: len(item[1]), default=("no rows", []))
        others = len(fell_out) - 1
        raise InputError(
            f"{dropped} of {total} rows cannot be trained on; most: {reason} ({len(ids)}, such as row {ids[0] if ids else '-'})",
            f"max_dropped tolerates {max_dropped:.0%}" + (f"; {others} further reasons" if others > 0 else ""),
            "correct the rows or the template, raise max_length, or raise max_dropped",
        )
    share = encoded.supervised_tokens / encoded.tokens
    if share in (0.0, 1.0):
        raise InputError(
            f"{share:.0%} of the tokens would be supervised",
            "without supervised tokens nothing is learned" if share == 0 else "prompts would be learnt too: no row has a prompt",
            "every row needs a user message and an assistant reply",
        )
