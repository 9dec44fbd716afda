"""Records of the evidence: what a run of ``evidence.py`` keeps in ``benchmarks/evidence/RUN-seedN.json``.

A record holds every reply's outcome (a character each), so that changes are paired by row, and pooled over seeds, with the intervals of
``safework eval`` (evidence_pooled.py).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

if TYPE_CHECKING:
    from safework_cli.core.artifacts import Artifact

FOLDER = Path(__file__).parent / "evidence"
SAFETY, CAPABILITY = ("safety", "over_refusal", "value"), ("knowledge", "general", "instruction")
"""The metrics of the two axes, as ``safework eval`` defines them."""
CURVE = "eval/"
"""The prefix of numbers on held-out prompts in ``metrics.jsonl``."""
JUDGED = "_judged"
"""What follows a metric's name where a judge decided it, and not the phrases."""
STRICT = "prompt_strict"
"""IFEval's prompt-level strict accuracy: all instructions of a prompt are kept."""

Outcomes = str | list[float | None]
"""One character a row ("0", "1", "-" where it could not be scored), or numbers where a metric has values between 0 and 1."""


class EvidenceError(Exception):
    """A record that cannot be read, or records that do not belong together."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Figure(Strict):
    """A value, or a change, with its 95 % interval and the number of rows."""

    value: float | None
    n: int = Field(ge=0)
    interval: list[float] | None = Field(None, min_length=2, max_length=2)


class Suite(Strict):
    """The rows of a suite.

    Attributes:
        digest: of the rows.
        groups: the number of each row's group; rows of several suites can have one group, so numbers are those of the whole record.
            Empty where no row shares its group with another row of the record.
        majority: the share of rows with the most frequent gold answer; None where rows have no answer.
    """

    metric: str
    better: Literal["higher", "lower"]
    n: int = Field(ge=1)
    digest: str
    groups: list[int]
    majority: float | None = None


class Evaluation(Strict):
    """One model's evaluation.

    Attributes:
        ref, digest: of the evaluation; ``model_ref``, ``model_digest`` of what was evaluated.
        against: key of the evaluation that it was compared with.
        tokens: mean length of a reply.
        values, changes: suite → metric → figure, from ``summary.json``.
        axes: safety and capability → change against the base.
        outcomes: suite → metric → outcome of each row, in the order of the suite's rows; a part of them where fewer were asked.
        independence: whether a stage was trained against the judge of safety, as the evaluation says; None where it had no such judge.
        judges: SUITE.METRIC → digest of the judge that decided it; records that were written before this was kept have none.
        lengths: suite → tokens of each reply, in the order of the suite's rows; as for judges.
    """

    ref: str
    digest: str
    model_ref: str
    model_digest: str
    against: str | None
    conditions: dict[str, Any]
    tokens: Figure
    values: dict[str, dict[str, Figure]]
    changes: dict[str, dict[str, Figure]]
    axes: dict[str, Figure]
    outcomes: dict[str, dict[str, Outcomes]]
    independence: dict[str, Any] | None = None
    judges: dict[str, str] = Field(default_factory=dict)
    lengths: dict[str, list[int]] = Field(default_factory=dict)


class Step(Strict):
    """A command that was run: what it printed, and the seconds that it took when it was run for the first time."""

    name: str
    command: list[str]
    ref: str
    digest: str
    seconds: float = Field(ge=0)
    commit: str | None
    metrics: dict[str, Any]


class Point(Strict):
    """Numbers of a training on held-out prompts at one step; step 0 is the starting model."""

    step: int = Field(ge=0)
    values: dict[str, float]


class Record(Strict):
    """A run with one seed.

    Attributes:
        uncommitted: files that git tracks differed from the commit.
        final: the model that the bars are about.
        curves: step → its learning curve, of trainings that evaluate on held-out prompts.
    """

    record_version: Literal[1]
    run: str
    seed: int = Field(ge=0)
    command: str
    commit: str
    uncommitted: bool
    machine: str
    final: str
    steps: list[Step]
    suites: dict[str, Suite]
    evaluations: dict[str, Evaluation]
    measures: dict[str, Any]
    curves: dict[str, list[Point]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _whole(self) -> Record:
        for key, evaluation in self.evaluations.items():
            if evaluation.against is not None and evaluation.against not in self.evaluations:
                raise ValueError(f"{key} is compared with {evaluation.against}, which is not in the record")
            for suite, metrics in evaluation.outcomes.items():
                rows = self.suites[suite].n if suite in self.suites else 0
                for metric, outcomes in metrics.items():
                    if len(outcomes) > rows:
                        raise ValueError(f"{key}: {suite}.{metric} has {len(outcomes)} outcomes, and the suite has {rows} rows")
                    stated = evaluation.values.get(suite, {}).get(metric)
                    known = [value for value in numbers(outcomes) if value is not None]
                    if stated is not None and stated.value is not None and (stated.n != len(known) or not _near(stated.value, known)):
                        raise ValueError(f"{key}: {suite}.{metric} is not the mean of its outcomes")
            replies = [tokens for of_suite in evaluation.lengths.values() for tokens in of_suite]
            if replies and evaluation.tokens.value is not None and not _near(evaluation.tokens.value, replies):
                raise ValueError(f"{key}: the mean length of its replies is not {evaluation.tokens.value}")
        for name, suite_rows in self.suites.items():
            if suite_rows.groups and len(suite_rows.groups) != suite_rows.n:
                raise ValueError(f"suite {name} has {suite_rows.n} rows and {len(suite_rows.groups)} groups")
        return self


def _near(value: float, outcomes: Sequence[float]) -> bool:
    return abs(value - math.fsum(outcomes) / max(len(outcomes), 1)) <= 1e-3


def machines(records: Sequence[Record]) -> str:
    """What the records were made on, and in which type their evaluations multiplied."""
    found = []
    for record in records:
        engines = {str(evaluation.conditions.get("engine", "")).rpartition("/")[2] for evaluation in record.evaluations.values()}
        found.append(", ".join([record.machine, *sorted(engines - {""})]))
    return "; ".join(dict.fromkeys(found))


# ---------------------------------------------------------------- files


def path_of(run: str, seed: int, folder: Path = FOLDER) -> Path:
    return folder / f"{run}-seed{seed}.json"


def read_records(folder: Path = FOLDER) -> dict[str, list[Record]]:
    """Run → its records, by seed.

    Raises:
        EvidenceError: a file is not a record, or its name is not that of its run and seed.
    """
    found: dict[str, list[Record]] = {}
    for file in sorted(folder.glob("*.json")):
        try:
            record = Record.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise EvidenceError(f"{file.name} is not a record: {error}") from None
        if file.name != path_of(record.run, record.seed).name:
            raise EvidenceError(f"{file.name} holds the record of {record.run} with seed {record.seed}")
        found.setdefault(record.run, []).append(record)
    return {run: sorted(records, key=lambda record: record.seed) for run, records in found.items()}


def write_record(record: Record, folder: Path = FOLDER) -> Path:
    """Writes a record; the same record gives the same bytes."""
    folder.mkdir(exist_ok=True)
    file = path_of(record.run, record.seed, folder)
    file.write_text(json.dumps(record.model_dump(mode="json"), ensure_ascii=False, allow_nan=False, indent=1) + "\n", encoding="utf-8")
    return file


# ---------------------------------------------------------------- from evaluation artifacts


def evaluations_of(artifacts: Mapping[str, Artifact]) -> tuple[dict[str, Suite], dict[str, Evaluation]]:
    """The suites and the evaluations of a record.

    Args:
        artifacts: key → evaluation artifact.

    Raises:
        EvidenceError: two evaluations asked other rows under the same name of a suite, so that neither is a part of the other.
    """
    from safework_eval.samples import read_samples

    summaries = {key: json.loads((artifact.path / "summary.json").read_text(encoding="utf-8")) for key, artifact in artifacts.items()}
    samples = {key: read_samples(artifact.path / "samples.parquet") for key, artifact in artifacts.items()}
    keys = {artifact.ref: key for key, artifact in artifacts.items()}
    rows: dict[str, list[str]] = {}
    groups: dict[str, list[str]] = {}
    described: dict[str, Mapping[str, Any]] = {}
    for key, summary in summaries.items():
        for name, record in summary["suites"].items():
            digests = record["row_digests"]
            longer, shorter = sorted((digests, rows.get(name, [])), key=len, reverse=True)
            if longer[: len(shorter)] != shorter:
                raise EvidenceError(f"suite {name} has other rows in {artifacts[key].ref} than in another evaluation of this run")
            if len(digests) > len(rows.get(name, [])):
                rows[name], described[name] = digests, record
                groups[name] = [sample["group"] for sample in samples[key] if sample["suite"] == name]
    numbered = group_numbers(groups)
    suites = {
        name: Suite(
            metric=record["metric"],
            better=record["better"],
            n=len(rows[name]),
            digest=hashlib.sha256("\n".join(rows[name]).encode()).hexdigest(),
            groups=numbered[name],
            majority=(record.get("majority") or {}).get("share"),
        )
        for name, record in described.items()
    }
    made = {}
    for key, summary in summaries.items():
        against = summary.get("against") or {}
        compared = keys.get(str(against.get("ref", "")).partition(":")[0]) if against else None
        against = against if compared else {}  # compared with one that another record holds
        made[key] = Evaluation(
            ref=artifacts[key].ref,
            digest=artifacts[key].digest,
            model_ref=summary["model"]["ref"],
            model_digest=summary["model"]["digest"],
            against=compared,
            conditions={name: summary["conditions"][name] for name in ("max_tokens", "temperature", "engine", "template_hash")},
            tokens=_figure(summary["length"]),
            values={name: _values(record) for name, record in summary["suites"].items()},
            changes={name: _changes(record, summary["suites"][name]["metric"]) for name, record in against.get("suites", {}).items()},
            axes={axis: _figure(change, "change") for axis, change in against.get("axes", {}).items()},
            outcomes=_outcomes(samples[key], summary["suites"]),
            independence=summary.get("independence"),
            judges=_judges(summary["suites"]),
            lengths={name: [sample["tokens"] for sample in samples[key] if sample["suite"] == name] for name in summary["suites"]},
        )
    return suites, made


def curve_of(artifact: Artifact) -> list[Point]:
    """The evaluations of a training on held-out prompts, from the numbers that its artifact keeps; empty where it made none."""
    from safework_cli.core.progress import METRICS, read_metrics

    file = artifact.path / "safework" / METRICS
    if artifact.kind != "model" or not file.is_file():
        return []
    found = [
        (record["step"], {key.removeprefix(CURVE): float(value) for key, value in record.items() if key.startswith(CURVE)})
        for record in read_metrics(file)
    ]
    return [Point(step=step, values=values) for step, values in found if values]


def _figure(record: Mapping[str, Any], key: str = "value") -> Figure:
    value, interval = record.get(key), record.get("interval")
    return Figure(
        value=None if value is None else float(value),
        n=int(record.get("n") or 0),
        interval=None if interval is None else [float(end) for end in interval],
    )


def _values(record: Mapping[str, Any]) -> dict[str, Figure]:
    """The figures of a suite: its own metric, further metrics on the same replies, the measures of search episodes, IFEval's numbers."""
    values = {record["metric"]: _figure(record)}
    values |= {metric: _figure(other) for metric, other in (record.get("also") or {}).items()}
    values |= {f"search_{measure}": _figure(other) for measure, other in (record.get("search") or {}).items()}
    if ifeval := record.get("ifeval"):
        values[STRICT] = Figure(value=float(ifeval["prompt_level_strict_accuracy"]), n=int(record["rows"]), interval=None)
    values["tokens"] = _figure(record["length"])
    return values


