"""Shared fixtures: a store in a temporary folder, tiny real models built in code, real data where it lies beside the checkout."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest

from safework_cli.artifacts import Store
from safework_cli.progress import Progress, QuietDisplay
from safework_cli.stage import StopRequest, WorkDir

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("SAFEWORK_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def work(tmp_path: Path):
    """A run folder such as the tool hands to ``Stage.run``."""
    folder = tmp_path / "run"
    folder.mkdir()
    progress = Progress(folder, QuietDisplay())
    yield WorkDir(folder, "0" * 64, progress, StopRequest())
    progress.close()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; the test is skipped, loudly, where it does not lie there."""
    if not DATA.is_dir():
        pytest.skip(f"no real data at {DATA} (set SAFEWORK_DATA)")
    return DATA


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with a byte-level tokenizer and a ChatML template, saved as a Hugging Face folder."""
    from safework_cli.lm.tiny import create_tiny_model

    folder = tmp_path_factory.mktemp("tiny")
    create_tiny_model(folder, architecture="llama", seed=0)
    return folder
