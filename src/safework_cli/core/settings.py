"""Base classes and field types of every configuration."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator


def cosmetic(default: Any = ..., **kwargs: Any) -> Any:
    """A setting that cannot change the result (display, launch, logging): it stays out of the fingerprint."""
    return Field(default, json_schema_extra={"cosmetic": True}, **kwargs)


def verdict(default: Any = ..., **kwargs: Any) -> Any:
    """A setting that only says what must hold of a finished result: it stays out of the fingerprint. A finished result is judged by another
    value of it without running again (``Stage.judge_again``)."""
    return Field(default, json_schema_extra={"cosmetic": True, "verdict": True}, **kwargs)


def ordered(default: Any = ..., *, inner: bool = False, **kwargs: Any) -> Any:
    """A mapping whose order can change the result: it is part of the fingerprint, which else does not depend on the order of keys.

    Args:
        inner: it is the mappings in this one whose order counts, not its own.
    """
    return Field(default, json_schema_extra={"ordered": "inner" if inner else "outer"}, **kwargs)


def verdict_settings(config: BaseModel) -> dict[str, Any]:
    """The settings made by ``verdict``, as JSON values."""
    extras = {name: field.json_schema_extra for name, field in type(config).model_fields.items()}
    marked = {name for name, extra in extras.items() if isinstance(extra, dict) and extra.get("verdict")}
    return config.model_dump(mode="json", include=marked)


Weight = Annotated[float, Field(ge=0, le=1e6)]
"""How much something counts relative to others; 0 leaves it out."""


def _temperature(value: float) -> float:
    if 0 < value < LOWEST_TEMPERATURE:
        raise ValueError(f"a temperature is 0 (greedy) or at least {LOWEST_TEMPERATURE}: logits divided by less overflow")
    return value


LOWEST_TEMPERATURE = 0.01

Temperature = Annotated[float, Field(ge=0, le=100), AfterValidator(_temperature)]
"""A sampling temperature; 0 is greedy."""

SamplingTemperature = Annotated[float, Field(ge=LOWEST_TEMPERATURE, le=100)]
"""A temperature where replies have to differ."""


def one_group(pattern: str) -> str:
    """The regular expression of a setting, which has exactly one group. Raises ValueError otherwise."""
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"'{pattern}' is not a regular expression: {error}") from None
    if groups != 1:
        raise ValueError(f"'{pattern}' has {groups} groups, it needs exactly one")
    return pattern


OneGroup = Annotated[str, AfterValidator(one_group)]
"""A regular expression with one group, which holds what is looked for."""


class Settings(BaseModel):
    """Base of every configuration block: unknown keys are refused, types are not bent, the bare string under a field is its help. Every
    number has a lower and an upper bound (a test walks through all settings of all stages); none may be NaN or infinite."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False)


Attention = Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"]
"""transformers' names of implementations of attention."""
Strategy = Literal["single", "ddp", "zero2", "zero3", "fsdp"]


class LaunchSettings(Settings):
    """How many processes run the stage, and what they share."""

    strategy: Strategy = "single"
    """single: one process. ddp: every process holds the whole model. zero2 (DeepSpeed): optimiser and gradients are divided among the
    processes. zero3 (DeepSpeed) and fsdp (FSDP2): the weights as well."""
    processes: int = cosmetic(1, ge=1, le=1024)
    """Processes on each node, one for each GPU. What counts for the result, and for the run's identity, is processes × nodes."""
    nodes: int = cosmetic(1, ge=1, le=10_000)
    """Nodes; more than one only inside a Slurm allocation."""
    timeout_minutes: float = cosmetic(30.0, ge=0.1, le=10_000)
    """How long a process waits for the others before the run fails."""

    persistence_threshold: int = cosmetic(100_000, ge=0, le=10**12)
    """zero3: weights of fewer numbers than this stay whole in every process (DeepSpeed's stage3_param_persistence_threshold)."""
    device: str | None = cosmetic(None)
    """Card that the plan is made for, such as h100, a100, l40s, or cpu. null: the type in slurm.gpus_per_node, else what is found here."""
    check_memory: bool = cosmetic(True)
    """Refuse to start a run whose memory cannot suffice by the plan. false: start it all the same."""

    @property
    def world(self) -> int:
        """Processes on all nodes."""
        return self.processes * self.nodes

    @model_validator(mode="after")
    def _consistent(self) -> LaunchSettings:
        if self.strategy == "single" and self.world > 1:
            raise ValueError(
                f"strategy=single is one process, and {self.world} are asked for (processes × nodes): choose ddp, zero2, zero3 or fsdp"
            )
        if self.strategy != "single" and self.world == 1:
            raise ValueError(f"strategy={self.strategy} needs several processes: processes=2 or more, or strategy=single")
        return self


_DURATION = re.compile(r"\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d+(:\d\d(:\d\d)?)?")
_WORD = re.compile(r"[A-Za-z0-9_.,:=@%+/\[\]-]+")
OURS = ("nodes", "ntasks", "ntasks-per-node", "output", "signal", "requeue", "dependency", "job-name", "array")
"""Options of sbatch that the script sets by itself."""


