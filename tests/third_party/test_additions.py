"""A package of another author adds one of each kind: one file and one line each, and each runs."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from conftest import SAFEWORK, cli_environment

ACME = Path(__file__).parent / "acme"


@pytest.fixture
def acme(store, tmp_path):
    """Runs ``safework`` with the package on the path, described as pip describes what it installs."""
    project = tomllib.loads((ACME / "pyproject.toml").read_text())["project"]
    info = tmp_path / "site" / "acme_safework-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = [[f"[{group}]", *(f"{name} = {value}" for name, value in names.items())] for group, names in project["entry-points"].items()]
    (info / "entry_points.txt").write_text("\n".join(line for group in groups for line in group))
    path = os.pathsep.join(filter(None, [str(info.parent), str(ACME / "src"), os.environ.get("PYTHONPATH", ""), *sys.path]))

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        environment = cli_environment(store) | {"PYTHONPATH": path}
        return subprocess.run([*SAFEWORK, *words], env=environment, capture_output=True, text=True, timeout=280)

    return run


RL = (
    "max_steps=1", "num_generations=2", "per_device_train_batch_size=4", "gradient_accumulation_steps=1", "max_completion_length=12",
    "preflight=0", "require_gradient=false", "phases=[{tasks: [general], share: 1}]", "warmup_ratio=0",
)  # fmt: skip


def test_one_line_of_registration_each():
    groups = tomllib.loads((ACME / "pyproject.toml").read_text())["project"]["entry-points"]
    added = {group.removeprefix("safework."): len(names) for group, names in groups.items()}
    assert added == dict.fromkeys(("losses", "rewards", "objectives", "rules", "metrics", "suites", "stages"), 1)
    files = [entry.split(":")[0].rsplit(".", 1)[-1] for names in groups.values() for entry in names.values()]
    assert len(set(files)) == len(files)  # a file for each


def test_a_stage_is_a_package_and_a_line(acme, store):
    assert "Write a dataset of greetings." in acme("--help").stdout
    done = acme("hello", "greetings=3")
    assert (done.returncode, done.stdout.strip()) == (0, "dataset/greetings@v1"), done.stderr
    assert acme("hello", "greetings=3").stdout == done.stdout  # recognised as done


def test_a_loss_a_reward_and_an_objective_train(acme, store, tiny_artifact, toy_data):
    words = ("rl", "m3", f"model={tiny_artifact.ref}", f"data={toy_data.ref}:rl", *RL)
    done = acme(
        *words, "algorithm=reinforce", "loss.scale=2", "objective=plain", "objective_settings.scale=3", "rewards.general={short: 1}"
    )
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line) for line in (store.resolve(done.stdout.strip()).path / "safework" / "metrics.jsonl").read_text().splitlines()]
    assert any("reinforce/gain" in step for step in steps)
    assert store.resolve(done.stdout.strip()).manifest.config["objective_settings"] == {"scale": 3.0}
    misspelt = acme(*words, "algorithm=reinforc")
    assert misspelt.returncode == 2 and "reinforce" in misspelt.stderr


def test_a_rule_judges(acme, store):
    data = acme("hello").stdout.strip()
    done = acme("verifier", "score", f"data={data}", "rules=[polite]")
    assert done.returncode == 0, done.stderr


def test_a_suite_and_a_metric_evaluate(acme, store, tiny_artifact, tmp_path):
    (tmp_path / "sums.txt").write_text("2+2 = 4\n3+4 = 7\n")
    words = ("eval", f"model={tiny_artifact.ref}", f"suites_folder={tmp_path}", "max_tokens=6")
    done = acme(
        *words, "suites=[their-sums, {name: long, suite: their-sums, metric: characters}]", "gates=[{metric: long.characters, max: 500}]"
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((store.resolve(done.stdout.strip()).path / "summary.json").read_text())
    measured = {name: suite["metric"] for name, suite in summary["suites"].items()}
    assert measured == {"their-sums": "general", "long": "characters"}
    misspelt = acme(*words, "suites=[{name: long, suite: their-sums, metric: character}]")
    assert misspelt.returncode == 2 and "did you mean 'characters'" in misspelt.stderr
