"""What packages register by entry point, ours and a third party's alike: stages, rules, losses, rewards, metrics, suites.

    [project.entry-points."safework.losses"]
    my-loss = "my_package.losses:my_loss"

Names are listed without importing anything; the object is imported when it is first used.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safework_cli.core.errors import ConfigError, nearest

GROUP = "safework.stages"
LADDER = ("data build", "data index", "sft", "verifier train", "rl m3", "rl efficient", "rl search", "eval", "search")
"""The order in which ``--help`` lists our stages."""


@cache
def entries(group: str) -> dict[str, EntryPoint]:
    """Name → entry point of a group ("safework.losses"), by name; where two packages use a name, the first one installed has it."""
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=group):
        found.setdefault(entry.name, entry)
    return dict(sorted(found.items()))


def load_registered(group: str, name: str, what: str, kind: type | None = None) -> Any:
    """The object that is registered under a name.

    Args:
        group: of entry points, such as "safework.losses".
        what: what the group holds, for the error ("loss").
        kind: the class that the object must be an instance of, with this name as its ``name``; None where any object will do.

    Raises:
        ConfigError: nothing is registered under the name, it cannot be imported, or it is not of that kind.
    """
    known = entries(group)
    if name not in known:
        raise ConfigError(f"no {what} '{name}'{nearest(name, known)}", f"registered: {', '.join(known) or 'none'}", "safework doctor")
    try:
        loaded = known[name].load()
    except (ImportError, AttributeError) as error:
        distribution = known[name].dist
        package = distribution.name if distribution else "an unknown package"
        raise ConfigError(
            f"the {what} '{name}' cannot be imported", f"{known[name].value} of {package}: {error}", f"fix or remove {package}"
        ) from error
    if kind is not None and (not isinstance(loaded, kind) or getattr(loaded, "name", None) != name):
        other = f"the {what} '{getattr(loaded, 'name', '')}'" if isinstance(loaded, kind) else f"a {type(loaded).__name__}"
        it_is = f"'{name}' is registered as a {what}, and {known[name].value} is {other}"
        raise ConfigError(it_is, "", "fix the entry point of its package")
    return loaded


@cache
def stage_entries() -> dict[str, EntryPoint]:
    """Command ("rl m3") → entry point, in the ladder's order where the command is ours, then by name."""
    found = {name.replace("-", " "): entry for name, entry in entries(GROUP).items()}
    return {name: found[name] for name in sorted(found, key=lambda n: (LADDER.index(n) if n in LADDER else len(LADDER), n))}


def load_stage(name: str):
    """The stage of a command. Raises ConfigError with the nearest name where there is none."""
    known = stage_entries()
    if name not in known:
        raise ConfigError(f"no stage '{name}'{nearest(name, known)}", f"there are {', '.join(known)}", "safework doctor")
    return known[name].load()


def stage_summary(name: str) -> str:
    """The first line of the stage module's docstring, read without running the module: ``--help`` must be instant."""
    spec = find_spec(stage_entries()[name].module)
    if spec is None or not spec.origin:
        return "(not importable: safework doctor)"
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
    return docstring.splitlines()[0] if docstring else ""
