"""A ladder: commands by name, in which ``{name}`` is the reference that the command of that name printed, or the value of a variable."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator

from safework_cli.core.config import flatten, read_recipe
from safework_cli.core.errors import ConfigError, nearest
from safework_cli.core.settings import LaunchSettings, Settings, SlurmSettings

NAME = "[a-z0-9][a-z0-9-]*"
_PLACEHOLDER = re.compile(rf"\{{({NAME})\}}")
_ONE_WORD = re.compile(r"(?<!\$)\{([\w.-]+)\}")
"""Braces around one word. ``${SAFEWORK_DATA}`` is a variable of the environment."""
_ASSIGNMENT = re.compile(rf"({NAME})=(.*)", re.DOTALL)
Name = Annotated[str, StringConstraints(pattern=f"^{NAME}$")]


@dataclass(frozen=True)
class Step:
    """A command that is not run yet.

    Attributes:
        text: the words after ``safework``, quoted as for a shell.
    """

    name: str
    text: str

    @property
    def named(self) -> set[str]:
        """The names in braces."""
        return set(_PLACEHOLDER.findall(self.text))

    def words(self, known: Mapping[str, str]) -> list[str]:
        """The command's words with the names filled in. A value is part of one word, whatever is in it."""
        return [_PLACEHOLDER.sub(lambda match: known[match[1]], word) for word in shlex.split(self.text)]


def in_order(steps: Mapping[str, Step], wanted: Iterable[str], given: Iterable[str] = ()) -> list[Step]:
    """The wanted steps and those that they need, each after what it needs.

    Args:
        given: names that are no steps: variables.

    Raises:
        ConfigError: a name in braces is neither, or a step needs itself.
    """
    variables = set(given)
    ordered: dict[str, Step] = {}

    def add(name: str, above: tuple[str, ...]) -> None:
        if name in ordered:
            return
        if name not in steps or name in above:
            why = "it needs itself" if name in above else f"no step has that name{nearest(name, [*steps, *variables])}"
            raise ConfigError(f"{above[-1] if above else 'the ladder'} needs {name}, which is not a step before it", why)
        for needed in sorted(steps[name].named - variables):
            add(needed, (*above, name))
        ordered[name] = steps[name]

    for name in wanted:
        add(name, ())
    return list(ordered.values())


class LadderFile(Settings):
    """What a ladder's file holds."""

    variables: dict[Name, str | int | float | bool] = Field(default_factory=dict)
    """Values that commands name as {NAME}; NAME=VALUE on the command line replaces one."""
    steps: dict[Name, str]
    """Name → the words after `safework`. {NAME} is the reference that the step of that name printed."""
    shapes: dict[Name, str] = Field(default_factory=dict)
    """Step → a file with the config.json of the model that it will bring (JSON or YAML): --dry-run plans with it while the model is not
    there, so that memory and time are known before anything is fetched."""
    slurm: SlurmSettings | None = None
    """Submit each stage as a Slurm job, which starts when the jobs before it have ended well."""
    launch: LaunchSettings | None = None
    """Processes of every stage that several can run."""

    @field_validator("steps")
    @classmethod
    def _quoted_well(cls, steps: dict[str, str]) -> dict[str, str]:
        for name, text in steps.items():
            try:
                words = shlex.split(text)
            except ValueError as error:
                raise ValueError(f"{name} is not a command line: {error}") from None
            if not words or words[0] in ("safework", "ladder"):
                raise ValueError(f"{name} holds the words after safework: a command other than ladder")
        return steps

    @model_validator(mode="after")
    def _names_once(self) -> LadderFile:
        if both := sorted(self.steps.keys() & self.variables.keys()):
            raise ValueError(f"{both[0]} is a step and a variable")
        for name, text in self.steps.items():
            for word in _ONE_WORD.findall(text):
                if not re.fullmatch(NAME, word):  # it would reach the command as it is
                    near = nearest(word.lower().replace("_", "-"), [*self.steps, *self.variables])
                    raise ValueError(f"{name} holds {{{word}}}, which cannot be a name: names are of a-z, 0-9 and -{near}")
        if unknown := sorted(self.shapes.keys() - self.steps.keys()):
            raise ValueError(f"shapes.{unknown[0]} is of no step{nearest(unknown[0], list(self.steps))}")
        return self

    def values(self) -> dict[str, str]:
        """The variables as text."""
        return {name: value if isinstance(value, str) else json.dumps(value) for name, value in self.variables.items()}

    def write_shape(self, step: str, folder: Path) -> None:
        """Writes the config.json of a step's model into a folder. Raises InputError or ConfigError where its file cannot be read."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(read_recipe(Path(self.shapes[step])).values), encoding="utf-8")

    def overlay(self, *, several: bool) -> list[str]:
        """Settings that a stage gets before its own words, which win.

        Args:
            several: the stage can be run by several processes; one that cannot gets the card only, which its plan is made for.
        """
        blocks = {"slurm": self.slurm, "launch": self.launch}
        given = {name: block.model_dump(mode="json", exclude_unset=True) or {} for name, block in blocks.items() if block is not None}
        if not several and "launch" in given:
            given["launch"] = {name: value for name, value in given["launch"].items() if name == "device"}
        return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in flatten(given)] if given else []


def read_ladder(files: Sequence[Path], assignments: Sequence[str] = ()) -> LadderFile:
    """Reads a ladder's files, of which later ones win name by name, and the values of variables.

    Args:
        assignments: ``NAME=VALUE`` words.

    Raises:
        ConfigError: a key, name or value that is not expected.
        InputError: a file is missing.
    """
    merged: dict[str, Any] = {}
    for file in files:
        layer = read_recipe(file)
        for key, value in layer.values.items():
            both = isinstance(value, dict) and isinstance(merged.get(key), dict)
            merged[key] = {**merged[key], **value} if both else value
    try:
        ladder = LadderFile.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        near = nearest(str(first["loc"][-1]), list(LadderFile.model_fields)) if first["type"] == "extra_forbidden" else ""
        what = f"{', '.join(map(str, files))}: {where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}{near}"
        raise ConfigError(what, "a ladder has variables, steps, shapes, slurm and launch", "see quickstart/ladder.yaml") from None
    for text in assignments:
        match = _ASSIGNMENT.fullmatch(text)
        if match is None or match[1] not in ladder.variables:
            near = nearest(match[1], list(ladder.variables)) if match else ""
            known = ", ".join(ladder.variables) or "it has none"
            raise ConfigError(f"'{text}' names no variable of this ladder{near}", known, "settings of a stage belong in its step")
        ladder.variables[match[1]] = match[2]
    return ladder
