"""The runs of the evidence: their definitions (``evidence_runs.yaml``), the commands that they expand to, and running them."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evidence_records import EvidenceError, Strict
from pydantic import Field

from safework_cli.core.errors import SafeworkError
from safework_cli.core.ladder import Step, in_order, read_ladder
from safework_cli.core.launch.start import end_with_parent

ROOT = Path(__file__).resolve().parent.parent
DEFINITIONS = Path(__file__).with_name("evidence_runs.yaml")
SAFEWORK = [sys.executable, "-c", "from safework_cli.cli.main import main; main()"]
REPORT = "report"
"""The step of a ladder that makes no artifact: the evidence has tables of its own."""


class Evaluations(Strict):
    """One evaluation recipe on several models; all but the first are compared with ``against``."""

    recipes: list[str] = Field(min_length=1)
    settings: str = ""
    against: str
    models: list[str] = Field(min_length=1)
    name: str = ""
    """Put before the models' names in the record, where a run evaluates them by several recipes: NAME/MODEL."""
    measured: bool = False
    """The run that this one starts from has evaluated ``against`` in the same way: its evaluation is taken."""

    @property
    def models_in_order(self) -> list[str]:
        """``against`` first."""
        return list(dict.fromkeys([self.against, *self.models]))


class Definition(Strict):
    """A run. Every ``{name}`` in a command is the reference that the step of that name printed; ``{seed}`` is the seed.

    Attributes:
        starts_from: a run whose steps are known here as well; those that this run needs are run first.
        ladder: files of ``safework ladder`` whose steps are the run's, with the values of their variables.
        steps: name → arguments of ``safework``; further ones, or others of the same name.
        measures: name → a script of this repository with arguments, which prints one JSON object.
        keep: step → metrics of its manifest that the record keeps.
        compare: model → further models that it is compared with in the tables, beside the one that its evaluation names.
        minutes: step → estimate for two CPU cores; ``eval-…`` and ``measure-…`` for what follows the steps.
        final: the model that the bars are about, chosen on rows that are not test rows.
    """

    about: str
    seeds: list[int] = Field(min_length=1)
    starts_from: str | None = None
    ladder: list[str] = Field(default_factory=list)
    steps: dict[str, str] = Field(default_factory=dict)
    evaluations: list[Evaluations] = Field(default_factory=list)
    measures: dict[str, str] = Field(default_factory=dict)
    keep: dict[str, list[str]] = Field(default_factory=dict)
    compare: dict[str, list[str]] = Field(default_factory=dict)
    minutes: dict[str, float] = Field(default_factory=dict)
    final: str = ""

    def recorded(self) -> set[str]:
        """The evaluations that the record holds, by the names of their steps."""
        return {*self.commands(), *(evaluation_name(block.name, model) for block in self.evaluations for model in block.models_in_order)}

    def commands(self) -> dict[str, str]:
        """The steps, those of the ladder first."""
        found: dict[str, str] = {}
        if self.ladder:
            ladder = read_ladder([ROOT / file for file in self.ladder])
            values = {name: value for name, value in ladder.values().items() if name != "seed"}
            for name, text in ladder.steps.items():
                for variable, value in values.items():
                    text = text.replace(f"{{{variable}}}", value)
                found[name] = text
            found.pop(REPORT, None)
        return found | self.steps


@dataclass(frozen=True)
class Planned(Step):
    """A command that is not run yet: a step of ``safework``, or a measure, which is a script."""

    kind: Literal["step", "measure"] = "step"


@dataclass(frozen=True)
class Done:
    """A step with what it printed."""

    name: str
    command: list[str]
    ref: str


def definitions(file: Path = DEFINITIONS) -> dict[str, Definition]:
    """Reads the definitions. Raises pydantic's ValidationError with the key that is wrong."""
    from safework_cli.core.yaml_text import parse_yaml

    return {name: Definition.model_validate(values) for name, values in parse_yaml(file.read_text(encoding="utf-8"), str(file)).items()}


