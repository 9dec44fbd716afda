"""The contract between the tool and a rung of the ladder.

A stage says what it takes, makes and refuses (``Config``, ``inputs``, ``output``, ``plan``) without importing torch, and does
its work in ``run``. The tool does everything else: configuration, resolving inputs, fingerprint, "already done", the run folder,
signals, committing the artifact, exit codes. A third party ships a stage by an entry point in the group ``safework.stages``
whose name is the command with dashes (``rl-m3`` becomes ``safework rl m3``) and whose value is the ``Stage`` object.
"""

from __future__ import annotations

import signal
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from safework_cli.errors import ConfigError, InputError, Interrupted, RunAgain, SafeworkError, nearest
from safework_cli.faults import explained
from safework_cli.rows import HELDOUT, TASKS

if TYPE_CHECKING:
    from rich.console import RenderableType

    from safework_cli.artifacts import Artifact
    from safework_cli.progress import Progress
    from safework_cli.rows import Row

KINDS = ("model", "dataset", "verifier", "index", "generations", "evaluation")


def cosmetic(default: Any = ..., **kwargs: Any) -> Any:
    """A setting that cannot change the result (display, launch, logging): it stays out of the fingerprint."""
    return Field(default, json_schema_extra={"cosmetic": True}, **kwargs)


def verdict(default: Any = ..., **kwargs: Any) -> Any:
    """A setting that only says what must hold of a finished result: it stays out of the fingerprint. A finished result is judged by another
    value of it without running again (``Stage.judge_again``)."""
    return Field(default, json_schema_extra={"cosmetic": True, "verdict": True}, **kwargs)


def verdict_settings(config: BaseModel) -> dict[str, Any]:
    """The settings made by ``verdict``, as JSON values."""
    extras = {name: field.json_schema_extra for name, field in type(config).model_fields.items()}
    marked = {name for name, extra in extras.items() if isinstance(extra, dict) and extra.get("verdict")}
    return config.model_dump(mode="json", include=marked)


def _task(name: str) -> str:
    if name not in TASKS:
        raise ValueError(f"'{name}' is not a task{nearest(name, TASKS)} (tasks: {', '.join(TASKS)})")
    return name


TaskName = Annotated[str, AfterValidator(_task)]
"""One of the ladder's tasks, in a setting."""
Weight = Annotated[float, Field(ge=0, le=1e6)]
"""How much something counts beside others; 0 leaves it out."""


def _some_task(weights: dict[str, float]) -> dict[str, float]:
    if set(weights) == set(TASKS) and not any(weights.values()):
        raise ValueError("every task has the weight 0: nothing would be left")
    return weights


TaskWeights = Annotated[dict[TaskName, Weight], AfterValidator(_some_task)]
"""Task → how much of it."""


def _temperature(value: float) -> float:
    if 0 < value < LOWEST_TEMPERATURE:
        raise ValueError(f"a temperature is 0 (greedy) or at least {LOWEST_TEMPERATURE}: logits divided by less overflow")
    return value


LOWEST_TEMPERATURE = 0.01
Temperature = Annotated[float, Field(ge=0, le=100), AfterValidator(_temperature)]
"""A sampling temperature; 0 is greedy."""
SamplingTemperature = Annotated[float, Field(ge=LOWEST_TEMPERATURE, le=100)]
"""A temperature where replies have to differ."""


class Settings(BaseModel):
    """Base of every configuration block: unknown keys are refused, types are not bent, the bare string under a field is its help. Every
    number has a lower and an upper bound (a test walks through all settings of all stages); none may be NaN or infinite."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False)


class LaunchSettings(Settings):
    """How the stage's process starts."""

    strategy: Literal["single"] = "single"
    """One process, here. (Multi-process strategies go through accelerate and will be further values of this key.)"""


class StageConfig(Settings):
    """Settings that every stage has."""

    seed: int = Field(0, ge=0, le=2**32 - 1)
    """Seed of Python, NumPy and torch; the manifest records which parts it acts on."""
    launch: LaunchSettings = Field(default_factory=LaunchSettings)
    """How the process starts. The class of strategy is part of the result's identity: it decides how many rows make a step."""


@dataclass(frozen=True, slots=True)
class Slot:
    """An input of a stage.

    Attributes:
        kinds: artifact kinds accepted, the most usual first.
        doc: what the stage does with it.
        optional: whether the stage runs without it.
        many: the slot takes any number of artifacts, given as ``slot.key=reference``.
        rules: the slot takes ``rule:NAME`` too, wherever it takes a verifier.
        whole: a dataset is taken with all its subsets; without it the reference must say which one.
    """

    kinds: tuple[str, ...]
    doc: str
    optional: bool = False
    many: bool = False
    rules: bool = False
    whole: bool = False


