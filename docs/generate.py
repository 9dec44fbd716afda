"""Writes docs/reference: every stage's inputs and settings, what is registered by entry point, and what a manifest records.

    python docs/generate.py [FOLDER]

The pages say what the installed schemas say, a third party's stages included, so they are made when the site is built
(``make docs``) and are not kept in the repository: a copy would have to follow every change of a setting.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from safework_cli.core.artifacts.manifest import Manifest
from safework_cli.core.registry import load_stage, stage_entries
from safework_cli.core.stage import Stage

FOLDER = Path(__file__).resolve().parent / "reference"
GROUPS = {
    "safework.rules": "Rules: verifiers without a model",
    "safework.losses": "Losses of the RL stages",
    "safework.rewards": "Rewards of the RL stages",
    "safework.objectives": "Objectives: how advantages are made",
    "safework.metrics": "Metrics of evaluation",
    "safework.suites": "Evaluation suites",
}
"""Entry point groups that have a table each, where something is registered in them."""
ROOT_PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
_BOUNDS = {"minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}"}


def cell(text: Any) -> str:
    """Text as one cell of a Markdown table. Code between backticks stays as it is: Markdown shows an entity there letter by letter."""
    parts = re.split(r"(`[^`]*`)", re.sub(r"\s+", " ", str(text).replace("``", "`")).replace("|", "\\|"))
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts).strip()


def code(value: Any) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`".replace("|", "\\|")


def number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) and abs(value) < 10**15 else f"{value:g}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


def first_line(registered: Any) -> str:
    """What a registered object says of itself in one sentence; of a suite or metric its ``summary``."""
    text = getattr(registered, "summary", None) or inspect.getdoc(registered) or ""
    untried = " (not tried here)" if getattr(registered, "tried", True) is False else ""
    return cell(str(text).partition("\n\n")[0]) + untried


class WithDefaults(GenerateJsonSchema):
    """A schema that shows the defaults which a factory makes, too."""

    def default_schema(self, schema: Any) -> JsonSchemaValue:
        if (factory := schema.get("default_factory")) and not schema.get("default_factory_takes_data"):
            schema = {**schema, "default": factory()}
        return super().default_schema(schema)


class Settings:
    """The settings of one schema: a table of the top level, then one of each block that lists hold."""

    def __init__(self, model: type[BaseModel]):
        schema = model.model_json_schema(schema_generator=WithDefaults)
        self.definitions = schema.get("$defs", {})
        self.blocks: dict[str, dict[str, Any]] = {}
        self.rows = list(self._rows(schema, ""))

    def text(self) -> str:
        parts = [table(["setting", "type", "default", "bounds", "meaning"], self.rows)]
        written: set[str] = set()
        while waiting := [name for name in self.blocks if name not in written]:  # blocks hold blocks
            for name in waiting:
                written.add(name)
                rows = list(self._rows(self.blocks[name], ""))
                about = cell(self.blocks[name].get("description", ""))
                parts.append(f"### {name}\n\n{about}\n\n" + table(["key", "type", "default", "bounds", "meaning"], rows))
        return "\n".join(parts)

    def _rows(self, schema: dict[str, Any], prefix: str):
        required = schema.get("required", [])
        for name, field in schema.get("properties", {}).items():
            shape = self._resolved(field)
            key = f"{prefix}{name}"
            if "properties" in shape and len(self._choices(field)) == 1:
                yield from self._rows(shape, f"{key}.")
                continue
            default = "required" if name in required else code(field.get("default"))
            yield [f"`{key}`", cell(self._type(field)), default, cell(self._bounds(field)), cell(field.get("description", ""))]

    def _resolved(self, field: dict[str, Any]) -> dict[str, Any]:
        if reference := field.get("$ref"):
            return self.definitions[reference.rsplit("/", 1)[-1]]
        return field

    def _choices(self, field: dict[str, Any]) -> list[dict[str, Any]]:
        return field.get("anyOf") or field.get("oneOf") or [field]

    def _type(self, field: dict[str, Any]) -> str:
        return " or ".join(dict.fromkeys(self._one_type(choice) for choice in self._choices(field)))

    def _one_type(self, choice: dict[str, Any]) -> str:
        if "anyOf" in choice or "oneOf" in choice:
            return self._type(choice)
        if reference := choice.get("$ref"):
            name = reference.rsplit("/", 1)[-1]
            shape = self.definitions[name]
            if "properties" not in shape:
                return self._type(shape)
            self.blocks[name] = shape
            return name
        if "enum" in choice or "const" in choice:
            return ", ".join(f"`{value}`" for value in choice.get("enum", [choice.get("const")]))
        kind = choice.get("type", "any")
        if kind == "array":
            return f"list of {self._type(choice['items'])}" if choice.get("items") else "list"
        if kind == "object":
            values = choice.get("additionalProperties")
            return f"mapping to {self._type(values)}" if isinstance(values, dict) and values else "mapping"
        return {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}.get(kind, kind)

    def _bounds(self, field: dict[str, Any]) -> str:
        found = {}
        for choice in self._choices(field):
            inner = choice.get("items") or choice.get("additionalProperties")
            for place in (self._resolved(choice), inner if isinstance(inner, dict) else {}):
                found |= {words.format(number(place[key])): None for key, words in _BOUNDS.items() if key in place}
        return ", ".join(found)


def stage_page(name: str, stage: Stage) -> str:
    inputs = [
        [
            f"`{key}.NAME`" if slot.many else f"`{key}`",
            " or ".join([*slot.kinds, *(["`rule:NAME`"] if slot.external else [])]),
            "no" if slot.optional else "yes",
            cell(slot.doc),
        ]
        for key, slot in stage.inputs.items()
    ]
    about = inspect.getdoc(inspect.getmodule(stage)) or stage.summary
    parts = [f"# safework {name}\n\n{cell(stage.summary)}\n"]
    if rest := about.partition("\n\n")[2]:
        parts.append(f"```text\n{rest.replace('``', '')}\n```\n")
    parts.append(f"Makes an artifact of kind **{stage.output}**. Version {stage.version} of the stage.\n")
    if inputs:
        parts.append("## Inputs\n\n" + table(["input", "kind", "required", "use"], inputs))
    parts.append("## Settings\n\n" + Settings(stage.Config).text())
    return "\n".join(parts)


def registered_page() -> str:
    parts = ["# Registered by entry point\n\nA package adds a name with one line of registration; ours are listed in the same way.\n"]
    for group, title in GROUPS.items():
        entries = sorted(entry_points(group=group), key=lambda entry: entry.name)
        if entries:
            rows = [[f"`{entry.name}`", f"`{entry.value}`", first_line(entry.load())] for entry in entries]
            parts.append(f"## {title}\n\nGroup `{group}`.\n\n" + table(["name", "object", "what it is"], rows))
    return "\n".join(parts)


def manifest_page() -> str:
    head = (
        "# Manifest and metrics\n\nEvery artifact has a `manifest.json` with the fields below. `metrics` holds the stage's headline "
        "numbers (`safework artifacts show REF` prints them); numbers by step are in `safework/metrics.jsonl` of the artifact.\n"
    )
    return head + "\n" + Settings(Manifest).text()


def pages() -> dict[str, str]:
    """File name → text of every page of the reference."""
    stages = {name: load_stage(name) for name in stage_entries()}
    made = {f"{name.replace(' ', '-')}.md": stage_page(name, stage) for name, stage in stages.items()}
    links = "\n".join(f"- [safework {name}]({name.replace(' ', '-')}.md): {cell(stage.summary)}" for name, stage in stages.items())
    toctree = "\n".join(["```{toctree}", ":hidden:", "", *made, "registered.md", "manifest.md", "```"])
    made["index.md"] = (
        "# Reference\n\nWritten from the schemas of the installed version. `safework STAGE --help` prints the same settings.\n\n"
        f"{links}\n- [Registered by entry point](registered.md): rules, losses, rewards, metrics and suites\n"
        f"- [Manifest and metrics](manifest.md)\n\n{toctree}\n"
    )
    return made | {"registered.md": registered_page(), "manifest.md": manifest_page()}


def root_pages() -> dict[str, str]:
    """The pages of the repository's root, for the site: their links lead out of ``docs/reference``."""
    made = {}
    for name in ROOT_PAGES:
        text = (FOLDER.parents[1] / name).read_text(encoding="utf-8")
        text = text.replace("](docs/", "](../")
        for other in ROOT_PAGES:
            text = text.replace(f"]({other}", f"]({other.lower()}")
        made[name.lower()] = text
    return made


def write(folder: Path = FOLDER) -> None:
    """Writes all pages into a folder, and removes pages of stages that are no longer there."""
    folder.mkdir(parents=True, exist_ok=True)
    made = pages() | root_pages()
    for old in folder.glob("*.md"):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
