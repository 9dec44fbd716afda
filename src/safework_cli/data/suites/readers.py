"""How the records of a public set become rows. One reader, ``Columns``, serves nearly all; the rest are sets with a shape of their own."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safework_cli.core.errors import InputError, nearest
from safework_cli.data.row import Message, Row
from safework_cli.data.suites.tables import load_json, read_table

if TYPE_CHECKING:
    from safework_cli.data.suites.suite import Suite

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Record = dict[str, Any]
Taken = str | Callable[[Record], Any]
"""A column's name, or a function of the record."""

CHOICE_LINE = {"en": "Answer with the letter of the right option.", "zh": "请只回答正确选项的字母。"}


def render_choices(question: str, choices: list[str], language: str = "en") -> str:
    """A multiple-choice question as it is asked: the question, one lettered line for each option, and what to answer with."""
    options = "\n".join(f"{LETTERS[i]}. {choice}" for i, choice in enumerate(choices))
    return f"{question}\n\n{options}\n\n{CHOICE_LINE[language]}"


def stem(row: Row) -> str:
    """The question in its authors' words: without options and without the wording that a suite puts around it (``meta.stem``)."""
    return str(row.meta.get("stem") or row.question)


@dataclass(frozen=True)
class Columns:
    """Reads one table, one record a row.

    Attributes:
        prompt: the question.
        answer, aliases, category, id: what the row's field of that name is taken from.
        choices: a list of option texts; the prompt then shows them, and ``answer`` is the letter (or ``right``, its position).
        right: position of the right option, where the set gives that in place of a letter.
        answer_type: see ``meta.answer_type`` in ``data/row.py``.
        template: wording around the prompt, with ``{}`` where the prompt goes; the bare prompt stays in ``meta.stem``.
        keep: which records belong to the suite.
        meta: further keys of ``meta``.
    """

    prompt: Taken
    answer: Taken | None = None
    aliases: Taken | None = None
    category: Taken | None = None
    id: Taken | None = None
    choices: Callable[[Record], list[str]] | None = None
    right: Callable[[Record], int] | None = None
    answer_type: str | None = None
    template: str = "{}"
    keep: Callable[[Record], bool] = lambda record: True
    meta: Mapping[str, Taken] = field(default_factory=dict)

    def __call__(self, suite: Suite, path: Path) -> Iterator[Row]:
        for number, record in enumerate(read_table(path), start=1):
            try:
                if self.keep(record):
                    yield self._row(suite, number, record)
            except KeyError as error:
                name = str(error.args[0])
                raise InputError(
                    f"{path}, record {number}: no column '{name}'{nearest(name, record)}",
                    f"suite {suite.name} reads the set as {suite.upstream} publishes it; the file has: {', '.join(map(str, record))}",
                ) from None

    def _row(self, suite: Suite, number: int, record: Record) -> Row:
        bare = str(_take(self.prompt, record)).strip()
        content = self.template.format(bare)
        meta: dict[str, Any] = {"language": suite.language}
        answer = None if self.answer is None else str(_take(self.answer, record)).strip()
        if self.choices is not None:
            choices = self.choices(record)
            meta |= {"choices": choices, "answer_type": "choice"}
            content = render_choices(content, choices, suite.language)
            if self.right is not None:
                answer = LETTERS[self.right(record)]
        elif self.answer_type:
            meta["answer_type"] = self.answer_type
        if content != bare:
            meta["stem"] = bare
        if self.aliases is not None:
            meta["aliases"] = [a for a in map(str, _take(self.aliases, record)) if a != answer]
        meta |= {key: _take(taken, record) for key, taken in self.meta.items()}
        category = None if self.category is None else str(_take(self.category, record))
        # The record's own number, not a count of the kept ones: an id means the same record whatever a suite keeps.
        key = f"{number:05d}" if self.id is None else str(_take(self.id, record))
        return suite.row(key, [Message(role="user", content=content)], answer=answer, category=category, meta=meta)


def _take(taken: Taken, record: Record) -> Any:
    return record[taken] if isinstance(taken, str) else taken(record)


def shuffled(options: list[str], key: str) -> tuple[list[str], list[int]]:
    """Options in an order that depends only on ``key``, and where each one went: position ``i`` held option ``order[i]``."""
    order = sorted(range(len(options)), key=lambda i: hashlib.sha256(f"{key}\0{options[i]}".encode()).digest())
    return [options[i] for i in order], order


