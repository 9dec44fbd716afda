"""What a recipe of ``data build`` and ``data index`` may say. Torch-free, like everything that ``--help`` reads."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from safework_cli.core.errors import InputError, nearest
from safework_cli.core.paths import user_path
from safework_cli.data.row import Task
from safework_cli.core.settings import Settings, StageConfig
from safework_cli.data.suites import SUITES, TRAINING_SETS

Format = Literal["csv", "jsonl", "json", "parquet"]
TARGETS = ("id", "prompt", "reply", "system", "messages", "images", "answer", "task", "category", "harmful", "licence")
"""Row fields that a column or a constant may fill; ``meta.ANYTHING`` as well."""
OTHER_WORDS = {
    "response": "reply", "completion": "reply", "output": "reply", "target": "reply", "chosen": "reply",
    "instruction": "prompt", "question": "prompt", "query": "prompt", "input": "prompt", "text": "prompt",
    "conversations": "messages", "conversation": "messages", "chat": "messages", "dialog": "messages", "dialogue": "messages",
    "gold": "answer", "ground_truth": "answer", "solution": "answer", "label": "meta.label", "image": "images", "license": "licence",
    "choices": "meta.choices", "options": "meta.choices", "language": "meta.language", "split": "subset",
}  # fmt: skip
"""What other tools call the fields of a row."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def expand(path: str) -> str:
    """Fills in ``~`` and environment variables. Raises InputError that names an unset or empty one."""
    for plain, braced in _VARIABLE.findall(path):
        name = plain or braced
        if not os.environ.get(name):
            state, why = "empty" if name in os.environ else "not set", "a path with a hole in it would point somewhere else"
            raise InputError(f"{path}: the environment variable {name} is {state}", why, f"export {name}=/path/to/folder")
    return str(user_path(os.path.expandvars(path)))


def matching_files(pattern: str) -> list[Path]:
    """The files that a path or a glob names, in name order. Raises InputError where there are none, or a variable is unset."""
    expanded = expand(pattern)
    path = Path(expanded)
    if path.exists():  # before the glob: a real name may hold brackets
        if not path.is_file():
            raise InputError(f"{path} is a folder, not a file", "", f"name its files: {path}/*.jsonl")
        return [path]
    if not any(mark in expanded for mark in "*?["):
        near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise InputError(f"there is no file {path}{near}", "" if path.parent.is_dir() else f"there is no folder {path.parent} either")
    root = Path(path.anchor) if path.is_absolute() else Path()
    found = sorted(p for p in root.glob(str(path.relative_to(root) if path.is_absolute() else path)) if p.is_file())
    if not found:
        raise InputError(f"no file matches {expanded}", "", f"ls {path.parent}")
    return [user_path(path) for path in found]


def _checked_name(value: str | None) -> str | None:
    if value is not None and not _NAME.fullmatch(value):
        raise ValueError(f"'{value[:60]}' is not a name: up to 128 letters, digits, '_', '-' and '.', a letter or digit first")
    return value


_Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_Number = Annotated[float, Field(ge=-1e300, le=1e300)]
SubsetName = Annotated[str, AfterValidator(_checked_name)]
"""A subset's name, which is a folder's as well."""


class StarterSource(Settings):
    """The starter set that ships with the toolkit: small, written for it, split already."""

    kind: Literal["starter"]
    """The word `starter`."""