class Inputs:
    """The resolved inputs of one run, by slot."""

    def __init__(self, values: dict[str, Artifact | dict[str, Artifact]]):
        self._values = values

    def one(self, slot: str) -> Artifact:
        """The artifact of a required slot."""
        value = self._values[slot]
        assert not isinstance(value, dict), f"slot {slot} takes many artifacts"
        return value

    def maybe(self, slot: str) -> Artifact | None:
        """The artifact of an optional slot, or None."""
        return self.one(slot) if slot in self._values else None

    def many(self, slot: str) -> dict[str, Artifact]:
        """The artifacts of a ``many`` slot by key; empty where none was given."""
        value = self._values.get(slot, {})
        assert isinstance(value, dict), f"slot {slot} takes one artifact"
        return value

    def flat(self) -> dict[str, Artifact]:
        """Every artifact by its full key (``model``, ``verifiers.safety``), in a stable order."""
        flat: dict[str, Artifact] = {}
        for slot, value in sorted(self._values.items()):
            if isinstance(value, dict):
                flat.update({f"{slot}.{key}": value[key] for key in sorted(value)})
            else:
                flat[slot] = value
        return flat


@dataclass(slots=True)
class Plan:
    """What a run will do, before anything heavy is imported.

    Attributes:
        lines: sentences for ``--dry-run``, in order.
        refusals: why the run must not start; the first one is raised, all are shown by ``--dry-run``.
        name: the artifact's name when the user gives none.
        optimizer_steps, tokens, memory_bytes, disk_bytes, seconds: estimates; None where the stage cannot tell.
            ``memory_bytes`` is per process, ``disk_bytes`` what the artifact and the checkpoints take together.
    """

    lines: list[str] = field(default_factory=list)
    refusals: list[SafeworkError] = field(default_factory=list)
    name: str = ""
    optimizer_steps: int | None = None
    tokens: int | None = None
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    seconds: float | None = None

    def refuse(self, what: str, why: str = "", do: str = "", *, kind: type[SafeworkError] = ConfigError) -> None:
        self.refusals.append(kind(what, why, do))


@dataclass(slots=True)
class Outcome:
    """What a run made; the payload lies in ``work.output``.

    Attributes:
        metrics: headline numbers for the manifest, nested dicts of plain JSON values.
        seeds: which seeds act on what, in words ("sampling": "seed", "cpu kernels": "not deterministic").
        notes: sentences that a reader of the manifest should see.
        chat_template_hash: of the model made or used.
        failed_gates: gates that did not hold: the artifact is committed, the command exits with 4.
        failed_items, tolerated_items: with more failures than tolerated the artifact is committed and the command exits with 5.
    """

    metrics: dict[str, Any] = field(default_factory=dict)
    seeds: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    chat_template_hash: str | None = None
    failed_gates: list[str] = field(default_factory=list)
    failed_items: int = 0
    tolerated_items: int = 0

    def not_measured(self, why: str) -> None:
        """Notes that something which was asked for could not be measured: the command exits with 5, and keeps what was made."""
        self.notes.append(why)
        self.failed_items, self.tolerated_items = self.failed_items + 1, 0


Measured = TypeVar("Measured")


def after_training(what: str, work: WorkDir, measure: Callable[[], Measured]) -> tuple[Measured | None, str]:
    """Measures what has been trained, and lets no error of it lose what was trained.

    Args:
        what: what is done, for people ("sampling").

    Returns:
        The result and an empty text, or None and what failed (for ``Outcome.not_measured``). What asks for the same command again (a
        signal, a full disk) is raised as ever.
    """
    try:
        return measure(), ""
    except (Interrupted, RunAgain):
        raise
    except Exception as error:
        if isinstance(explained(error), RunAgain):  # a full disk, in whatever words a library has for it
            raise
        told = (str(error).splitlines() or [""])[0] if isinstance(error, SafeworkError) else f"{type(error).__name__}: {error}"
        why = f"{what} failed after training: {told[:500]}"
        work.progress.warn(f"{why}; what was trained is kept")
        work.progress.event("failed_after_training", what=what, trace=traceback.format_exc())
        return None, why


