"""The JSON schema of a row: what ``data/row.py`` means, for programs that write rows without this toolkit.

``meta`` is an object here, and JSON text in Parquet (``row.arrow_schema``); ``Row.from_record`` takes both.
"""

from __future__ import annotations

from typing import Any

from safework_cli.data.row import ROLES, SCHEMA_VERSION, SPLITS, TASKS

_TEXT = {"type": ["string", "null"]}


def _list_of_texts(description: str) -> dict[str, Any]:
    return {"type": "array", "items": {"type": "string"}, "description": description}


META: dict[str, dict[str, Any]] = {
    "group": {"type": "string", "description": "rows of one group never fall on two sides of a split; default: the row's id"},
    "language": {"enum": ["en", "zh"]},
    "answer_type": {"enum": ["exact", "choice", "choices", "math", "contains", "constraints"], "description": "how answer is compared"},
    "aliases": _list_of_texts("further accepted answers"),
    "choices": _list_of_texts("the texts of a multiple-choice question, in order A, B, C, …"),
    "stem": {"type": "string", "description": "the bare question, without options and instructions"},
    "finish_reason": {"type": "string", "description": '"length" where the reply was cut: such a row is dropped'},
    "label": {"type": "string", "description": "the gold label of the last assistant message"},
    "annotators": _list_of_texts("the labels of two people who labelled it one by one"),
    "constraints": {"type": "array", "items": {"type": "object"}, "description": "instruction constraints that a program checks"},
    "passages": _list_of_texts("ids of the passages that hold the answer"),
    "pair": {"type": "string", "description": "id of the harmful prompt that a look-alike was written against, or the reverse"},
    "target": {"type": "string", "description": "what an attack is after: splits and decontamination go by it"},
    "jailbreak": {"type": "boolean", "description": "the prompt is an attack that hides what it asks: judged by the strict reading"},
    "operations": _list_of_texts("cognitive operations found in the thought, in order"),
    "verdict": {
        "type": "array",
        "items": {"type": "integer"},
        "description": "start and end, in the last assistant message, of the word that states the decision",
    },
    "shows": _list_of_texts("phrases that are true of the row's images, for the visual-focus reward"),
    "shows_not": _list_of_texts("phrases that are not true of them"),
    "safety_warning": {"type": "string", "description": "what is dangerous about the prompt with its image, for a judge that reads it"},
    "template": {"type": "string", "description": "what the prompt was written with, apart from its topic"},
    "scores": {"type": "object", "additionalProperties": {"type": "number"}, "description": "verifier → score that the reply was kept by"},
}
"""Keys of ``meta`` that stages understand; others are kept as they are."""


_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str, "integer": int, "boolean": bool, "number": (int, float), "object": dict, "array": list,
}  # fmt: skip


def meta_problem(meta: dict[str, Any]) -> str | None:
    """The first key of ``meta`` whose value is not what ``META`` says, or None. (A validator of schemas would take longer than all other
    checks of a row.)"""
    for key, value in meta.items():
        wanted = META.get(key)
        if wanted is None:
            continue
        if not _fits(value, wanted):
            kind = wanted.get("type") or f"one of {', '.join(wanted['enum'])}"
            return f"meta.{key} is {str(value)[:40]!r}, not {kind}"
    return None


def _fits(value: Any, wanted: dict[str, Any]) -> bool:
    if "enum" in wanted:
        return value in wanted["enum"]
    if not isinstance(value, _TYPES[wanted["type"]]) or (isinstance(value, bool) and wanted["type"] in ("number", "integer")):
        return False
    if isinstance(value, list):
        return all(_fits(item, wanted["items"]) for item in value)
    inner = wanted.get("additionalProperties")
    return not isinstance(value, dict) or not inner or all(_fits(item, inner) for item in value.values())


def row_schema() -> dict[str, Any]:
    """A JSON schema (draft 2020-12). The version counts up with every change that makes an older row invalid."""
    message = {
        "type": "object",
        "properties": {"role": {"enum": list(ROLES)}, "content": {"type": "string", "minLength": 1, "pattern": r"\S"}},
        "required": ["role", "content"],
        "additionalProperties": False,
    }
    image = {
        "type": "object",
        "properties": {"bytes": {"type": ["string", "null"], "contentEncoding": "base64"}, "path": _TEXT},
        "additionalProperties": False,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"safework:row:{SCHEMA_VERSION}",
        "title": "safework row",
        "type": "object",
        "properties": {
            "id": {"type": "string", "minLength": 1, "description": "unique within a dataset"},
            "task": {"enum": list(TASKS), "description": "routes the row to its verifiers"},
            "messages": {
                "type": "array",
                "items": message,
                "minItems": 1,
                "description": "user and assistant in turns, after an optional system message",
            },
            "images": {"type": "array", "items": image, "description": "one for each <image> tag in the messages, in order"},
            "answer": _TEXT | {"description": "the gold answer where one exists"},
            "category": _TEXT | {"description": "a topic within the task"},
            "harmful": {"type": ["boolean", "null"], "description": "whether the prompt asks for something harmful"},
            "source": {"type": "string"},
            "licence": {"type": "string"},
            "split": {"enum": [*SPLITS, ""]},
            "meta": {"type": "object", "properties": META, "additionalProperties": True},
        },
        "required": ["id", "task", "messages"],
        "additionalProperties": False,
    }
