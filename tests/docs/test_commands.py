"""Each command that a page or a recipe's comment prints is one that safework accepts: its options, inputs and settings, with its recipes.

A shell reads the lines, with a function in safework's place that writes down its words. Nothing is run. Names of artifacts are not looked
up: what a plan refuses whatever they are (processes; verifiers that a reward names, or data that a setting measures on, which are not
given) is checked as well.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pages import PAGES, ROOT, files, name_of, shell_blocks
from safework_cli.cli.ladder import command_of, settings_of
from safework_cli.core.errors import ConfigError
from safework_cli.core.ladder import read_ladder
from safework_cli.core.registry import load_stage, stage_entries
from safework_cli.core.stage import Inputs, Plan
from safework_rl.routing import check_routes
from safework_sft.marks import refuse_unmeasured

SHELL = r"""
safework() { printf '%s\n' "$#" "$@" >> words; echo NAME; }
make() { :; }; docker() { :; }; apptainer() { :; }; sbatch() { :; }
"""
YOURS = {
    Path(name).name: (ROOT / "recipes" / name).read_text(encoding="utf-8")
    for name in ("tiny/sft.yaml", "quickstart/m3.yaml", "quickstart/eval.yaml")
}
"""Recipes that stand for a reader's own."""
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*") if path.suffix in (".yaml", ".sh", ".sbatch"))
_VARIABLE = re.compile(r"\$\{?([A-Z][A-Z0-9_]*)")
_COMMAND = re.compile(r"#\s+(?:\w+=\S*\s+)*(?:\w+=\$\()?(safework [a-z].*)")


def commands(script: str, folder: Path) -> list[list[str]]:
    """The words of each safework command of a script, in order."""
    given = "".join(f"{name}=NAME\n" for name in sorted(set(_VARIABLE.findall(script))))
    (folder / "words").write_text("")
    shell = [str(shutil.which("bash")), "-c", SHELL + given + script]
    done = subprocess.run(shell, cwd=folder, env={"PATH": ""}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr, f"{script}\n{done.stderr}"
    words = iter((folder / "words").read_text().splitlines())
    return [[next(words) for _ in range(int(count))] for count in words]


def of_comments(path: Path) -> str:
    """The commands in a recipe's comments, each with the lines that continue it."""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := _COMMAND.match(line):
            lines.append(match[1].removesuffix(")"))
        elif lines and re.match(r"#\s{5,}\S+=", line):
            lines[-1] += " " + line.removeprefix("#").strip()
    return "\n".join(line for line in lines if re.search(r" -c |=", line))


def refusals(words: list[str]) -> list[str]:
    """Why safework would not take a command, whatever artifacts there are."""
    name = command_of(words)[0]
    config = settings_of(words)
    if name == "ladder":
        read_ladder([Path(words[place + 1]) for place, word in enumerate(words) if word == "-c"])
    if name not in stage_entries():
        return []
    stage, plan = load_stage(name), Plan()
    if config.launch.world > 1 and not stage.many_processes:
        plan.refuse(f"{name} is one process")
    if name in ("rl m3", "rl efficient"):
        given = [match[1] for word in words if (match := re.match(r"verifiers\.(\w+)=", word))]
        check_routes(plan, config.rewards, config.drawn, Inputs({"verifiers": dict.fromkeys(given)}))
    if name == "sft" and config.verdict and not any(word.startswith(("verdict_data=", "eval_data=")) for word in words):
        try:
            refuse_unmeasured(config.verdict)
        except ConfigError as refusal:
            plan.refusals.append(refusal)
    return [refusal.what for refusal in plan.refusals]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch) -> Path:
    """A folder with the recipes, those that pages print, and those that they call a reader's own."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    printed = {name: text for page in PAGES for name, text in files(page).items()}
    for name, text in (YOURS | {"YOURS.yaml": "phases: [{tasks: [knowledge], share: 1}]\n"} | printed).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAFEWORK_DATA", str(tmp_path))
    return tmp_path


def test_the_commands_of_a_script_are_found(desk: Path):
    lines = [
        "OTHER='[{kind: starter}]'",
        'X=$(safework data build sources="$OTHER")',
        'RUN="safework eval model=$X"',
        "$RUN \\",
        "  limit=3 # why",
    ]
    script = "\n".join(lines)
    assert commands(script, desk) == [["data", "build", "sources=[{kind: starter}]"], ["eval", "model=NAME", "limit=3"]]
    assert refusals(["rl", "m3", "model=a", "data=b"]) == ["rewards.safety names the verifier 'safety'"]
    assert refusals(["sft", "-c", "recipes/quickstart/sft.yaml", "model=a", "data=b"]) == [
        "verdict.calibrate is given without rows to measure on"
    ]
    assert refusals(["eval", "model=a", "launch={strategy: ddp, processes: 2}"]) == ["eval is one process"]


@pytest.mark.parametrize("page", [page for page in PAGES if any("safework" in block.text for block in shell_blocks(page))], ids=name_of)
def test_the_commands_of_a_page_are_accepted(page: Path, desk: Path):
    for block in (block for block in shell_blocks(page) if re.search(r"\bsafework [a-z]", block.text)):
        for words in commands(block.text, desk):
            assert not refusals(words), f"{name_of(page)}, line {block.line}: safework {' '.join(words)}"


@pytest.mark.parametrize("recipe", [path for path in RECIPES if of_comments(path)], ids=name_of)
def test_the_commands_in_the_comments_of_a_recipe_are_accepted(recipe: Path, desk: Path):
    for words in commands(of_comments(recipe), desk):
        assert not refusals(words), f"{name_of(recipe)}: safework {' '.join(words)}"