class StopRequest:
    """Ctrl-C and SIGTERM, turned into errors at a moment when nothing is lost.

    Outside ``deferred`` a signal raises at once (in the main thread). Inside, it only sets ``requested``: a training loop finishes
    its step, writes its checkpoint and then calls ``check``. A second Ctrl-C raises at once wherever the loop is.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._deferred = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handles SIGINT and SIGTERM while the body runs."""
        previous = {sig: signal.signal(sig, self._on_signal) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sig, handler in previous.items():
                signal.signal(sig, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """While the body runs, a signal is only noted."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.check()

    def check(self) -> None:
        """Raises Interrupted (SIGINT) or RunAgain (SIGTERM) where a signal came."""
        if self.requested is None:
            return
        if self.requested == signal.SIGINT:
            raise Interrupted("interrupted by Ctrl-C", "", "type the same command again: it goes on from what was kept")
        raise RunAgain("stopped by SIGTERM", "what was done so far is kept", "run the same command again: it continues")

    def _on_signal(self, number: int, _frame: Any) -> None:
        second = self.requested is not None
        self.requested = signal.Signals(number)
        if not self._deferred or (second and number == signal.SIGINT):
            self.check()


@dataclass(slots=True)
class WorkDir:
    """The run folder, as a stage sees it.

    Attributes:
        path: the folder itself; a re-run of the same fingerprint gets it back as it was left.
        fingerprint: of the stage, its settings and its inputs: what a checkpoint is bound to.
        progress: what people and the report see.
        stop: signals.
    """

    path: Path
    fingerprint: str
    progress: Progress
    stop: StopRequest

    @property
    def output(self) -> Path:
        """Where the payload is put together; becomes the artifact by a rename. Emptied at the start of each run."""
        return self._made("output")

    @property
    def checkpoints(self) -> Path:
        """What a re-run resumes from; removed once the artifact is committed."""
        return self._made("checkpoints")

    def _made(self, name: str) -> Path:
        folder = self.path / name
        folder.mkdir(exist_ok=True)
        return folder


class Stage(ABC):
    """One rung. Instances are stateless; the class attributes are its face."""

    name: ClassVar[str]
    """The command: "sft", "rl m3"."""
    version: ClassVar[int] = 1
    """Raised when the same settings would give another result: part of the fingerprint."""
    summary: ClassVar[str]
    """One line for ``--help``; equals the first line of the module's docstring, which the top-level help reads without importing."""
    Config: ClassVar[type[StageConfig]]
    inputs: ClassVar[dict[str, Slot]]
    output: ClassVar[str]
    """The kind of artifact made."""

    @abstractmethod
    def plan(self, config: Any, inputs: Inputs) -> Plan:
        """Says what will be done and what is refused. Imports nothing heavy."""

    def external_digests(self, config: Any) -> dict[str, str]:
        """Digests of files that the configuration names outside the store: part of the fingerprint, like the inputs'."""
        return {}

    def judge_again(self, config: Any, artifact: Artifact) -> Outcome:
        """What other values of the ``verdict`` settings make of a finished result: ``failed_gates`` and ``tolerated_items`` are taken."""
        raise NotImplementedError

    def show(self, artifact: Artifact) -> RenderableType | None:
        """What people see on stderr of a finished result; None for nothing."""
        return None

    @abstractmethod
    def run(self, config: Any, inputs: Inputs, work: WorkDir) -> Outcome:
        """Does it: writes the payload into ``work.output``. May import anything."""


def training_rows(artifact: Artifact, say: Callable[[str], object] | None = None) -> list[Row]:
    """The rows that may be trained on: those that are not held out (split "test"). A reference that names the subset ``heldout`` asks for
    what is held out, and gets it.

    Args:
        say: is called with a sentence where rows were left out.

    Raises:
        InputError: the rows are all held out, or which subset is meant is open.
    """
    rows = artifact.rows()
    if artifact.subset == HELDOUT:
        return rows
    kept = [row for row in rows if row.split != "test"]
    if rows and not kept:
        raise InputError(
            f"all {len(rows):,} rows of {artifact.ref} are held out for evaluation",
            'their split is "test", and such rows are not trained on',
            f"name a subset for training, or {artifact.ref.partition(':')[0]}:{HELDOUT} where you mean to train on what is held out",
        )
    if say and len(kept) < len(rows):
        say(f"{len(rows) - len(kept):,} rows of {artifact.ref} are held out (split test) and left out of training")
    return kept


def require_text(rows: Iterable[Row], artifact: Artifact, what: str) -> None:
    """Refuses rows with pictures where only their text would be read."""
    for row in rows:
        if row.images:
            raise InputError(f"row '{row.id}' of {artifact.ref} has pictures", f"{what} text alone", "leave such rows out")


def require_rows(count: int, artifact: Artifact, what: str) -> None:
    """Refuses to go on with nothing: ``count`` rows of ``what`` came out of ``artifact``."""
    if count == 0:
        raise InputError(
            f"{artifact.ref} holds no {what}",
            "a stage that runs on zero rows would end green without having done anything",
            f"safework artifacts show {artifact.ref}",
        )