class TableSource(Settings):
    """What file and hub sources share: which columns become which fields of a row."""

    name: str | None = None
    """The source's name in rows and in the data card; default: the file's or the repository's name."""
    subset: str
    """The subset that the rows go to: cot, rl, verifier, heldout, or a name of yours."""
    task: Task | None = None
    """The ladder's task of every row, where no column says it: safety, value, knowledge, general or search."""
    columns: dict[str, str | list[str]]
    """Row field → column. Fields: id, prompt, reply, system, messages, images, answer, task, category, harmful, licence, meta.ANYTHING.
    A list of columns gives a list (for images, meta.choices and meta.aliases). Images are paths below the table's folder, or the
    hub's own; where a prompt holds no <image> tags they are put before it."""
    constants: dict[str, str | bool | _Whole | _Number] = Field(default_factory=dict)
    """Row field → a value that every row gets."""
    extract: dict[str, str] = Field(default_factory=dict)
    """Row field → regular expression with one group: the field becomes the group's last match, such as `#### (.+)` for GSM8K's answer.
    A row without a match is dropped and counted."""
    licence: str = "unknown"
    """Terms of the source, as an SPDX identifier where there is one; goes into every row and into the data card."""
    limit: int | None = Field(default=None, ge=1, le=10**9)
    """How many rows are read, from the first; default all."""

    @field_validator("name", "subset")
    @classmethod
    def _names(cls, value: str | None) -> str | None:
        return _checked_name(value)

    @field_validator("columns", "constants", "extract")
    @classmethod
    def _targets(cls, value: dict[str, Any]) -> dict[str, Any]:
        for target in value:
            if target not in TARGETS and not re.fullmatch(r"meta\.\w+", target):
                meant = OTHER_WORDS.get(target.lower())
                hint = f"; did you mean '{meant}'? Row fields stand on the left: {meant}: {target}" if meant else nearest(target, TARGETS)
                raise ValueError(f"'{target}' is not a field of a row{hint} (fields: {', '.join(TARGETS)}, meta.ANYTHING)")
        return value

    @field_validator("extract")
    @classmethod
    def _patterns(cls, value: dict[str, str]) -> dict[str, str]:
        for target, pattern in value.items():
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise ValueError(f"extract.{target}: '{pattern}' is not a regular expression: {error}") from None
            if groups != 1:
                raise ValueError(f"extract.{target}: '{pattern}' has {groups} groups, it needs exactly one")
        return value

    @model_validator(mode="after")
    def _coherent(self) -> TableSource:
        given = {*self.columns, *self.constants}
        twice = sorted(set(self.columns) & set(self.constants))
        if twice:
            raise ValueError(f"'{twice[0]}' is both a column and a constant")
        if ("prompt" in given) == ("messages" in given):
            raise ValueError("columns must name either `prompt` or `messages`")
        if "messages" in given and given & {"reply", "system"}:
            raise ValueError("`messages` holds replies and system messages already: drop `reply` and `system`")
        if self.task is None and "task" not in given:
            raise ValueError("task must be given, here or as a column")
        lists = sorted(t for t, column in self.columns.items() if isinstance(column, list) and t != "images" and not t.startswith("meta."))
        if lists:
            raise ValueError(f"columns.{lists[0]}: a list of columns makes a list, which only images and meta.… can hold")
        unknown = sorted(set(self.extract) - given)
        if unknown:
            raise ValueError(f"extract.{unknown[0]}: no column fills '{unknown[0]}'")
        return self


class FileSource(TableSource):
    """Local files: CSV, JSON Lines, JSON or Parquet."""

    kind: Literal["file"]
    """The word `file`."""
    path: str
    """A file or a glob such as `data/*.jsonl`; `~` and environment variables (`${SAFEWORK_DATA}`) are filled in."""
    format: Format | None = None
    """csv, jsonl, json or parquet; default: what the file's suffix says."""


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
    prompts: int | None = Field(default=None, ge=1, le=10**6)
    """Prompts taken, by a hash of their ids, each with all replies to it; all where null."""
    labels: Literal["safety", "refusal"] = "safety"
    """Which verifier the rows are for: the six classes, or full refusal, partial refusal and full compliance as they were annotated."""
    test_model: str | None = None
    """A model (its table's name) whose replies are all held out, as split "test": how does a verifier judge whom it has not read?
    The prompts stand on both sides, so this source's rows are not compared with held-out ones."""
    off_topic: int = Field(default=200, ge=0, le=10**6)
    """For the six classes: how many "Illogical completion" rows to make by putting one prompt under the reply to another; 0 for none."""

    @field_validator("name")
    @classmethod
    def _names(cls, value: str) -> str | None:
        return _checked_name(value)


