"""The JSON Schema of a stage's recipe, for editors and for whoever generates recipes."""

from __future__ import annotations

from typing import Any

from safework_cli.core.stage import Slot, Stage

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def recipe_schema(stage: Stage) -> dict[str, Any]:
    """What a recipe of a stage may hold: its settings, its inputs, and ``name``.

    Nothing is required at the top: recipes are merged, and the command line may give the rest.
    """
    schema = stage.Config.model_json_schema()
    schema.pop("required", None)
    inputs = {name: _slot_schema(slot) for name, slot in stage.inputs.items()}
    name = {"type": "string", "description": "The artifact's name."}
    return schema | {
        "$schema": DIALECT,
        "title": f"Recipe of safework {stage.name}",
        "description": stage.summary,
        "properties": inputs | {"name": name} | schema["properties"],
    }


def _slot_schema(slot: Slot) -> dict[str, Any]:
    description = f"{slot.doc} ({' or '.join(slot.kinds)}{', optional' if slot.optional else ''})"
    if slot.many:
        return {"type": "object", "additionalProperties": {"type": "string"}, "description": description}
    return {"type": "string", "description": description}
