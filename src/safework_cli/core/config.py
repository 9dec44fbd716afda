"""From recipes, environment and command line to one validated configuration that knows where each value came from.

Precedence: defaults < recipe files, left to right < ``SAFEWORK_<STAGE>__<KEY>`` < ``key.path=value``. Mappings are merged key by key,
an empty one removes what earlier layers gave there, lists are replaced whole. Nothing unknown is ever ignored.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from safework_cli.core.artifacts.manifest import canonical_digest
from safework_cli.core.config_errors import MAX_SHOWN, explain_validation
from safework_cli.core.errors import ConfigError, InputError, nearest
from safework_cli.core.paths import is_utf8, user_path
from safework_cli.core.recipes import find_recipe, recipe_names
from safework_cli.core.settings import StageConfig
from safework_cli.core.stage import Stage
from safework_cli.core.yaml_text import parse_yaml

RESERVED_VARIABLES = frozenset({"SAFEWORK_STORE", "SAFEWORK_DATA"})
MAX_RECIPE_BYTES = 1_000_000
_RULE = re.compile(r"(?:rule:)?[A-Za-z_][\w-]*\{.*\}")
"""A rule with parameters, such as math{time_limit_seconds: 20}: to YAML it would be a mapping with the key "math{time_limit_seconds"."""


@dataclass(slots=True)
class Layer:
    """Values from one place.

    Attributes:
        text: of a recipe, as it was read: a pipe can be read once.
    """

    source: str
    values: dict[str, Any]
    text: str = ""


@dataclass(slots=True)
class Resolved:
    """A stage's validated request.

    Attributes:
        config: settings.
        references: slot key (``model``, ``verifiers.safety``) → reference as given.
        name: of the artifact, where the user chose one.
        sources: dotted key → where its value came from ("default", a file, a variable, "command line").
        recipes: what was read of each recipe, in order.
    """

    config: StageConfig
    references: dict[str, str]
    name: str | None
    sources: dict[str, str]
    recipes: Sequence[Layer] = ()

    def rows(self) -> Iterator[tuple[str, Any, str]]:
        """(key, value, source) of every setting, for people."""
        for key, value in flatten(self.config.model_dump(mode="json")):
            yield key, value, self.source_of(key)

    def source_of(self, key: str) -> str:
        parts = key.split(".")
        for end in range(len(parts), 0, -1):
            if found := self.sources.get(".".join(parts[:end])):
                return found
        return "default"


def read_recipe(path: Path) -> Layer:
    """Reads one recipe file, or a shipped one of that name ("quickstart/sft.yaml") where that file does not exist.

    Raises:
        InputError: there is none of that name.
        ConfigError: it is not a mapping.
    """
    path = user_path(path)
    if not path.exists() or path.is_dir():  # a pipe, as `-c <(…)` makes one, is read
        shipped = find_recipe(path)
        if shipped is None:
            near = nearest(path.name, [p.name for p in path.parent.glob("*.y*ml")]) if path.parent.is_dir() else ""
            raise InputError(f"no recipe at {path}{near or nearest(str(path), recipe_names())}", "", "safework recipes ls")
        path = shipped
    with path.open("rb") as handle:
        content = handle.read(MAX_RECIPE_BYTES + 1)
    if len(content) > MAX_RECIPE_BYTES:
        raise ConfigError(f"{path} has more than {MAX_RECIPE_BYTES:,} bytes", "a recipe is a page of settings", "is it a data file?")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}, line {line}: not UTF-8", str(error), f"iconv -f LATIN1 -t UTF-8 '{path}' > fixed.yaml") from None
    values = parse_yaml(text, str(path))
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is not a mapping", f"it holds a {type(values).__name__}", "write `key: value` lines")
    return Layer(str(path), values, text)


def read_assignments(stage: Stage, assignments: Sequence[str]) -> list[Layer]:
    """Reads ``key.path=value`` words, each its own layer so that the last one wins."""
    layers = []
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][\w-]*(?:\.[\w-]+)*", key):
            raise ConfigError(
                f"'{text}' is not key=value",
                "a setting is one word, without spaces around the =; settings follow the options",
                f"safework {stage.name} --help lists the keys",
            )
        layers.append(Layer("command line", _nested(key, _scalar(stage, key, value, f"{key}={value[:MAX_SHOWN]}"))))
    return layers


def read_environment(stage: Stage, environ: Mapping[str, str], known_stages: Sequence[str]) -> list[Layer]:
    """Reads ``SAFEWORK_SFT__LORA__R=8``. Raises ConfigError for a ``SAFEWORK_`` variable that is unknown: a setting was meant."""
    prefix = f"SAFEWORK_{_variable(stage.name)}__"
    prefixes = tuple(f"SAFEWORK_{_variable(name)}__" for name in known_stages)
    layers = []
    for variable, value in sorted(environ.items()):
        if not variable.startswith("SAFEWORK_") or variable in RESERVED_VARIABLES:
            continue
        if variable.startswith(prefix):
            key = variable[len(prefix) :].lower().replace("__", ".")
            layers.append(Layer(f"${variable}", _nested(key, _scalar(stage, key, value, f"${variable}"))))
        elif not variable.startswith(prefixes):
            raise ConfigError(
                f"the environment variable {variable} is unknown{nearest(variable, [*RESERVED_VARIABLES, prefix])}",
                "ignoring it would run something else than was asked",
                f"settings of this stage are {prefix}<KEY>; unset {variable}",
            )
    return layers


def resolve(
    stage: Stage,
    recipes: Sequence[Path] = (),
    assignments: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    known_stages: Sequence[str] = (),
) -> Resolved:
    """Merges all layers and validates them.

    Raises:
        ConfigError: unknown keys, wrong types, combinations that a stage's model refuses; every one of them is named, with its source.
        InputError: a recipe is missing, or a required input was not given.
    """
    read = [read_recipe(path) for path in recipes]
    layers = [*read, *read_environment(stage, os.environ if environ is None else environ, known_stages or [stage.name])]
    layers += read_assignments(stage, assignments)
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for layer in layers:
        _merge(merged, layer.values, layer.source, sources, "")
    name = merged.pop("name", None)
    if name is not None and not isinstance(name, str):
        raise ConfigError(f"name must be text, not {name!r}", f"from {sources['name']}")
    references = _take_references(stage, merged, sources)
    try:
        config = stage.Config.model_validate(merged)
    except ValidationError as error:
        raise explain_validation(stage, error, sources) from None
    _require_slots(stage, references)
    return Resolved(config, references, name, sources, read)


def fingerprint(stage: Stage, config: StageConfig, input_digests: Mapping[str, str]) -> str:
    """The identity of a run: the stage and its version, every setting that can change the result, the digests of the inputs, and, where
    there are several, the number of processes, which the rows of a step are divided among. The order of keys counts where a setting says
    so (``settings.ordered``)."""
    identity = {"stage": stage.name, "version": stage.version, "config": result_settings(config), "inputs": dict(input_digests)}
    if config.launch.world > 1:
        identity["processes"] = config.launch.world
    if orders := _orders(config):
        identity["orders"] = orders
    return canonical_digest(identity)


def _orders(config: BaseModel) -> dict[str, list[str]]:
    """The keys of mappings whose order counts, by the setting's name, in all blocks. Those in alphabetical order are left out: runs whose
    order was not in their fingerprint are found again."""
    orders: dict[str, list[str]] = {}
    for name, field in type(config).model_fields.items():
        extra, value = field.json_schema_extra, getattr(config, name)
        if isinstance(value, BaseModel):
            orders |= {f"{name}.{key}": keys for key, keys in _orders(value).items()}
        if not isinstance(extra, dict) or "ordered" not in extra or not isinstance(value, Mapping):
            continue
        inner = {f"{name}.{key}": list(item) for key, item in value.items() if isinstance(item, Mapping)}
        orders |= {name: list(value)} if extra["ordered"] == "outer" else inner
    return {name: keys for name, keys in orders.items() if keys != sorted(keys)}


def result_settings(block: BaseModel) -> dict[str, Any]:
    """The settings of a block without the cosmetic ones, all the way down."""
    values = {}
    dumped = block.model_dump(mode="json")
    for name, field in type(block).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("cosmetic"):
            continue
        value = getattr(block, name)
        values[name] = result_settings(value) if isinstance(value, BaseModel) else dumped[name]
    return values


def flatten(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings with dotted keys; lists are leaves."""
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, values