def _changes(record: Mapping[str, Any], metric: str) -> dict[str, Figure]:
    changes = {metric: _figure(record, "change")}
    changes |= {other: _figure(change, "change") for other, change in (record.get("also") or {}).items()}
    return changes | {f"search_{measure}": _figure(change, "change") for measure, change in (record.get("search") or {}).items()}


def _judges(suites: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    decided = {f"{name}.{record['metric']}": record["judge"] for name, record in suites.items()}
    decided |= {
        f"{name}.{metric}": other["judge"] for name, record in suites.items() for metric, other in (record.get("also") or {}).items()
    }
    return {key: judge["digest"] for key, judge in decided.items()}


def _outcomes(samples: Sequence[Mapping[str, Any]], suites: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Outcomes]]:
    found: dict[str, dict[str, Outcomes]] = {}
    for name, record in suites.items():
        own = [sample for sample in samples if sample["suite"] == name]
        columns = {record["metric"]: [sample["outcome"] for sample in own]}
        if record.get("ifeval"):
            columns[STRICT] = [float(sample["outcome"] == 1) for sample in own]
        for metric in record.get("also") or {}:
            columns[metric] = [{each["metric"]: each["outcome"] for each in sample["also"]}.get(metric) for sample in own]
        found[name] = {metric: packed(values) for metric, values in columns.items()}
    return found


def packed(values: Sequence[float | None]) -> Outcomes:
    """Outcomes as they are kept: a text where they are only 0 and 1."""
    if all(value in (0, 1, None) for value in values):
        return "".join("-" if value is None else str(int(value)) for value in values)
    return [None if value is None else round(float(value), 4) for value in values]


def numbers(outcomes: Outcomes) -> list[float | None]:
    """The inverse of ``packed``. Raises ValueError for any other character."""
    if isinstance(outcomes, list):
        return outcomes
    if unknown := set(outcomes) - set("01-"):
        raise ValueError(f"{sorted(unknown)[0]!r} is not an outcome")
    return [None if sign == "-" else float(sign) for sign in outcomes]


def group_numbers(groups: Mapping[str, Sequence[str]]) -> dict[str, list[int]]:
    """Suite → number of each row's group over all suites; none for a suite that shares no group, within itself or with another one."""
    order: dict[str, int] = {}
    numbered = {suite: [order.setdefault(group, len(order)) for group in names] for suite, names in groups.items()}
    counts = Counter(number for of_suite in numbered.values() for number in of_suite)
    return {suite: of_suite if any(counts[number] > 1 for number in of_suite) else [] for suite, of_suite in numbered.items()}
