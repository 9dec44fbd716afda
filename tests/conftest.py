"""Shared fixtures: a store in a temporary folder, tiny real models built in code, real data where it is next to the checkout."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import pytest

from forked import Forks
from safework_cli.core.artifacts import Store
from safework_cli.core.progress import Progress, QuietDisplay
from safework_cli.core.signals import StopRequest
from safework_cli.core.stage import WorkDir

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("SAFEWORK_DATA") or ROOT.parent / "shared" / "data")  # make exports it empty where there is none


SLOWEST_FIRST = (
    lambda test: test.get_closest_marker("timeout") is not None,
    lambda test: "slurm" in test.fixturenames,
    lambda test: "forks" in test.fixturenames and {"start_cli", "prepared", "rows"} & set(test.fixturenames),
    lambda test: "start_cli" in test.fixturenames,
    lambda test: "forks" in test.fixturenames,
)
"""What a test needs shows how long it takes: whole ladders, jobs, several processes, a new Python, a command."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests that take longest first, so that several test processes end at about the same time."""
    items.sort(key=lambda test: next((n for n, needs in enumerate(SLOWEST_FIRST) if needs(test)), len(SLOWEST_FIRST)))


@pytest.fixture(autouse=True)
def same_environment():
    """What a test sets in the environment (trackers do) ends with it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def work(tmp_path: Path):
    """A run folder, as ``Stage.run`` gets it."""
    folder = tmp_path / "run"
    folder.mkdir()
    progress = Progress(folder, QuietDisplay())
    yield WorkDir(folder, "0" * 64, progress, StopRequest())
    progress.close()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; the test is skipped with a message where there is none."""
    if not DATA.is_dir():
        pytest.skip(f"no real data at {DATA} (set SAFEWORK_DATA)")
    return DATA


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with a byte-level tokenizer and a ChatML template, saved as a Hugging Face folder."""
    from safework_cli.models.tiny import create_tiny_model

    folder = tmp_path_factory.mktemp("tiny")
    create_tiny_model(folder, architecture="llama", seed=0)
    return folder


@pytest.fixture
def commit(store: Store):
    """Makes a filled folder the first version of an artifact of the test's store."""
    from safework_cli.core.artifacts import Manifest
    from safework_cli.core.artifacts.store import now

    def make(folder: Path, kind: str, name: str):
        manifest = Manifest(
            kind=kind, name=name, version=0, created=now(), stage="test", stage_version=1, fingerprint=name, files=[], digest=""
        )
        return store.commit(folder, manifest)

    return make


@pytest.fixture
def toy_data(store: Store, commit):
    """A dataset with subsets cot (replies) and rl (prompts): sums, and requests to refuse."""
    from safework_cli.data.reply import make_reply
    from safework_cli.data.row import Row, write_rows

    def rows(with_reply: bool) -> list[Row]:
        made = []
        for i in range(16):
            reply = make_reply("I add the two.", str(i + 1))
            made.append(_row(f"g{i}", "general", f"What is {i}+1?", reply, with_reply, answer=str(i + 1), meta={"answer_type": "exact"}))
            refusal = make_reply("Somebody would be hurt.", "I can't help with that.")
            letters = {"constraints": [{"type": "contains", "text": letter} for letter in "aeknst"]}  # which a random reply can satisfy
            made.append(_row(f"s{i}", "safety", f"How do I rob house {i}?", refusal, with_reply, harmful=True, meta=letters))
        return made

    def _row(row_id: str, task: str, question: str, reply: str, with_reply: bool, **more) -> Row:
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
        return Row(row_id, task, messages if with_reply else messages[:1], **more)

    folder = store.staging()
    for subset in ("cot", "rl"):
        (folder / subset).mkdir()
        write_rows(folder / subset / "rows.parquet", rows(subset == "cot"))
    return commit(folder, "dataset", "toy")


@pytest.fixture
def tiny_artifact(store: Store, tiny_model: Path):
    """The tiny model as an artifact of the test's store."""
    from safework_cli.core.artifacts.transfer import import_folder

    return import_folder(store, tiny_model, "tiny")


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory):
    """Starts commands as forks of a process that has imported the libraries."""
    server = Forks(tmp_path_factory.mktemp("forks"))
    yield server
    server.close()


@pytest.fixture
def cli(store: Store, forks: Forks):
    """Runs ``safework`` in a process of its own, a fork, on the test's store; returns the finished process. Processes that it starts itself
    are no forks."""

    def run(*words: str, **options) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*forks.command, *words], env=cli_environment(store), capture_output=True, text=True, timeout=280, **options)

    return run


SAFEWORK = [sys.executable, "-c", "from safework_cli.cli.main import main; main()"]


def cli_environment(store: Store) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SAFEWORK_")}
    return kept | {"SAFEWORK_STORE": str(store.root)}


@pytest.fixture
def kill_after(store: Store, start_cli):
    """Starts a training command and kills it with -9 after its checkpoint of a step."""

    def kill(step: int, *words: str) -> None:
        process = start_cli(*words)
        deadline = time.monotonic() + 120
        while not list(store.runs.glob(f"*/checkpoints/checkpoint-{step}/COMPLETE.json")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()

    return kill


@pytest.fixture
def start_cli(store: Store):
    """Starts ``safework`` and returns the running process: a new Python, to be killed or sent signals."""

    def start(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen([*SAFEWORK, *words], env=cli_environment(store), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start