def _variable(stage_name: str) -> str:
    return stage_name.upper().replace(" ", "_")


def _scalar(stage: Stage, key: str, text: str, where: str) -> Any:
    """A word of the command line as YAML; references, names and rules with parameters stay text."""
    if key == "name" or key.split(".")[0] in stage.inputs:
        if not is_utf8(text):
            raise InputError(f"{where} is not UTF-8", "manifests are, and name the inputs", "rename the file or the folder: mv")
        return text
    if not text or (_RULE.fullmatch(text) and is_utf8(text)):
        return text
    return parse_yaml(text, where)


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _merge(target: dict[str, Any], values: dict[str, Any], source: str, sources: dict[str, str], prefix: str) -> None:
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value and isinstance(target.get(key), dict):  # merging an empty one would ignore it
            _merge(target[key], value, source, sources, f"{path}.")
            continue
        if key in target:
            for old in [k for k in sources if k == path or k.startswith(f"{path}.")]:
                del sources[old]
        target[key] = dict(value) if isinstance(value, dict) else value
        for leaf, _ in flatten(value, path):
            sources[leaf] = source


def _take_references(stage: Stage, merged: dict[str, Any], sources: dict[str, str]) -> dict[str, str]:
    references: dict[str, str] = {}
    for slot_name, slot in stage.inputs.items():
        if slot_name not in merged:
            continue
        value = merged.pop(slot_name)
        if slot.many and not isinstance(value, dict):
            raise ConfigError(
                f"{slot_name} takes several artifacts, each under a key of its own", f"got {value!r}", f"write {slot_name}.safety={value}"
            )
        given = {f"{slot_name}.{key}": item for key, item in value.items()} if slot.many else {slot_name: value}
        for key, item in given.items():
            if not isinstance(item, str):
                raise ConfigError(f"{key} must be a reference, not {item!r}", f"from {sources.get(key, 'a recipe')}", f"write {key}=NAME")
            if "$" in item:
                raise ConfigError(
                    f"{key} is '{item}': the shell variable in it was not expanded",
                    f"from {sources.get(key, 'a recipe')}",
                    f"give {key}=… on the command line",
                )
            references[key] = item
    return references


def _require_slots(stage: Stage, references: dict[str, str]) -> None:
    given = {key.split(".")[0] for key in references}
    for name, slot in stage.inputs.items():
        if not slot.optional and name not in given:
            raise InputError(
                f"safework {stage.name} needs {name}=…",
                f"{slot.doc} ({' or '.join(slot.kinds)})",
                f"safework artifacts ls --kind {slot.kinds[0]}",
            )
