"""Finding stages by entry point, without importing them until one is needed."""

from __future__ import annotations

import ast
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from safework_cli.core.errors import ConfigError, nearest

GROUP = "safework.stages"


@cache
def stage_entries() -> dict[str, EntryPoint]:
    """Command ("rl m3") → entry point, in the ladder's order where the command is ours, then by name."""
    order = ["data build", "data index", "sft", "verifier train", "rl m3", "rl efficient", "rl search", "eval", "search"]
    found = {entry.name.replace("-", " "): entry for entry in entry_points(group=GROUP)}
    return {name: found[name] for name in sorted(found, key=lambda n: (order.index(n) if n in order else len(order), n))}


def load_stage(name: str):
    """The stage of a command. Raises ConfigError with the nearest name where there is none."""
    entries = stage_entries()
    if name not in entries:
        raise ConfigError(f"no stage '{name}'{nearest(name, entries)}", f"there are {', '.join(entries)}", "safework doctor")
    return entries[name].load()


def stage_summary(name: str) -> str:
    """The first line of the stage module's docstring, read without running the module: ``--help`` must be instant."""
    spec = find_spec(stage_entries()[name].module)
    if spec is None or not spec.origin:
        return "(not importable: safework doctor)"
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
    return docstring.splitlines()[0] if docstring else ""
