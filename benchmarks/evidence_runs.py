"""The runs of the evidence: their definitions (``evidence_runs.yaml``), the commands that they expand to, and running them."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evidence_records import EvidenceError, Strict
from pydantic import Field, model_validator

ROOT = Path(__file__).resolve().parent.parent
DEFINITIONS = Path(__file__).with_name("evidence_runs.yaml")
SAFEWORK = [sys.executable, "-c", "from safework_cli.cli.main import main; main()"]
_PLACEHOLDER = re.compile(r"\{([a-z0-9-]+)\}")


class Evaluations(Strict):
    """One evaluation recipe on several models; all but the first are compared with ``against``."""

    recipes: list[str] = Field(min_length=1)
    settings: str = ""
    against: str
    models: list[str] = Field(min_length=1)
    name: str = ""
    """Put before the models' names in the record, where a run evaluates them by several recipes: NAME/MODEL."""


class Definition(Strict):
    """A run. Every ``{name}`` in a command is the reference that the step of that name printed; ``{seed}`` is the seed.

    Attributes:
        starts_from: a run whose steps are known here as well; those that this run needs are run first.
        script: a shell script with a ladder's steps, in place of ``steps``; it writes them to the file TIMES.
        environment: variables of the script.
        steps: name → arguments of ``safework``.
        measures: name → a script of this repository with arguments, which prints one JSON object.
        keep: step → metrics of its manifest that the record keeps.
        minutes: step → estimate for two CPU cores; ``script`` for a script, ``eval-…`` and ``measure-…`` for what follows the steps.
        final: the model that the bars are about, chosen on rows that are not test rows.
    """

    about: str
    seeds: list[int] = Field(min_length=1)
    starts_from: str | None = None
    script: str | None = None
    environment: dict[str, str] = Field(default_factory=dict)
    steps: dict[str, str] = Field(default_factory=dict)
    evaluations: list[Evaluations] = Field(default_factory=list)
    measures: dict[str, str] = Field(default_factory=dict)
    keep: dict[str, list[str]] = Field(default_factory=dict)
    minutes: dict[str, float] = Field(default_factory=dict)
    final: str = ""

    @model_validator(mode="after")
    def _one_kind(self) -> Definition:
        if self.script is not None and (self.steps or self.evaluations or self.starts_from):
            raise ValueError("a run is a script or a list of steps, not both")
        return self


@dataclass(frozen=True)
class Planned:
    """A command that is not run yet, with the names in it."""

    name: str
    kind: Literal["step", "measure", "script"]
    text: str

    @property
    def needs(self) -> set[str]:
        return set(_PLACEHOLDER.findall(self.text)) - {"seed"}

    def words(self, references: Mapping[str, str], seed: int) -> list[str]:
        known = {**references, "seed": str(seed)}
        return [_PLACEHOLDER.sub(lambda match: known[match[1]], word) for word in shlex.split(self.text)]


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
    if definition.script is not None:
        return [Planned("script", "script", definition.script), *_measures(definition)]
    available = _available(known, run)
    order: dict[str, Planned] = {}

    def add(name: str, above: tuple[str, ...]) -> None:
        if name in order:
            return
        if name not in available or name in above:
            raise EvidenceError(f"run {run}: {above[-1] if above else run} needs {name}, which is not a step before it")
        for needed in sorted(available[name].needs):
            add(needed, (*above, name))
        order[name] = available[name]

    own = [*definition.steps, *(planned.name for planned in _evaluations(definition)), *(p.name for p in _measures(definition))]
    if unknown := [name for name in only if name not in available]:
        raise EvidenceError(f"run {run} has no command {unknown[0]}; it has {', '.join(available)}")
    for name in only or own:
        add(name, ())
    return list(order.values())


def _available(known: Mapping[str, Definition], run: str) -> dict[str, Planned]:
    definition = known[run]
    above = _available(known, definition.starts_from) if definition.starts_from else {}
    steps = [Planned(name, "step", text) for name, text in definition.steps.items()]
    made = [*steps, *_evaluations(definition), *_measures(definition)]
    return {name: planned for name, planned in above.items() if planned.kind == "step"} | {planned.name: planned for planned in made}


def _evaluations(definition: Definition) -> list[Planned]:
    made = []
    for block in definition.evaluations:
        recipes = " ".join(f"-c {recipe}" for recipe in block.recipes)
        for model in dict.fromkeys([block.against, *block.models]):
            compared = "" if model == block.against else f"against={{{evaluation_name(block.name, block.against)}}}"
            text = " ".join(f"eval {recipes} model={{{model}}} {block.settings} {compared}".split())
            made.append(Planned(evaluation_name(block.name, model), "step", text))
    return made


def _measures(definition: Definition) -> list[Planned]:
    return [Planned(f"measure-{name}", "measure", text) for name, text in definition.measures.items()]


def evaluation_name(block: str, model: str) -> str:
    """The name of the step that evaluates a model."""
    return f"eval-{block}-{model}" if block else f"eval-{model}"


def estimates(known: Mapping[str, Definition], run: str) -> dict[str, float]:
    """Command of a run → estimated minutes, those of the run that it starts from included.

    Raises:
        EvidenceError: a command has no estimate.
    """
    definition = known[run]
    minutes = {**(estimates(known, definition.starts_from) if definition.starts_from else {}), **definition.minutes}
    planned = ["script" if one.kind == "script" else one.name for one in commands(known, run)]
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
        if missing := planned.needs - references.keys():
            raise EvidenceError(f"run {run}: {planned.name} needs {sorted(missing)[0]}, which no step made")
        words = planned.words(references, seed)
        say(f"{planned.name}: {shlex.join(words)}")
        if planned.kind == "script":
            done |= {step.name: step for step in _run_script(words, definition.environment, seed)}
        elif planned.kind == "measure":
            measures[planned.name.removeprefix("measure-")] = json.loads(_output([sys.executable, *words], planned.name))
        else:
            printed = _output([*SAFEWORK, *words], planned.name).strip().splitlines()
            if len(printed) != 1:
                raise EvidenceError(f"{planned.name} printed {len(printed)} lines, and a reference is one line")
            done[planned.name] = Done(planned.name, ["safework", *words], printed[0])
    return list(done.values()), measures


def _output(words: list[str], name: str, environment: Mapping[str, str] | None = None) -> str:
    finished = subprocess.run(words, cwd=ROOT, env={**os.environ, **(environment or {})}, stdout=subprocess.PIPE, text=True)
    if finished.returncode != 0:
        raise EvidenceError(f"{name} ended with exit code {finished.returncode}; the same command continues")
    return finished.stdout


def _run_script(words: list[str], environment: Mapping[str, str], seed: int) -> list[Done]:
    with tempfile.TemporaryDirectory() as folder:
        times = Path(folder) / "times.tsv"
        given = {name: value.replace("{seed}", str(seed)) for name, value in environment.items()}
        _output(["bash", *words], words[0], {**given, "TIMES": str(times)})
        lines = [line.split("\t") for line in times.read_text(encoding="utf-8").splitlines()]
    shown = [f"{name}={value}" for name, value in given.items()] + ["bash", *words]
    return [Done(name, shown, reference) for name, _, reference in lines]
