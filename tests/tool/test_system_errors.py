"""Space, permissions and memory that run out: named, with the exit code that a scheduler waits for."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from safework_cli.core import system_errors
from safework_cli.core.artifacts import Store
from safework_cli.core.errors import ConfigError, InputError, RunAgain
from safework_cli.core.settings import StageConfig
from safework_cli.core.system_errors import explain

MAIN = "from safework_cli.cli.main import main; main()"


def raised(make) -> BaseException:
    try:
        make()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    "write",
    [
        lambda: FULL.write_text("x" * 100_000),
        lambda: np.save(FULL.open("wb"), np.zeros(100_000)),
        lambda: torch.save(torch.zeros(1_000_000), FULL),
    ],
    ids=["python", "numpy", "torch"],
)
def test_real_writers_on_a_full_device(write, tmp_path, monkeypatch):
    monkeypatch.setattr(system_errors, "NEARLY_FULL_BYTES", 2**63)  # this disk is not the one that is full
    found = explain(raised(write), tmp_path)
    assert isinstance(found, RunAgain) and found.exit_code == 75
    assert "no space left in" in str(found) and "run the same command again" in str(found)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EFBIG, "File too large"),
        OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"),
        RuntimeError('Error while serializing: I/O error: No space left on device (os error 28)'),
        Exception("No space left on device (os error 28)"),
        Exception("Disk quota exceeded (os error 122)"),
        ValueError("database or disk is full"),
    ],
)  # fmt: skip
def test_texts_of_libraries(error):
    assert isinstance(explain(error), RunAgain)
    wrapped = raised(lambda: (_ for _ in ()).throw(RuntimeError("generating the split failed")))
    wrapped.__cause__ = error
    assert isinstance(explain(wrapped), RunAgain)


def test_a_failed_write_without_a_reason_is_explained_by_what_is_left(tmp_path, monkeypatch):
    error = RuntimeError("[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file data/0: file write failed")
    monkeypatch.setattr(system_errors, "NEARLY_FULL_BYTES", 0)
    assert explain(error, tmp_path) is None
    monkeypatch.setattr(system_errors, "NEARLY_FULL_BYTES", 2**63)
    assert "no space left in" in str(explain(error, tmp_path))
    assert explain(ValueError("the fifth row is odd"), tmp_path) is None


class Sizes(StageConfig):
    per_device_train_batch_size: int = 8
    max_length: int = 2048
    gradient_checkpointing: bool = False


@pytest.mark.parametrize(
    "error",
    [
        raised(lambda: torch.empty(2**60, dtype=torch.uint8)),
        raised(lambda: np.empty(2**60, dtype=np.uint8)),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=["torch", "numpy", "cuda", "python", "fork"],
)
def test_out_of_memory_says_which_settings_to_lower(error):
    found = explain(error, config=Sizes())
    assert isinstance(found, ConfigError) and found.exit_code == 2 and "out of memory" in found.what
    assert "per_device_train_batch_size (now 8)" in found.do and "max_length (now 2048)" in found.do
    assert "gradient_checkpointing=true" in found.do


def test_what_may_not_be_written_is_an_input_to_change(tmp_path):
    found = explain(PermissionError(errno.EROFS, "Read-only file system", str(tmp_path / "s" / ".runs")), tmp_path / "s")
    assert isinstance(found, InputError) and found.what == f"cannot write to {tmp_path / 's'}" and "--store" in found.do
    assert explain(FileNotFoundError(errno.ENOENT, "No such file", "x"), tmp_path) is None
    handled = ValueError("a bug")
    handled.__context__ = PermissionError(errno.EACCES, "Permission denied", "/some/cache")  # a library coped with that one
    assert explain(handled, tmp_path) is None


def limited(store: Store, megabytes: float, *words: str) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(megabytes * 2**20),) * 2)

    environment = os.environ | {"SAFEWORK_STORE": str(store.root)}
    return subprocess.run(
        [sys.executable, "-c", MAIN, *words], env=environment, capture_output=True, text=True, timeout=280, preexec_fn=limit
    )


WORDS = ("sft", "model=tiny", "data=toy:cot", "max_steps=2", "save_steps=1", "sample_prompts=0", "-q")


@pytest.mark.parametrize("megabytes", [0.0001, 0.3, 0.9])
def test_a_limit_on_files_is_75_and_the_next_run_finishes(megabytes, store, tiny_artifact, toy_data, cli):
    largest = max(entry.size for entry in tiny_artifact.manifest.files)
    done = limited(store, megabytes * largest / 2**20, *WORDS)
    assert done.returncode == 75, done.stderr
    assert "run the same command again" in done.stderr and "Traceback" not in done.stderr and done.stdout == ""
    again = cli(*WORDS)
    assert again.returncode == 0, again.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_store_that_may_only_be_read(store, tiny_artifact, toy_data, tmp_path, cli):
    assert cli(*WORDS).returncode == 0
    for folder in (".verified", ".locks", ".staging", ".runs"):
        subprocess.run(["rm", "-rf", str(store.root / folder)], check=True)
    if subprocess.run(["mount", "--bind", str(store.root), str(store.root)]).returncode:
        pytest.skip("cannot mount here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(store.root)], check=True)
        reading = (
            ("artifacts", "ls"), ("artifacts", "verify"), ("artifacts", "show", "tiny"), ("artifacts", "lineage", "tiny-sft"),
            ("artifacts", "diff", "tiny", "tiny-sft"), ("artifacts", "gc"), ("artifacts", "export", "tiny", str(tmp_path / "out")),
            ("data", "preview", "toy:rl", "-n", "1"), ("sft", "model=tiny", "data=toy:cot", "max_steps=9", "--dry-run"), WORDS,
        )  # fmt: skip
        for words in reading:
            done = cli(*words)
            assert done.returncode == 0, (words, done.stderr)
        writing = (
            ("sft", "model=tiny", "data=toy:cot", "max_steps=9"), (*WORDS, "--name", "other"), ("artifacts", "pin", "tiny"),
            ("artifacts", "import", str(tmp_path / "out")), ("artifacts", "gc", "--yes", "--with-ancestors", "--runs-days", "0"),
        )  # fmt: skip
        for words in writing:
            done = cli(*words)
            if words[1] == "gc":
                assert done.returncode == 0, done.stderr  # there is nothing to delete
                continue
            assert done.returncode == 3 and f"cannot write to {store.root}" in done.stderr and "--store" in done.stderr, (
                words,
                done.stderr,
            )
    finally:
        subprocess.run(["umount", str(store.root)], check=True)


END_OF_FILE = (
    """
import safework_cli.core.prepare as module
def broken(*_, **__):
    raise EOFError("Ran out of input")
module.prepare = broken
"""
    + MAIN
)


def test_the_end_of_a_file_is_no_interruption(store, tiny_artifact, toy_data):
    environment = os.environ | {"SAFEWORK_STORE": str(store.root)}
    done = subprocess.run([sys.executable, "-c", END_OF_FILE, *WORDS], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "Ran out of input" in done.stderr and "interrupted" not in done.stderr


def test_a_store_that_is_a_device_is_named(cli):
    done = cli("models", "pull", "tiny", "--store", "/dev/null")
    assert done.returncode == 3 and "the store /dev/null is not a folder" in done.stderr, done.stderr