class SetSource(Settings):
    """A public set that may be trained on, read as its authors publish it; `safework data sets` lists them."""

    kind: Literal["set"]
    """The word `set`."""
    set: str
    """The set's name, such as `mmlu-val`."""
    subset: str
    """The subset that the rows go to: cot, rl, verifier, heldout, or a name of yours."""
    folder: str = "${SAFEWORK_DATA}"
    """The folder of public sets, one folder a set; environment variables are filled in."""
    limit: int | None = Field(default=None, ge=1, le=10**9)
    """How many rows are read, from the first; default all."""

    @field_validator("subset")
    @classmethod
    def _names(cls, value: str) -> str | None:
        return _checked_name(value)

    @field_validator("set")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in TRAINING_SETS:
            hint = "is an evaluation suite: it is kept out of training" if value in SUITES else f"is no set{nearest(value, TRAINING_SETS)}"
            raise ValueError(f"'{value}' {hint} (sets: {', '.join(sorted(TRAINING_SETS))})")
        return value


Source = Annotated[StarterSource | FileSource | HubSource | SetSource | XSTestSource, Field(discriminator="kind")]


class DecontaminateSettings(Settings):
    """Which evaluation sets the training data must not hold, and what counts as holding a prompt."""

    suites: list[str] = Field(default_factory=list)
    """Names of evaluation suites. The dataset's own held-out rows are compared as well (but see `test_model`)."""
    folder: str = "${SAFEWORK_DATA}"
    """The folder of public sets, one folder a set; read only where suites are named."""
    ngram: int = Field(default=8, ge=2, le=1000)
    """Length in words (in characters for Chinese) of the runs that are compared. A shorter prompt counts when a message equals it."""
    overlap: float = Field(default=0.5, gt=0.0, le=1.0)
    """The share of an evaluation prompt's words that must stand in a row, in runs of `ngram`, for the row to be dropped."""
    exempt: list[str] = Field(default_factory=list)
    """Names of sources that are not compared with `suites` (still with the held-out rows), such as a verifier's own data."""

    @field_validator("suites")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        for name in value:
            if name not in SUITES:
                raise ValueError(f"there is no suite '{name}'{nearest(name, SUITES)} (suites: {', '.join(sorted(SUITES))})")
        return value


class BuildConfig(StageConfig):
    """Settings of ``data build``."""

    sources: list[Source] = Field(default_factory=list)
    """Where rows come from, in order, before the datasets given as `data.NAME`; of two equal rows the earlier one stays."""
    require_thought: list[str] = Field(default_factory=lambda: ["cot"])
    """Subsets whose replies must be `<think>reasoning</think>answer`, exactly one of each."""
    require_reply: list[str] = Field(default_factory=lambda: ["cot", "verifier"])
    """Subsets whose rows must end in a reply."""
    require_label: list[str] = Field(default_factory=lambda: ["verifier"])
    """Subsets whose rows must carry a gold label (meta.label)."""
    check_replies: list[str] = Field(default_factory=lambda: ["cot"])
    """Subsets whose replies are judged by rules: a gold answer must be met, a harmful prompt refused, a harmless one answered (both told by
    phrases, where the row says which it is)."""
    languages: list[Literal["en", "zh"]] = Field(default_factory=list)
    """Languages to keep, told by the prompt's script; empty keeps all."""
    max_characters: int = Field(default=24_000, ge=1, le=10**9)
    """Longest conversation, in characters over all its messages."""
    near_duplicate_threshold: float | None = Field(default=0.8, gt=0.0, le=1.0)
    """Jaccard similarity of three-word runs from which two prompts, and their replies, count as the same; null turns the check off."""
    decontaminate: DecontaminateSettings = Field(default_factory=DecontaminateSettings)
    """What is kept out of training data."""
    heldout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of each source's groups that is held out, for sources that are not split already. Held-out rows go to the subset
    `heldout`; of subsets that require labels they stay, as their test split."""
    trust_remote_code: bool = False
    """Run Python code that the folder of `model` brings along (its tokenizer's)."""
    max_dropped: float = Field(default=0.5, ge=0.0, le=1.0)
    """Share of rows, for whatever reason they go, up to which the run counts as a success; above it the exit code is 5."""

    @model_validator(mode="after")
    def _coherent(self) -> BuildConfig:
        if [source.kind for source in self.sources].count("starter") > 1:
            raise ValueError("sources: the starter set is named twice")
        return self










