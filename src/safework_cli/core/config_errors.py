"""What pydantic says of wrong settings, as one error that names every wrong key and value with its source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from safework_cli.core.errors import ConfigError
from safework_cli.core.other_names import did_you_mean, renamed
from safework_cli.core.stage import Stage

MAX_SHOWN = 80
"""Characters of a wrong value, and of a key, that a message shows."""
MAX_EXPLAINED = 10
"""Wrong keys and values that one message names."""


def explain_validation(stage: Stage, error: ValidationError, sources: Mapping[str, str]) -> ConfigError:
    """One ConfigError for everything that pydantic found; the first in full, the others a line each."""
    details = error.errors()
    explained = [_explain_one(stage, detail, sources) for detail in details[:MAX_EXPLAINED]]
    first = explained[0]
    more = "".join(f"\n  also: {e.what}" for e in explained[1:])
    if len(details) > MAX_EXPLAINED:
        more += f"\n  and {len(details) - MAX_EXPLAINED:,} more"
    return ConfigError(first.what, first.why + more, first.do)


def _explain_one(stage: Stage, detail: ErrorDetails, sources: Mapping[str, str]) -> ConfigError:
    loc, field = _place(stage.Config, detail["loc"])
    path = ".".join(str(part) for part in loc)[:MAX_SHOWN]
    words = [part for part in loc if isinstance(part, str)]
    top = ".".join(words)
    source = next(
        (sources[k] for k in (path, top) if k in sources),
        next((s for k, s in sources.items() if k.startswith(f"{top}.") or top.startswith(f"{k}.")), ""),
    )
    origin = f"from {source}" if source else ""
    listing = f"safework {stage.name} --help lists the keys"
    if detail["type"] == "extra_forbidden":
        valid = [*known_keys(stage.Config), *stage.inputs, "name"]
        if now := renamed(path, detail["input"], valid):
            return ConfigError(f"unknown key: {now[0]}", origin, f"write {now[1]}")
        return ConfigError(f"unknown key '{path}'{did_you_mean(path, valid)}", origin, listing)
    if detail["type"] == "missing":
        meaning = " ".join((field.description or "").split()) if field else ""
        return ConfigError(
            f"{path} must be given{f': {meaning}' if meaning else ''}", f"it has no default; {origin}".removesuffix("; "), listing
        )
    what = {
        "float_type": "a number", "int_type": "a whole number", "bool_type": "true or false", "string_type": "text", "list_type": "a list",
        "float_parsing": "a number", "int_from_float": "a whole number",
        "finite_number": "a finite number", "int_parsing_size": "a smaller number",
    }.get(detail["type"])  # fmt: skip
    bounds = {"greater_than": "above", "greater_than_equal": "at least", "less_than": "below", "less_than_equal": "at most"}
    if detail["type"] in bounds:
        limit = next(iter(detail["ctx"].values()))
        what = f"{bounds[detail['type']]} {f'{int(limit):,}' if limit == int(limit) else limit}"
    if what:
        return ConfigError(f"{path} must be {what}, not {_shown(detail['input'])}", origin, listing)
    if detail["type"] in ("value_error", "assertion_error"):
        return ConfigError(f"{path + ': ' if path else ''}{detail['msg'].removeprefix('Value error, ')}", origin, listing)
    return ConfigError(f"{path}: {detail['msg']}, not {_shown(detail['input'])}", origin, listing)


def known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key that a configuration has, blocks inside lists without their index."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        for block in _blocks(field.annotation):
            yield from known_keys(block, f"{prefix}{name}.")


def _blocks(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _blocks(argument)


def _place(model: type[BaseModel], loc: Sequence[str | int]) -> tuple[list[str | int], FieldInfo | None]:
    """Where in a configuration an error lies, as a recipe writes it, and the field there. pydantic names the member of a union
    ("sources.0.file.path") where a recipe has none."""
    path: list[str | int] = []
    blocks: list[type[BaseModel]] = [model]
    field: FieldInfo | None = None
    for part in loc:
        found = next((block.model_fields[part] for block in blocks if isinstance(part, str) and part in block.model_fields), None)
        if found is not None:
            field, blocks = found, list(_blocks(found.annotation))
        else:
            tagged = [block for block in blocks if _tags(block, str(part))]
            if tagged and isinstance(part, str) and path and isinstance(path[-1], int):
                blocks = tagged
                continue
        path.append(part)
    return path, field


def _tags(block: type[BaseModel], tag: str) -> bool:
    """Whether a member of a union is known by a tag (`kind: file`)."""
    return any(get_origin(field.annotation) is Literal and tag in get_args(field.annotation) for field in block.model_fields.values())


def _shown(value: Any) -> str:
    """A value of a setting as a message shows it: a number of 4,000 digits is not repeated."""
    text = str(value) if isinstance(value, float) else repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