def evaluation_half(question: str) -> bool:
    """Whether a question belongs to the half kept for evaluation: the last bit of its sha256 is 0."""
    return hashlib.sha256(question.strip().encode()).digest()[-1] % 2 == 0


def in_dev_half(key: str) -> bool:
    """Whether a prompt belongs to the dev half of a set that serves both choices and reports: the sha256 of its key in the set (XSTest's
    id, HarmBench's BehaviorID) begins with a hex digit from 0 to 7. The other half, "test", is for reports alone."""
    return hashlib.sha256(key.encode()).hexdigest()[0] < "8"


def gsm8k_answer(record: Record) -> str:
    """The number after ``####``, without thousands separators."""
    return str(record["answer"]).rsplit("####", 1)[-1].strip().replace(",", "")


def constraints_of(record: Record) -> list[dict[str, Any]]:
    """IFEval's two parallel lists as one list of ``{"id": instruction, …its arguments}``; arguments that are null are left out."""
    pairs = zip(record["instruction_id_list"], record["kwargs"], strict=True)
    return [{"id": name, **{key: value for key, value in kwargs.items() if value is not None}} for name, kwargs in pairs]


def read_truthfulqa(suite: Suite, path: Path) -> Iterator[Row]:
    """The single-true form (MC1). The authors always print the true option first: options are put in an order fixed by the question."""
    for number, record in enumerate(read_table(path), start=1):
        question, targets = record["question"], record["mc1_targets"]
        choices, order = shuffled(list(targets), question)
        values = list(targets.values())
        right = next(position for position, original in enumerate(order) if values[original] == 1)
        meta = {"language": suite.language, "answer_type": "choice", "choices": choices, "stem": question}
        messages = [Message(role="user", content=render_choices(question, choices))]
        yield suite.row(f"{number:05d}", messages, answer=LETTERS[right], meta=meta)


def read_safetybench(suite: Suite, path: Path) -> Iterator[Row]:
    """Questions and keys are in two files, joined by id."""
    keys = load_json(path.with_name("test_answers_zh_subset.json"))
    asked = Columns(
        prompt="question",
        id="id",
        category="category",
        choices=lambda record: record["options"],
        right=lambda record: keys[str(record["id"])]["answer"],
    )
    yield from asked(suite, path)


def xquad_passages(path: Path) -> Iterator[dict[str, Any]]:
    """The paragraphs of an XQuAD file: ``id`` ("xquad-en-0001"), ``title``, ``text``, and its ``questions`` as published.

    Raises InputError where the file has another shape.
    """
    found = re.search(r"\.([a-z]{2})\.json$", path.name)
    language = found.group(1) if found else "en"
    number = 0
    try:
        for article in load_json(path)["data"]:
            for paragraph in article["paragraphs"]:
                number += 1
                yield {
                    "id": f"xquad-{language}-{number:04d}",
                    "title": article.get("title", ""),
                    "text": paragraph["context"],
                    "questions": paragraph["qas"],
                }
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not an XQuAD file", f"after paragraph {number}: {type(error).__name__} {error}") from None


def read_xquad(suite: Suite, path: Path) -> Iterator[Row]:
    """Questions about passages, to be answered by searching an index of the same file; ``meta.passages`` names where the answer stands."""
    for passage in xquad_passages(path):
        for question in passage["questions"]:
            texts = list(dict.fromkeys(answer["text"] for answer in question["answers"]))
            meta = {
                "language": suite.language,
                "answer_type": "contains",
                "aliases": texts[1:],
                "passages": [passage["id"]],
                "group": passage["id"],
            }
            messages = [Message(role="user", content=question["question"])]
            yield suite.row(question["id"], messages, answer=texts[0], category=passage["title"], meta=meta)


def read_xquad_given(suite: Suite, path: Path) -> Iterator[Row]:
    """The questions of ``read_xquad``, each under the passage that holds its answer."""
    texts = {passage["id"]: passage["text"] for passage in xquad_passages(path)}
    asked = "根据这段文字用几个词回答。" if suite.language == "zh" else "Answer from this passage, in a few words."
    for row in read_xquad(suite, path):
        (passage,) = row.meta["passages"]
        row.messages = [Message(role="user", content=f"{asked}\n\n{texts[passage]}\n\n{row.question}")]
        yield row
