"""The ladders of SafeWork-R1's four bases: planned without weights and without a network, and run on tiny models of their architectures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

from conftest import cli_environment
from families import FAMILIES, family_model
from safework_cli.core.artifacts import Store
from safework_cli.core.ladder import read_ladder
from tiny_vision import create

BASES = {"qwen2.5-vl-7b": 8292, "qwen2.5-vl-72b": 73409, "internvl3-78b": 78406, "deepseek-r1-70b": 70554}
"""With their millions of weights."""
TRAINED = ("sft", "kg", "m3", "efficient", "search")
TINY_ROWS = "data=safework-r1/tiny/data.yaml"


def file_of(base: str, name: str = "ladder") -> str:
    return f"safework-r1/{base}/{name}.yaml"


@pytest.fixture(scope="module")
def ladder(forks):
    """Runs a ladder on the store of a folder, with its steps as forks."""

    def run(store: Path, *words: str) -> subprocess.CompletedProcess[str]:
        command = [str(forks.folder / "safework"), "ladder", *words]
        return subprocess.run(command, env=cli_environment(Store(store)), capture_output=True, text=True, timeout=600)

    return run


@pytest.fixture(scope="module")
def rows(tmp_path_factory, ladder) -> Path:
    """A store with what needs no weights: made by one of the test processes, and a copy of it for each."""
    shared = tmp_path_factory.getbasetemp()
    shared = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "rows-of-safework-r1"
    with FileLock(f"{shared}.lock"):
        if not shared.exists():
            made_in = tmp_path_factory.mktemp("rows")
            only = [word for step in ("rows", "wiki", "saf") for word in ("--only", step)]
            for made in (
                ladder(made_in, "-c", file_of("qwen2.5-vl-72b"), TINY_ROWS, *only),
                ladder(made_in, "-c", file_of("deepseek-r1-70b"), "--only", "rows"),
            ):
                assert made.returncode == 0, made.stderr[-2000:]
            made_in.rename(shared)
    return shutil.copytree(shared, tmp_path_factory.mktemp("own") / "store")


@pytest.mark.parametrize("base", BASES)
def test_every_stage_is_planned_without_the_base(base, rows, ladder):
    planned = ladder(rows, "-c", file_of(base), *([] if base.startswith("deepseek") else [TINY_ROWS]), "--dry-run", "--json")
    assert planned.returncode == 0, planned.stderr[-2000:]
    steps = {step["name"]: step for step in json.loads(planned.stdout)["steps"]}
    assert set(steps) >= {*TRAINED, "eval-search", "report"} - ({"kg"} if base.startswith("deepseek") else set())
    starts = {"sft": "base", "kg": "sft", "m3": "kg" if "kg" in steps else "sft", "efficient": "m3", "search": "efficient"}
    for name in steps.keys() & TRAINED:
        plan = steps[name]["plan"]
        estimates = plan["estimates"]
        assert not plan["refusals"] and plan["plan"][0].startswith(f"train {{{starts[name]}}} ({BASES[base]} M weights)")
        assert estimates["memory"]["peak"] <= estimates["capacity"] and estimates["gpu_hours"] > 0, name
    assert "Traceback" not in planned.stderr and f"train {{base}} ({BASES[base]} M weights)" in planned.stderr


@pytest.mark.parametrize("base", BASES)
def test_the_ladders_differ_in_the_base_and_its_sizes_only(base):
    """One set of steps for all: with a stage more for the bases that have two M³ scripts."""
    own, first = (read_ladder([Path(file_of(name))]) for name in (base, next(iter(BASES))))
    for name, text in own.steps.items():
        other, same = first.steps[name], text
        if base.startswith("deepseek"):
            same = same.replace("svki", "svkng").replace("model={sft} data={rows}:rl verifiers", "model={kg} data={rows}:rl verifiers")
        assert same == other, name
    assert set(first.steps) - set(own.steps) == ({"kg"} if base.startswith("deepseek") else set())
    assert read_ladder([Path(file_of(base)), Path(file_of(base, "slurm"))]).slurm is not None


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("base", "architecture"),
    [
        ("qwen2.5-vl-7b", "qwen2_5_vl"),
        pytest.param("internvl3-78b", "internvl", marks=pytest.mark.slow),
        pytest.param("deepseek-r1-70b", "deepseek-r1-distill", marks=pytest.mark.slow),
    ],
)
def test_every_stage_runs_on_a_tiny_model(base, architecture, rows, ladder, tiny_model, tmp_path):
    """With the rows that were built before; Qwen2.5-VL-72B has 7B's architecture and steps."""
    folder = tmp_path / "base"
    if architecture in FAMILIES:
        family_model(tiny_model, FAMILIES[architecture], folder)
    else:
        create(architecture, tiny_model, folder)
    tiny = [
        "-c",
        "safework-r1/tiny/ladder.yaml",
        f"source={folder}",
        *(["data=safework-r1/text.yaml"] if base.startswith("deepseek") else []),
    ]
    done = ladder(rows, "-c", file_of(base), *tiny, "--only", "eval-search")
    assert done.returncode == 0, done.stderr[-3000:]
    made = dict(line.split("\t") for line in done.stdout.splitlines())
    store = Store(rows)
    lineage = {name: store.resolve(made[name]).manifest for name in made if name in TRAINED}
    assert list(lineage) == [name for name in TRAINED if name != "kg" or not base.startswith("deepseek")]
    steps = {name: manifest.metrics["steps"] for name, manifest in lineage.items()}
    assert steps == {name: 2 if name == "sft" else 1 for name in lineage}
    if base == "qwen2.5-vl-7b":  # whose rows have images
        assert (store.resolve(made["search"]).path / "preprocessor_config.json").exists()
