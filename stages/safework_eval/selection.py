"""From the configuration's suite blocks to the rows of each suite. Pure: no torch, no Inspect."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from safework_cli.core.errors import ConfigError, InputError, SafeworkError, nearest
from safework_cli.core.paths import user_path
from safework_cli.core.settings import Settings
from safework_cli.data.dataset import read_dataset
from safework_cli.data.image_content import image_keys
from safework_cli.data.row import Row
from safework_cli.data.suites import SUITES, load_suite
from safework_cli.data.suites.readers import in_dev_half
from safework_eval.metrics import all_metrics, checked_name, implied_metric

if TYPE_CHECKING:
    from safework_cli.core.artifacts import Artifact

ROW_DIGEST = 16
"""Characters of a row's digest."""
JUDGES = ("auto", "rule", "verifier")


def _written(value: Any) -> Any:
    """A rule with parameters as YAML may have it, {math: {time_limit_seconds: 20}}, as text."""
    if not isinstance(value, Mapping):
        return value
    from safework_cli.verifiers.rules.registry import parse_rule

    try:
        return f"rule:{parse_rule(value)}"
    except ConfigError as error:
        raise ValueError(f"{error.what} {error.why}".strip()) from None


def _judge(value: str) -> str:
    if not value.startswith("rule:"):
        if value not in JUDGES:
            raise ValueError(f"judge is {', '.join(JUDGES)} or rule:NAME{nearest(value, JUDGES)}")
        return value
    from safework_cli.verifiers.rules.registry import parse_rule

    try:
        return f"rule:{parse_rule(value)}"
    except ConfigError as error:
        raise ValueError(f"{error.what} {error.why}".strip()) from None


JudgeChoice = Annotated[str, BeforeValidator(_written), AfterValidator(_judge)]
"""Who decides: "auto", "rule", "verifier", or one rule by name: "rule:math{time_limit_seconds: 20}"."""
MetricName = Annotated[str, AfterValidator(checked_name)]
"""The name of a registered metric."""


class RowFilter(Settings):
    """Which rows belong to a suite. Every key given must hold."""

    task: Literal["safety", "value", "knowledge", "general", "search"] | None = None
    """The rows' task."""
    harmful: bool | None = None
    """true: prompts that ask for something harmful; false: benign prompts."""
    category: list[str] | None = None
    """Any of these categories."""
    language: str | None = None
    """The rows' `meta.language`, "en" or "zh"."""
    split: str | None = None
    """The rows' split."""
    source: str | None = None
    """The rows' source."""
    half: Literal["dev", "test"] | None = None
    """The half of a set that serves both choices and reports: "dev" to choose on, "test" to report; by a hash of the row's key in its set,
    which is its id without the set's name."""
    images: bool | None = None
    """false: rows without images, which a text model can answer; true: rows with images."""

    def matches(self, row: Row) -> bool:
        language = row.meta.get("language")
        return (
            (self.task is None or row.task == self.task)
            and (self.harmful is None or row.harmful == self.harmful)
            and (self.category is None or row.category in self.category)
            and (self.language is None or language == self.language)
            and (self.split is None or row.split == self.split)
            and (self.source is None or row.source == self.source)
            and (self.half is None or in_dev_half(row.id.partition("/")[2]) is (self.half == "dev"))
            and (self.images is None or bool(row.images) == self.images)
        )


class SuiteBlock(Settings):
    """One suite: rows of the `data` input, or a public set."""

    name: str = ""
    """The suite's name in the record and in gates; the public set's name where it is left out."""
    suite: str | None = None
    """A public set, read from `suites_folder` ("harmbench-test", "xstest-safe", …); left out, the rows come from the `data` input. Sets
    that ask by images (figstep, gaokao-mm-…, siuo, mssbench, mm-safetybench, mmmu, mathvista) need a model that reads them."""
    rows: RowFilter = RowFilter()
    """Which rows; all of them where nothing is said."""
    metric: MetricName | None = None
    """What is measured: the name of a registered metric. By default it follows from the rows."""
    limit: int | None = Field(None, ge=1, le=10**9)
    """Rows at most, chosen evenly by a hash of the row's id, so that a smaller limit is a part of a larger one; none: all rows."""
    judge: JudgeChoice | None = None
    """Overrides the stage's `judge` for this suite."""

    @model_validator(mode="after")
    def _check(self) -> SuiteBlock:
        if not self.name and not self.suite:
            raise ValueError("a suite block needs `name` (with rows of the data input) or `suite` (a public set)")
        if any(sign in self.title for sign in "./:"):
            raise ValueError(f"a suite's name holds none of . / : ('{self.title}')")
        return self

    @property
    def title(self) -> str:
        return self.name or str(self.suite)


