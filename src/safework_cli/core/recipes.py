"""The recipes that come with safework: in the installed package, or in the checkout's own folder."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3] / "recipes"
SUFFIXES = (".yaml", ".sh", ".sbatch")


def recipes_folder() -> Path | None:
    """Where the recipes are; None in an installation without them."""
    installed = Path(str(files("safework_cli"))) / "recipes"
    return next((folder for folder in (installed, CHECKOUT) if folder.is_dir()), None)


def recipe_names() -> list[str]:
    """Every recipe and script by its path below the folder: "quickstart/sft.yaml", "quickstart.sh"."""
    folder = recipes_folder()
    found = folder.rglob("*") if folder else ()
    return sorted(path.relative_to(folder).as_posix() for path in found if folder and path.suffix in SUFFIXES and path.is_file())


def find_recipe(name: Path) -> Path | None:
    """The shipped recipe of a name, with or without "recipes/" before it; None where there is none."""
    folder = recipes_folder()
    text = name.as_posix().removeprefix("recipes/")
    return folder / text if folder and text in recipe_names() else None


def summary_of(path: Path) -> str:
    """The first comment of a recipe or script that is not a command."""
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.lstrip("# ").strip()
        if line.startswith("#") and not line.startswith("#!") and text and not text.startswith("safework "):
            return text
    return ""
