"""``safework recipes``: the recipes that come with safework."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any, Optional

import typer

from safework_cli.cli.hints import HintGroup
from safework_cli.core.errors import InputError, nearest
from safework_cli.core.paths import user_path
from safework_cli.core.recipes import find_recipe, recipe_names, recipes_folder, summary_of
from safework_cli.core.terminal import console


class RecipesGroup(HintGroup):
    word = "recipes"


def command() -> Any:
    app = typer.Typer(
        cls=RecipesGroup,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        help="List, show and copy the recipes that come with safework.",
    )
    app.callback()(lambda: None)

    @app.command(name="ls", help="List recipes. Each name works after -c; a ladder.yaml chains the stages: safework ladder -c NAME.")
    def list_recipes() -> None:
        from rich.table import Table

        table = Table("recipe", "what it does", box=None, header_style="bold")
        for name in recipe_names():
            table.add_row(name, summary_of(_recipe(name)))
        console(width=None if sys.stdout.isatty() else 200).print(table)

    @app.command(help="Print a recipe.")
    def show(name: str = typer.Argument(..., metavar="NAME", help="As `recipes ls` lists it.")) -> None:
        print(_recipe(name).read_text(encoding="utf-8"), end="")

    @app.command(help="Copy a recipe, a folder of them or all of them, to change them. Prints where they are.")
    def copy(
        name: Optional[str] = typer.Argument(
            None, metavar="[NAME]", help="A recipe or a folder; all where none is given.", show_default=False
        ),
        to: Path = typer.Option(Path(), "--to", help="The folder to copy into."),
    ) -> None:
        names = [item for item in recipe_names() if name is None or item == name or item.startswith(f"{name.rstrip('/')}/")]
        if not names:
            _recipe(name or "")
        base = Path() if name and len(names) == 1 else Path("recipes")
        to = user_path(to)
        targets = {item: to / base / (Path(item).name if base == Path() else item) for item in names}
        not_folders = (folder for target in targets.values() for folder in target.parents if folder.exists() and not folder.is_dir())
        if blocking := next(not_folders, None):
            raise InputError(f"{blocking} is not a folder", "", "name another folder: --to FOLDER")
        if existing := [target for target in targets.values() if target.exists() or target.is_symlink()]:
            raise InputError(f"{existing[0]} exists", "a copy never writes over anything", "name another folder: --to FOLDER")
        for item, target in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(_recipe(item), target)
            print(target)

    return typer.main.get_command(app)


def _recipe(name: str) -> Path:
    path = find_recipe(Path(name))
    if path is None:
        do = "safework recipes ls" if recipes_folder() else "reinstall safework: this installation has no recipes"
        raise InputError(f"no recipe '{name}'{nearest(name, recipe_names())}", "", do)
    return path