@dataclass(frozen=True, slots=True)
class PlannedSuite:
    """A suite with its rows.

    Attributes:
        name: unique within the evaluation.
        metric: what is measured; see ``eval_stage`` for the definitions.
        rows: in id-hash order.
        source: where the rows came from, for people.
        judge: "auto", "rule", "verifier", or a rule by name.
    """

    name: str
    metric: str
    rows: tuple[Row, ...]
    source: str
    judge: JudgeChoice

    @property
    def digest(self) -> str:
        """sha256 over prompts, gold answers and what else judging reads: two records are alike only where it is equal."""
        return hashlib.sha256("\n".join([self.metric, *sorted(map(_as_text, self.rows))]).encode()).hexdigest()

    @property
    def row_digests(self) -> list[str]:
        """The beginning of a sha256 of each row, in order: whether the rows are a part of another suite's."""
        return [hashlib.sha256(_as_text(row).encode()).hexdigest()[:ROW_DIGEST] for row in self.rows]


def _as_text(row: Row) -> str:
    """The prompt, the gold answer and what else judging reads of a row, and its images by their content."""
    read = [row.id, row.prompt, row.answer, row.harmful, row.meta, *([image_keys(row.images)] if row.images else ())]
    return json.dumps(read, ensure_ascii=False, sort_keys=True)


def select_suites(
    blocks: Sequence[SuiteBlock], judge: JudgeChoice, data: Artifact | None, suites_folder: str | None
) -> tuple[list[PlannedSuite], list[SafeworkError]]:
    """Reads every suite's rows.

    Returns:
        The suites, and the reasons for which others cannot be run (unknown set, no rows, mixed rows, images).
    """
    suites: list[PlannedSuite] = []
    refusals: list[SafeworkError] = []
    own: list[Row] | None = None
    for block in blocks:
        try:
            metric = ""
            if block.suite is None:
                if data is None:
                    raise ConfigError(
                        f"suite '{block.title}' reads rows of the data input, and there is none", "", "add data=REFERENCE, or `suite:`"
                    )
                own = read_dataset(data) if own is None else own
                rows, source = own, data.ref
            else:
                rows, source = _public_rows(block.suite, suites_folder), block.suite
                metric = SUITES[block.suite].metric
            suites.append(_suite(block, rows, source, block.judge or judge, metric))
        except SafeworkError as error:
            refusals.append(error)
    names = [block.title for block in blocks]
    for name in sorted({name for name in names if names.count(name) > 1}):
        refusals.append(ConfigError(f"two suites are called '{name}'", "a record holds each suite once", "give each its own `name`"))
    return suites, refusals


def _public_rows(name: str, folder: str | None) -> list[Row]:
    if folder is None:
        raise ConfigError(
            f"suite '{name}' is a public set, and neither suites_folder nor $SAFEWORK_DATA is set",
            "",
            "export SAFEWORK_DATA=FOLDER (the folder that holds the sets, one folder each), or add suites_folder=FOLDER",
        )
    return load_suite(name, user_path(folder))


def _suite(block: SuiteBlock, rows: list[Row], source: str, judge: JudgeChoice, metric: str = "") -> PlannedSuite:
    chosen = [row for row in rows if block.rows.matches(row)]
    if not chosen:
        wanted = ", ".join(f"{k}={v}" for k, v in block.rows.model_dump(exclude_none=True).items()) or "any"
        tasks = ", ".join(sorted({f"{row.task}{'' if row.harmful is None else '/harmful' if row.harmful else '/benign'}" for row in rows}))
        raise InputError(
            f"suite '{block.title}' selects no rows ({wanted})", f"{source} holds {len(rows)} rows: {tasks or 'none'}", "change `rows`"
        )
    chosen.sort(key=lambda row: hashlib.sha256(row.id.encode()).hexdigest())
    chosen = chosen[: block.limit]
    doubled = len(chosen) - len({row.id for row in chosen})
    if doubled:
        raise InputError(
            f"{doubled} ids of suite '{block.title}' occur twice", "a sample is known by its row's id", "build the dataset again"
        )
    return PlannedSuite(block.title, block.metric or metric or _implied_metric(block, chosen), tuple(chosen), source, judge)


def _implied_metric(block: SuiteBlock, rows: Sequence[Row]) -> str:
    if metric := implied_metric(rows):
        return metric.name
    mixed = ", ".join(sorted({f"{row.task} with harmful={row.harmful if row.task == 'safety' else None}" for row in rows}))
    raise ConfigError(
        f"what suite '{block.title}' measures does not follow from its rows ({mixed})",
        "harmful and benign prompts are different questions, and so are the tasks",
        f"narrow `rows` (as in rows: {{harmful: true}}), or say metric: {' | '.join(metric.name for metric in all_metrics())}",
    )
