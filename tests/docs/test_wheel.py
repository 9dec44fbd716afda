"""What a user gets from ``pip install``: a wheel, installed into an empty folder, runs the first stages from outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pages import ROOT

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the wheel's contents; the dependencies are this environment's."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)], check=True)
    (wheel,) = folder.glob("safework-*.whl")
    subprocess.run([*PIP, "install", "--no-deps", "--no-index", "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


@pytest.fixture
def safework(installed: Path, tmp_path: Path):
    """Runs the installed command in an empty folder, and returns its stdout."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SAFEWORK_")}
    environment = kept | {"PYTHONPATH": str(installed), "SAFEWORK_STORE": str(tmp_path / "store")}

    def run(*words: str) -> str:
        command = [sys.executable, str(installed / "bin" / "safework"), *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def test_the_wheel_holds_the_packages_and_their_data(installed: Path):
    sources = {
        path.relative_to(ROOT / root)
        for root in ("src", "stages")
        for path in (ROOT / root).glob("safework_*/**/*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert Path("safework_data/starter/parts/safety_en_1.yaml") in sources
    assert {path for path in sources if not (installed / path).is_file()} == set()
    assert not (installed / "tests").exists()


def test_the_first_stages_run_from_the_wheel(safework, installed: Path, tmp_path: Path):
    assert "rl" in safework("--help")
    base = safework("models", "pull", "tiny")
    data = safework("data", "build", "sources=[{kind: starter}]", "name=starter")
    small = ("max_steps=2", "per_device_train_batch_size=4", "max_dropped=0.9", "sample_prompts=1", "sample_max_tokens=8")
    assert safework("sft", f"model={base}", f"data={data}:cot", *small) == "model/tiny-llama-sft@v1"
    assert "quickstart/sft.yaml" in safework("recipes", "ls")
    plan = safework("sft", "-c", "recipes/tiny/sft.yaml", f"model={base}", f"data={data}:cot", "--dry-run", "--json")
    assert plan == "" or plan.startswith("{")
    assert safework("report", "--out", "report.html") == "report.html"
    assert "<html" in (tmp_path / "report.html").read_text()


def test_the_command_is_the_wheels_and_not_the_checkouts(installed: Path, tmp_path: Path):
    script = "import safework_cli; print(safework_cli.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(installed)}, capture_output=True, text=True
    )
    assert Path(done.stdout.strip()).is_relative_to(installed)
