"""Sources of ``data build``: what a recipe may say of each. Torch-free, like everything that ``--help`` reads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from safework_cli.core.errors import nearest
from safework_cli.core.settings import OneGroup, Settings
from safework_cli.data.row import Task
from safework_cli.data.suites import SUITES, TRAINING_SETS
from safework_data.files import Format, checked_name

TARGETS = ("id", "prompt", "reply", "system", "messages", "images", "answer", "task", "category", "harmful", "licence", "split")
"""Row fields that a column or a constant may fill; ``meta.ANYTHING`` as well."""
OTHER_WORDS = {
    "response": "reply", "completion": "reply", "output": "reply", "target": "reply", "chosen": "reply",
    "instruction": "prompt", "question": "prompt", "query": "prompt", "input": "prompt", "text": "prompt",
    "conversations": "messages", "conversation": "messages", "chat": "messages", "dialog": "messages", "dialogue": "messages",
    "gold": "answer", "ground_truth": "answer", "solution": "answer", "label": "meta.label", "image": "images", "license": "licence",
    "choices": "meta.choices", "options": "meta.choices", "language": "meta.language",
}  # fmt: skip
"""What other tools call the fields of a row."""

_Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_Number = Annotated[float, Field(ge=-1e300, le=1e300)]


DRAWN_KINDS = (
    "count", "count-colour", "colour", "shape", "exists", "left", "above", "more",
    "chart-value", "chart-highest", "chart-lowest", "chart-difference",
)  # fmt: skip
"""Kinds of questions about drawings; ``safework_data.drawn`` has what makes them, and loads Pillow."""


class StarterSource(Settings):
    """The starter set that ships with the toolkit: small, written for it, split already."""

    kind: Literal["starter"]
    """The word `starter`."""
    tasks: list[Task] = Field(default_factory=list)
    """Only rows of these tasks, and of `categories`; all where both are empty."""
    categories: list[str] = Field(default_factory=list)
    """Rows of these categories too, such as `instruction` of the task general: the category column of the rows has them."""


class DrawnSource(Settings):
    """Images that are drawn here: shapes and charts with exact answers, and requests as text in an image; split already."""

    kind: Literal["drawn"]
    """The word `drawn`."""
    size: int = Field(default=224, ge=64, le=1024)
    """Width and height of an image in pixels. Below 160 no text is typeset: it would not be legible."""
    questions: int = Field(default=2400, ge=12, le=10**6)
    """Worked questions about drawings in `cot`, of all kinds in equal parts. `rl` has a quarter as many, `dev` 20 of each kind."""
    kinds: list[str] = Field(default_factory=list)
    """Kinds of questions: count, count-colour, colour, shape, exists, left, above, more, chart-value, chart-highest, chart-lowest,
    chart-difference; all twelve where empty."""
    heldout: int = Field(default=40, ge=1, le=1000)
    """Questions of each kind in `heldout`."""
    typeset: bool = True
    """Requests as text in an image too: harmful ones and their harmless look-alikes, with the held-out ones blurred in the subset
    `blurred` as a control."""

    @field_validator("kinds")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        for kind in value:
            if kind not in DRAWN_KINDS:
                raise ValueError(f"'{kind}' is not a kind of question{nearest(kind, DRAWN_KINDS)} (kinds: {', '.join(DRAWN_KINDS)})")
        if len(set(value)) < len(value):
            raise ValueError("a kind is named twice")
        return value


def mapping_line(columns: Mapping[str, Any]) -> str:
    """A mapping as YAML writes it in one line."""
    return "{" + ", ".join(f"{target}: {plain_word(column)}" for target, column in columns.items()) + "}"


def plain_word(value: Any) -> str:
    """A value as it is written inside such a line: a list of names, a name in quotes where it needs them."""
    if isinstance(value, list):
        return "[" + ", ".join(map(plain_word, value)) + "]"
    return value if isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w.]*", value) else json.dumps(value, ensure_ascii=False)


def _is_target(name: Any) -> bool:
    return name in TARGETS or bool(re.fullmatch(r"meta\.\w+", str(name)))


def _meant(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """A mapping whose left-hand names are not all fields of a row, as it is written here: turned around where the fields are on the right,
    else with the names of other tools replaced. None where that gives no mapping."""
    pairs = [(OTHER_WORDS.get(target.lower(), target), column) for target, column in given.items()]
    if all(isinstance(column, str) and _is_target(column) and (field == column or not _is_target(field)) for field, column in pairs):
        pairs = [(column, target) for target, column in given.items()]
    fields = [field for field, _ in pairs]
    return dict(pairs) if all(map(_is_target, fields)) and len(set(fields)) == len(fields) else None


SLOTS = ("prompt", "answer", "category")
"""What a reply template may name."""


class OfRows(Settings):
    """What sources share that are read row by row: which rows, and replies where they have none or one that states a decision."""

    skip: int = Field(default=0, ge=0, le=10**9)
    """How many rows to leave out at the beginning, such as those that another source of the recipe takes."""
    limit: int | None = Field(default=None, ge=1, le=10**9)
    """How many rows are read after those; default all."""
    reply_template: str | None = None
    """A reply for every row, where the source has prompts only: `<think>Is this harmful: {prompt} Yes.</think>I can't help with
    that.` {prompt} is what is asked (meta.target, else the question as its authors wrote it); {answer} and {category} are the row's. A row
    that lacks what is named is dropped and counted."""
    verdict: OneGroup | None = None
    """Regular expression with one group that finds, in the last reply, the word that states the decision ("Yes", "No"): `meta.verdict`
    becomes its place, for `verdict` of `safework sft`. Replies stay as they are; rows without a match get no mark and are counted."""

    @field_validator("reply_template")
    @classmethod
    def _slots(cls, value: str | None) -> str | None:
        for name in re.findall(r"\{(\w+)\}", value or ""):
            if name not in SLOTS:
                raise ValueError(f"'{{{name}}}' is not filled{nearest(name, SLOTS)} (filled: {', '.join(SLOTS)})")
        return value

    @property
    def end(self) -> int | None:
        """The number of the last row that is read; None for the end of the source."""
        return None if self.limit is None else self.skip + self.limit


class TableSource(OfRows):
    """What file and hub sources share: which columns become which fields of a row."""

    finds_columns: ClassVar[bool] = False
    """Whether columns that are not given are found by their names."""

    name: str | None = None
    """The source's name in rows and in the data card; default: the file's or the repository's name."""
    subset: str
    """The subset that the rows go to: cot, rl, verifier, heldout, or a name of yours."""
    task: Task | None = None
    """The ladder's task of every row, where no column says it: safety, value, knowledge, general or search."""
    columns: dict[str, str | list[str]]
    """Row field → column. Fields: id, prompt, reply, system, messages, images, answer, task, category, harmful, licence, split,
    meta.ANYTHING. A list of columns gives a list (for images, meta.choices and meta.aliases). Images are paths below the table's
    folder, or the hub's own; where a prompt holds no <image> tags they are put before it. A split is train or test (or validation, dev
    and the like, which are held out)."""
    constants: dict[str, str | bool | _Whole | _Number] = Field(default_factory=dict)
    """Row field → a value that every row gets."""
    extract: dict[str, OneGroup] = Field(default_factory=dict)
    """Row field → regular expression with one group: the field becomes the group's last match, such as `#### (.+)` for GSM8K's answer.
    A row without a match is dropped and counted."""
    answers_from: int | None = Field(default=None, ge=0, le=1)
    """From which number answers count the choices (`meta.choices`) where they are numbers: 0 or 1. Without it integers are counted from 0,
    and a source whose answers do not look so is refused; with it numbers that are text ("2", as CSV has them) are places as well."""
    licence: str = "unknown"
    """Terms of the source, as an SPDX identifier where there is one; goes into every row and into the data card."""

    @field_validator("name", "subset")
    @classmethod
    def _names(cls, value: str | None) -> str | None:
        return checked_name(value)

    @field_validator("columns", "constants", "extract")
    @classmethod
    def _targets(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        for target in value:
            if not _is_target(target):
                meant = _meant(value)
                hint = f"; write {info.field_name}: {mapping_line(meant)}" if meant else nearest(target, TARGETS)
                fields = f"fields, which are on the left: {', '.join(TARGETS)}, meta.ANYTHING"
                raise ValueError(f"'{target}' is not a field of a row{hint} ({fields})")
        return value

    @model_validator(mode="after")
    def _coherent(self) -> TableSource:
        if not self.columns and self.finds_columns:
            return self
        given = {*self.columns, *self.constants}
        twice = sorted(set(self.columns) & set(self.constants))
        if twice:
            raise ValueError(f"'{twice[0]}' is both a column and a constant")
        if ("prompt" in given) == ("messages" in given):
            raise ValueError("columns must name either `prompt` or `messages`")
        if "messages" in given and given & {"reply", "system"}:
            raise ValueError("`messages` holds replies and system messages already: drop `reply` and `system`")
        if "reply" in given and self.reply_template is not None:
            raise ValueError("reply_template is given, and a column or constant fills `reply` already")
        if self.task is None and "task" not in given:
            raise ValueError("task must be given, here or as a column")
        if self.answers_from is not None and not {"answer", "meta.choices"} <= given:
            raise ValueError("answers_from is given, and no columns fill both `answer` and `meta.choices`")
        lists = sorted(t for t, column in self.columns.items() if isinstance(column, list) and t != "images" and not t.startswith("meta."))
        if lists:
            raise ValueError(f"columns.{lists[0]}: a list of columns makes a list, which only images and meta.… can hold")
        unknown = sorted(set(self.extract) - given)
        if unknown:
            raise ValueError(f"extract.{unknown[0]}: no column fills '{unknown[0]}'")
        return self


class FileSource(TableSource):
    """Local files: CSV, JSON Lines, JSON or Parquet."""

    finds_columns = True

    kind: Literal["file"]
    """The word `file`."""
    path: str
    """A file or a glob such as `data/*.jsonl`; `~` and environment variables (`${SAFEWORK_DATA}`) are filled in."""
    format: Format | None = None
    """csv, jsonl, json or parquet; default: what the file's suffix says."""
    subset: str = "default"
    """The subset that the rows go to: cot, rl, verifier, heldout, or a name of yours."""
    task: Task | None = None
    """The ladder's task of every row, where no column says it: safety, value, knowledge, general or search. Without `columns` the
    default is general."""
    columns: dict[str, str | list[str]] = Field(default_factory=dict)
    """Row field → column, as for a hub dataset. Without it, columns are found by the usual names (prompt, instruction, question; response,
    reply, completion, output; messages, conversations; system, images, split, …), and rows of `safework data schema` are read as they
    are."""


class HubSource(TableSource):
    """A dataset of the Hugging Face hub. Code that a dataset ships is never run."""

    kind: Literal["hub"]
    """The word `hub`."""
    id: str
    """The dataset's id, such as `openai/gsm8k`."""
    revision: str | None = None
    """Commit, tag or branch; without it the newest commit is taken, and the manifest names it."""
    config: str | None = None
    """The dataset's configuration (its subset), where it has several."""
    split: str = "train"
    """The split to read; slices such as `train[:1000]` work."""


class XSTestSource(Settings):
    """Real replies to XSTest prompts with their annotations, as examples for the six-class safety verifier."""

    kind: Literal["xstest-completions"]
    """The words `xstest-completions`."""
    name: str = "xstest"
    """The source's name in rows and in the data card."""
    folder: str
    """The folder of completion tables, one CSV a model; environment variables are filled in."""
    subset: str = "verifier"
    """The subset that the rows go to: verifier, or judge for an independent judge."""
    halves: Literal["ignored", "dev", "split"] = "ignored"
    """Prompts are of the dev half where the sha256 of their id begins with a hex digit from 0 to 7, else of the test half. "dev" leaves the
    test half out; "split" makes it rows of split "test", to measure on."""
    skip: int = Field(default=0, ge=0, le=10**6)
    """Prompts of the dev half to leave out, by a hash of their ids: those that another source of the recipe takes."""
    prompts: int | None = Field(default=None, ge=1, le=10**6)
    """Prompts taken after those, by a hash of their ids, each with all replies to it, and as many of the test half; all where null."""
    labels: Literal["safety", "refusal"] = "safety"
    """Which verifier the rows are for: the six classes, or full refusal, partial refusal and full compliance as they were annotated."""
    test_model: str | None = None
    """A model (its table's name) whose replies are all held out, as split "test": how does a verifier judge a model that it was not
    trained on? The prompts stand on both sides, so this source's rows are not compared with held-out ones."""
    off_topic: int = Field(default=200, ge=0, le=10**6)
    """For the six classes: how many "Illogical completion" rows to make by putting one prompt under the reply to another; 0 for none."""

    @field_validator("name", "subset")
    @classmethod
    def _names(cls, value: str) -> str | None:
        return checked_name(value)

    @model_validator(mode="after")
    def _possible(self) -> XSTestSource:
        if self.halves != "ignored" and self.test_model is not None:
            raise ValueError("halves and test_model exclude each other: both say which rows are held out")
        return self


class SetSource(OfRows):
    """A public set that may be trained on, read as its authors publish it; `safework data sets` lists them."""

    kind: Literal["set"]
    """The word `set`."""
    set: str
    """The set's name, such as `mmlu-val`."""
    name: str | None = None
    """The source's name in rows and in the data card, where a recipe reads one set twice; default: the set's name."""
    subset: str
    """The subset that the rows go to: cot, rl, verifier, heldout, or a name of yours."""
    folder: str = "${SAFEWORK_DATA}"
    """The folder of public sets, one folder a set; environment variables are filled in."""

    @field_validator("name", "subset")
    @classmethod
    def _names(cls, value: str | None) -> str | None:
        return checked_name(value)

    @field_validator("set")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in TRAINING_SETS:
            hint = (
                "is an evaluation suite: it is kept out of training" if value in SUITES else f"is not a set{nearest(value, TRAINING_SETS)}"
            )
            raise ValueError(f"'{value}' {hint} (sets: {', '.join(sorted(TRAINING_SETS))})")
        return value


Source = Annotated[StarterSource | DrawnSource | FileSource | HubSource | SetSource | XSTestSource, Field(discriminator="kind")]
