"""The contract between the tool and a stage.

A stage says what it takes, makes and refuses (``Config``, ``inputs``, ``output``, ``plan``) without importing torch, and does
its work in ``run``. The tool does everything else: configuration, resolving inputs, fingerprint, "already done", the run folder,
signals, committing the artifact, exit codes. A third party ships a stage by an entry point in the group ``safework.stages``
whose name is the command with dashes (``rl-m3`` becomes ``safework rl m3``) and whose value is the ``Stage`` object.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from safework_cli.core.errors import ConfigError, SafeworkError
from safework_cli.core.launch.world import World
from safework_cli.core.plan.work import Estimate, Work
from safework_cli.core.progress import METRICS
from safework_cli.core.settings import StageConfig
from safework_cli.core.signals import StopRequest

if TYPE_CHECKING:
    from rich.console import RenderableType

    from safework_cli.core.artifacts import Artifact
    from safework_cli.core.progress import Progress


EngineProtocol = Literal["generate", "tokens"]
"""What an engine offers, or a stage needs: replies as text, or token ids and log-probabilities as well (``engines.protocol``)."""


@dataclass(frozen=True, slots=True)
class Slot:
    """An input of a stage.

    Attributes:
        kinds: artifact kinds accepted, the most usual first.
        doc: what the stage does with it.
        optional: whether the stage runs without it.
        many: the slot takes any number of artifacts, given as ``slot.key=reference``.
        external: the artifact of a reference that is not in the store, such as ``rule:NAME``; None for other references.
        whole: a dataset is taken with all its subsets; without it the reference must say which one.
    """

    kinds: tuple[str, ...]
    doc: str
    optional: bool = False
    many: bool = False
    external: Callable[[str], Artifact | None] | None = None
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
        optimizer_steps, tokens, disk_bytes: estimates; None where the stage cannot tell. ``disk_bytes`` is what the artifact and the
            checkpoints take together.
        work: what each process computes; None where that is not known.
        estimate: what that needs, which the tool adds (``core.plan.estimate``).
        too_large: why it cannot run on its device, likewise: it is raised where something would be run, and not where that is done already.
        lacking: what a run needs and a plan does not: weights, where a model is given as its configuration alone.
    """

    lines: list[str] = field(default_factory=list)
    refusals: list[SafeworkError] = field(default_factory=list)
    name: str = ""
    optimizer_steps: int | None = None
    tokens: int | None = None
    disk_bytes: int | None = None
    work: Work | None = None
    estimate: Estimate | None = None
    too_large: SafeworkError | None = None
    lacking: SafeworkError | None = None

    def check_start(self) -> None:
        """Raises why nothing can be run, although a plan can be made. What is done already is not affected."""
        if reason := self.lacking or self.too_large:
            raise reason

    def refuse(self, what: str, why: str = "", do: str = "", *, kind: type[SafeworkError] = ConfigError) -> None:
        self.refusals.append(kind(what, why, do))


@dataclass(slots=True)
class Outcome:
    """What a run made; the payload is in ``work.output``.

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


@dataclass(slots=True)
class WorkDir:
    """The run folder, as a stage sees it.

    Attributes:
        path: the folder itself; a re-run of the same fingerprint gets it back as it was left.
        fingerprint: of the stage, its settings and its inputs: what a checkpoint is bound to.
        progress: what people and the report see.
        stop: signals.
        world: which of the run's processes this one is; only the first writes into ``output``.
        estimate: what the plan expects of the run, to be compared with what is measured.
    """

    path: Path
    fingerprint: str
    progress: Progress
    stop: StopRequest
    world: World = field(default_factory=World)
    estimate: Estimate | None = None

    @property
    def output(self) -> Path:
        """Where the payload is put together; becomes the artifact by a rename. Emptied at the start of each run."""
        return self._made("output")

    @property
    def metrics_path(self) -> Path:
        """The run's numbers by step, which the first process writes."""
        return self.path / METRICS

    def as_single(self) -> WorkDir:
        """The same for what the first process does after the others have ended."""
        return replace(self, world=World())

    @property
    def checkpoints(self) -> Path:
        """What a re-run resumes from; removed once the artifact is committed."""
        return self._made("checkpoints")

    def _made(self, name: str) -> Path:
        folder = self.path / name
        folder.mkdir(exist_ok=True)
        return folder


class Stage(ABC):
    """One stage. Instances are stateless; the class attributes are its interface."""

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
    engine_protocol: ClassVar[EngineProtocol] = "generate"
    """What the stage needs of the engine in its setting ``engine``; the plan refuses one that offers less."""
    many_processes: ClassVar[bool] = False
    """Whether ``run`` may be called by several processes at the same time, each with its own ``WorkDir.world``."""
    starts_over: ClassVar[bool] = False
    """Whether nothing of a run is kept that is stopped: neither checkpoints nor a journal."""

    def kind_of(self, config: Any) -> str:
        """The kind of artifact that these settings make: ``output``, but for a part of it that is of another kind."""
        return self.output

    @abstractmethod
    def plan(self, config: Any, inputs: Inputs) -> Plan:
        """Says what will be done and what is refused. Imports nothing heavy."""

    def external_digests(self, config: Any) -> dict[str, str]:
        """Digests of files that the configuration names outside the store: part of the fingerprint, like the inputs'."""
        return {}

    def unpinned(self, config: Any) -> list[str]:
        """What a result depends on and its fingerprint cannot know, in words: what a server or a hub has under a name may change."""
        endpoint = getattr(getattr(config, "engine", None), "endpoint", None)
        return [f"what {config.engine.url} serves as {config.engine.model}"] if endpoint else []

    def judge_again(self, config: Any, artifact: Artifact) -> Outcome:
        """What other values of the ``verdict`` settings make of a finished result: ``failed_gates`` and ``tolerated_items`` are taken."""
        raise NotImplementedError

    def show(self, artifact: Artifact) -> RenderableType | None:
        """What people see on stderr of a finished result; None for nothing."""
        return None

    @abstractmethod
    def run(self, config: Any, inputs: Inputs, work: WorkDir) -> Outcome:
        """Does it: writes the payload into ``work.output``. May import anything."""


def refuse_engine(stage: Stage, config: Any, plan: Plan) -> None:
    """Refuses an engine that offers less than the stage needs, before anything else is refused."""
    engine = getattr(config, "engine", None)
    if stage.engine_protocol == "tokens" and engine is not None and engine.protocol != "tokens":
        what = f"safework {stage.name} cannot use engine.kind={engine.kind}"
        why = "it needs the token ids and log-probabilities of replies, which a server does not give"
        plan.refusals.insert(0, ConfigError(what, why, "engine.kind=hf model=REF loads the model here"))


def refuse_processes(stage: Stage, config: Any, plan: Plan) -> None:
    """Refuses several processes where the stage is one, and a library that is not installed."""
    launch = config.launch
    if launch.world > 1 and not stage.many_processes:
        what = f"safework {stage.name} runs as one process, and launch asks for {launch.world}"
        plan.refusals.insert(0, ConfigError(what, "it trains nothing that several could share", "leave launch out"))
    elif launch.strategy in ("zero2", "zero3") and find_spec("deepspeed") is None:
        what = f"launch.strategy={launch.strategy} needs deepspeed, which is not installed"
        plan.refusals.insert(0, ConfigError(what, "", "pip install 'safework[deepspeed]'; or launch.strategy=fsdp, which is torch's own"))