def seconds_of(limit: str) -> int:
    """A time limit of sbatch's in seconds: 90, 1:30, 1:30:00, 2-00, 2-00:00 or 2-00:00:00; 0 means no limit."""
    days, _, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if days:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
        return ((int(days) * 24 + hours) * 60 + minutes) * 60 + seconds
    hours, minutes, seconds = (0, *parts, 0)[:3] if len(parts) < 3 else parts
    return (hours * 60 + minutes) * 60 + seconds


def _one_word(text: str) -> str:
    if not _WORD.fullmatch(text):
        raise ValueError(f"'{text}' is not one word, as an option of sbatch is")
    return text


def _as_text(value: Any) -> Any:
    return str(value) if type(value) is int else value


Word = Annotated[str, BeforeValidator(_as_text), AfterValidator(_one_word)]
"""An option of sbatch; a number as well, which YAML makes of 8."""


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"{text!r} is not one line, as an option of sbatch is")
    return text


def _or_none(value: Any) -> Any:
    return "" if value is None or value is True else _as_text(value)


Line = Annotated[str, Field(min_length=1), BeforeValidator(_as_text), AfterValidator(_one_line)]
"""An option of sbatch that may hold blanks and signs, such as a100|h100."""
LineOrNone = Annotated[str, BeforeValidator(_or_none), AfterValidator(_one_line)]
"""The same; empty (null, true) for an option that is given without a value, such as exclusive."""


class SlurmSettings(Settings):
    """Where and for how long a job runs. Nodes and processes are those of ``launch``."""

    partition: Word | None = None
    """Partition; the cluster's default where null."""
    account: Word | None = None
    """Account that is charged."""
    qos: Word | None = None
    """Quality of service."""
    time: Word = "1-00:00:00"
    """Time limit, as sbatch takes it: minutes, HH:MM:SS, or D-HH:MM:SS. A run that needs longer is requeued and resumes."""
    gpus_per_node: Word | None = None
    """GPUs of each node, with a type or without: 8, h100:8; null for nodes without. launch.processes is usually the same number."""
    cpus_per_task: int = Field(8, ge=1, le=10_000)
    """Cores of each node."""
    mem: Word | None = None
    """Memory of each node, such as 500G; 0 for all of it."""
    constraint: Line | None = None
    """Features that nodes must have, as sbatch takes them: h100, a100|h100."""
    signal_seconds: int = Field(300, ge=1, le=65_535)
    """How long before the time limit the run is asked to write a checkpoint and stop: more than a step and a checkpoint take."""
    shards: int = Field(1, ge=1, le=1000)
    """eval: an array of so many jobs, each of which asks for a share of the replies, and one that judges them and sums them up."""
    setup: list[str] = Field(default_factory=list)
    """Lines of shell that come before the command: module load, source …/activate."""
    extra: dict[str, LineOrNone] = Field(default_factory=dict)
    """Further options of sbatch, such as {exclude: node7}; null for one without a value, such as {exclusive: null}."""

    @field_validator("time")
    @classmethod
    def _is_duration(cls, value: str) -> str:
        if not _DURATION.fullmatch(value):
            raise ValueError(f"'{value}' is not a time limit: 90, 1:30:00 or 2-00:00:00")
        return value

    @field_validator("extra")
    @classmethod
    def _not_ours(cls, options: dict[str, str]) -> dict[str, str]:
        for name in options:
            _one_word(name)
            if ours := next((one for one in OURS if one.startswith(name)), None):  # sbatch takes the beginning of a name for the whole
                raise ValueError(f"--{ours} is set by the script itself")
        return options

    @model_validator(mode="after")
    def _time_to_run(self) -> SlurmSettings:
        if 0 < (limit := seconds_of(self.time)) <= self.signal_seconds:
            raise ValueError(
                f"time={self.time} is {limit} seconds, and signal_seconds={self.signal_seconds} stops the run that long before its end: it "
                "would make no step"
            )
        return self

    def options(self, launch: LaunchSettings) -> dict[str, str]:
        """Options of sbatch by name."""
        found = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "time": self.time,
            "gpus-per-node": self.gpus_per_node,
            "cpus-per-task": str(self.cpus_per_task),
            "mem": self.mem,
            "constraint": self.constraint,
        }
        return {name: value for name, value in found.items() if value is not None} | self.extra


class StageConfig(Settings):
    """Settings that every stage has."""

    seed: int = Field(0, ge=0, le=2**32 - 1)
    """Seed of Python, NumPy and torch; the manifest records which parts it acts on."""
    launch: LaunchSettings = Field(default_factory=LaunchSettings)
    """How many processes run the stage. Strategy and number are part of the result's identity: they decide how many rows make a step."""
    slurm: SlurmSettings | None = cosmetic(None)
    """Submit the command as a Slurm job that runs it, instead of running it here: it prints job:ID, which is a reference to what the job
    will make. null: run it here."""

    def without_effect(self) -> list[str]:
        """Settings that were given and do not act with the others, a sentence each: the plan and the run warn of them."""
        return []
