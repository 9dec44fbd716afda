"""The recipes that come with safework, and the JSON Schema of every stage's recipe."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from safework_cli.cli.ladder import Runner
from safework_cli.core import recipes
from safework_cli.core.config import read_recipe, resolve
from safework_cli.core.errors import InputError
from safework_cli.core.ladder import Step, in_order, read_ladder
from safework_cli.core.recipe_schema import recipe_schema
from safework_cli.core.registry import load_stage, stage_entries

LADDERS = {
    "quickstart/ladder.yaml": ["quickstart/ladder.yaml"],
    "quickstart/with-xstest.yaml": ["quickstart/ladder.yaml", "quickstart/with-xstest.yaml"],
    "tiny/ladder.yaml": ["quickstart/ladder.yaml", "tiny/ladder.yaml"],
    "smollm2/ladder.yaml": ["smollm2/ladder.yaml"],
    "images/scratch/ladder.yaml": ["images/scratch/ladder.yaml"],
    "images/smollm2/ladder.yaml": ["images/smollm2/ladder.yaml"],
    "safework-r1/tiny/ladder.yaml": ["safework-r1/qwen2.5-vl-7b/ladder.yaml", "safework-r1/tiny/ladder.yaml"],
} | {
    f"safework-r1/{base}/{part}.yaml": [f"safework-r1/{base}/{name}.yaml" for name in dict.fromkeys(("ladder", part))]
    for base in ("qwen2.5-vl-7b", "qwen2.5-vl-72b", "internvl3-78b", "deepseek-r1-70b")
    for part in ("ladder", "slurm")
}  # fmt: skip
"""Shipped ladder → the files that it is used with."""
SHAPE = "shape.yaml"
"""A ladder's shape of its base, which is not a recipe of a stage."""
NAMES = [name for name in recipes.recipe_names() if name.endswith(".yaml") and name not in LADDERS and not name.endswith(SHAPE)]


def stage_of(name: str) -> str:
    """The stage of a shipped recipe: the command in its comment, or that of the recipe of the same name that its folder's belong to."""
    text = recipes.find_recipe(Path(name)).read_text()
    if match := re.search(rf"safework ((?:[a-z0-9-]+ )+)-c [^\n]*{re.escape(name)}", text):
        return match[1].strip()
    return stage_of(
        next(f"{folder}/{Path(name).name}" for folder in ("quickstart", "safework-r1") if f"{folder}/{Path(name).name}" in NAMES)
    )


def test_there_are_recipes():
    assert "quickstart/sft.yaml" in NAMES and "quickstart.sh" in recipes.recipe_names() and len(NAMES) > 20


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_recipe_is_valid_by_its_stage_and_by_its_schema(name):
    stage = load_stage(stage_of(name))
    values = read_recipe(Path(name)).values
    assert not list(Draft202012Validator(recipe_schema(stage)).iter_errors(values))
    if name.startswith("quickstart/") and name != "quickstart/xstest.yaml":
        needed = [f"{key}.x=a" if slot.many else f"{key}=a" for key, slot in stage.inputs.items()]
        resolve(stage, [Path(name)], needed, environ={})


@pytest.mark.parametrize("name", LADDERS)
def test_every_shipped_ladder_is_valid(name, monkeypatch, tmp_path):
    """Names, commands, recipes and settings; and it is read from any folder."""
    monkeypatch.chdir(tmp_path)
    ladder = read_ladder([Path(file) for file in LADDERS[name]])
    steps = in_order({step: Step(step, text) for step, text in ladder.steps.items()}, ladder.steps, ladder.variables)
    assert [step.name for step in steps] == list(ladder.steps), "each comes after what it needs as it is written"
    Runner(ladder, steps, None, wait=ladder.slurm is not None).check()
    assert recipes.summary_of(recipes.find_recipe(Path(name))) and f"-c {name}" in recipes.find_recipe(Path(name)).read_text()


@pytest.mark.parametrize("name", list(stage_entries()))
def test_the_schema_of_every_stage_is_valid_and_refuses_what_the_stage_refuses(name):
    schema = recipe_schema(load_stage(name))
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    assert validator.is_valid({"seed": 1, "name": "mine"})
    assert not validator.is_valid({"sed": 1}) and not validator.is_valid({"seed": "one"}) and not validator.is_valid({"seed": -1})
    blocks = [schema, *(block for block in schema.get("$defs", {}).values() if "properties" in block)]
    assert not [key for block in blocks for key, value in block["properties"].items() if not value.get("description")]


def test_a_shipped_name_is_used_where_there_is_no_such_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = read_recipe(Path("quickstart/sft.yaml"))
    assert shipped.values["freeze_embeddings"] is True and shipped.values == read_recipe(Path("recipes/quickstart/sft.yaml")).values
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart" / "sft.yaml").write_text("max_steps: 3\n")
    assert read_recipe(Path("quickstart/sft.yaml")).values == {"max_steps": 3}
    for name in ("quickstart/stf.yaml", "../pyproject.toml", "quickstart"):
        with pytest.raises(InputError, match="no recipe at"):
            read_recipe(Path(name))


def test_the_commands(cli, tmp_path):
    listed = cli("recipes", "ls").stdout
    assert "quickstart/sft.yaml" in listed and "Chain-of-thought SFT of the quickstart" in listed
    assert "freeze_embeddings: true" in cli("recipes", "show", "quickstart/sft.yaml").stdout
    unknown = cli("recipes", "show", "quickstart/stf.yaml")
    assert unknown.returncode == 3 and "did you mean 'quickstart/sft.yaml'" in unknown.stderr
    one = cli("recipes", "copy", "quickstart/sft.yaml", cwd=tmp_path)
    assert one.stdout == "sft.yaml\n" and (tmp_path / "sft.yaml").exists()
    again = cli("recipes", "copy", "quickstart/sft.yaml", cwd=tmp_path)
    assert again.returncode == 3 and "sft.yaml exists" in again.stderr
    assert cli("recipes", "copy", cwd=tmp_path).returncode == 0
    for words in (("quickstart/sft.yaml",), ()):
        blocked = cli("recipes", "copy", *words, "--to", "sft.yaml/deeper", cwd=tmp_path)
        assert blocked.returncode == 3 and "sft.yaml is not a folder" in blocked.stderr
    assert (tmp_path / "recipes" / "quickstart.sh").exists() and (tmp_path / "recipes" / "quickstart" / "sft.yaml").exists()
    schema = json.loads(cli("schema", "rl", "m3").stdout)
    assert schema["title"] == "Recipe of safework rl m3" and schema["$schema"].endswith("2020-12/schema")
    assert cli("schema", "rl-m3").returncode == 0 and "did you mean 'sft'" in cli("schema", "stf").stderr