def commands(known: Mapping[str, Definition], run: str, only: Collection[str] = ()) -> list[Planned]:
    """The commands of a run in an order in which each comes after what it needs.

    Args:
        only: names of commands: these, and those that they need; all where empty.

    Raises:
        EvidenceError: there is no such run or command, or a command needs a name that no step has.
    """
    if run not in known:
        raise EvidenceError(f"there is no run {run}; the runs are {', '.join(known)}")
    definition = known[run]
    available = _available(known, run)
    own = [*definition.commands(), *(planned.name for planned in _evaluations(definition)), *(p.name for p in _measures(definition))]
    if unknown := [name for name in only if name not in available]:
        raise EvidenceError(f"run {run} has no command {unknown[0]}; it has {', '.join(available)}")
    try:
        return [available[step.name] for step in in_order(available, only or own, ["seed"])]
    except SafeworkError as error:
        raise EvidenceError(f"run {run}: {error.what}") from None


def _available(known: Mapping[str, Definition], run: str) -> dict[str, Planned]:
    definition = known[run]
    above = _available(known, definition.starts_from) if definition.starts_from else {}
    steps = [Planned(name, text) for name, text in definition.commands().items()]
    made = [*steps, *_evaluations(definition), *_measures(definition)]
    return {name: planned for name, planned in above.items() if planned.kind == "step"} | {planned.name: planned for planned in made}


def _evaluations(definition: Definition) -> list[Planned]:
    made = []
    for block in definition.evaluations:
        recipes = " ".join(f"-c {recipe}" for recipe in block.recipes)
        for model in block.models if block.measured else block.models_in_order:
            compared = "" if model == block.against else f"against={{{evaluation_name(block.name, block.against)}}}"
            text = " ".join(f"eval {recipes} model={{{model}}} {block.settings} {compared}".split())
            made.append(Planned(evaluation_name(block.name, model), text))
    return made


def _measures(definition: Definition) -> list[Planned]:
    return [Planned(f"measure-{name}", text, "measure") for name, text in definition.measures.items()]


def evaluation_name(block: str, model: str) -> str:
    """The name of the step that evaluates a model."""
    return f"eval-{block}-{model}" if block else f"eval-{model}"


def estimates(known: Mapping[str, Definition], run: str) -> dict[str, float]:
    """Command of a run → estimated minutes, those of the run that it starts from included.

    Raises:
        EvidenceError: a command has no estimate.
    """
    minutes: dict[str, float] = {}
    above: str | None = run
    while above is not None:
        minutes = known[above].minutes | minutes
        above = known[above].starts_from
    planned = [one.name for one in commands(known, run)]
    if missing := [name for name in planned if name not in minutes]:
        raise EvidenceError(f"run {run}: minutes has no estimate of {missing[0]}")
    return {name: minutes[name] for name in planned}


def execute(
    known: Mapping[str, Definition], run: str, seed: int, say: Callable[[str], None], only: Collection[str] = ()
) -> tuple[list[Done], dict[str, Any]]:
    """Runs the commands of a run, and returns the steps and the measures. A command that is done already prints its reference at once.

    Raises:
        EvidenceError: a command ends with another exit code than 0, or prints no reference.
    """
    definition = known[run]
    if seed not in definition.seeds:
        raise EvidenceError(f"run {run} is defined for the seeds {', '.join(map(str, definition.seeds))}, not for {seed}")
    done: dict[str, Done] = {}
    measures: dict[str, Any] = {}
    for planned in commands(known, run, only):
        references = {name: step.ref for name, step in done.items()}
        words = planned.words({**references, "seed": str(seed)})
        say(f"{planned.name}: {shlex.join(words)}")
        if planned.kind == "measure":
            measures[planned.name.removeprefix("measure-")] = json.loads(_output([sys.executable, *words], planned.name))
        else:
            printed = _output([*SAFEWORK, *words], planned.name).strip().splitlines()
            if len(printed) != 1:
                raise EvidenceError(f"{planned.name} printed {len(printed)} lines, and a reference is one line")
            done[planned.name] = Done(planned.name, ["safework", *words], printed[0])
    return list(done.values()), measures


def _output(words: list[str], name: str) -> str:
    finished = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=end_with_parent)
    if finished.returncode != 0:
        raise EvidenceError(f"{name} ended with exit code {finished.returncode}; the same command continues")
    return finished.stdout
