from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from processes_runs import Run, prepare

from conftest import cli_environment
from safework_cli.core.artifacts import Store


@pytest.fixture
def prepared(store: Store, tiny_model: Path) -> Store:
    """A store with what ``processes_runs.RUNS`` take."""
    prepare(store, tiny_model)
    return store


@pytest.fixture
def run(store, forks):
    """Runs a command of ``processes_runs`` by a strategy, with torchrun and its processes as forks; returns what it printed."""

    def start(a_run: Run, strategy: str, *more: str, **environment: str) -> str:
        command = [str(forks.folder / "safework"), *a_run.on(strategy), "--name", strategy, *more]
        environment = cli_environment(store) | a_run.env() | environment
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return start
