"""``safework schema``: a stage's recipe as JSON Schema."""

from __future__ import annotations

import json
from typing import Any

import typer


def command() -> Any:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)

    @app.command(
        name="schema",
        help="Print the JSON Schema of a stage's recipe. An editor with a YAML language server checks and completes a recipe whose first "
        "line is `# yaml-language-server: $schema=sft.schema.json`.",
    )
    def schema(words: list[str] = typer.Argument(..., metavar="STAGE", help="As typed: sft, rl m3.")) -> None:
        from safework_cli.core.recipe_schema import recipe_schema
        from safework_cli.core.registry import load_stage

        print(json.dumps(recipe_schema(load_stage(" ".join(words).replace("-", " "))), indent=2))

    return typer.main.get_command(app)
