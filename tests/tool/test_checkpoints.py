"""Checkpoints: whole with every byte, or named and not used."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from safework_cli.core import checkpoints, resume
from safework_cli.core.checkpoints import COMPLETE, checkpoints_in, damage, latest, rotate, seal
from safework_cli.core.errors import InputError

FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
FINGERPRINT = "f" * 64


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (2, 4):
        make(tmp_path, step)
    return tmp_path


def make(run: Path, step: int, *, sealed: bool = True, fingerprint: str = FINGERPRINT) -> Path:
    folder = run / "checkpoints" / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_text(f'{{"{name}": {step}}}' * 3)
    if sealed:
        seal(folder, fingerprint)
    return folder


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def mark_without_digests(folder: Path) -> None:
    (folder / COMPLETE).write_text(json.dumps({"fingerprint": FINGERPRINT, "step": 4}))


SPOILT = {
    **{f"flip {name}": (lambda folder, name=name: flip(folder / name), name) for name in FILES},
    **{f"without {name}": (lambda folder, name=name: (folder / name).unlink(), f"{name} is missing") for name in FILES},
    "flip COMPLETE": (lambda folder: flip(folder / COMPLETE), COMPLETE),
    "empty COMPLETE": (lambda folder: (folder / COMPLETE).write_text(""), COMPLETE),
    "no digests": (mark_without_digests, COMPLETE),
    "a stranger": (lambda folder: (folder / "optimizer.bin").write_text("x"), "optimizer.bin was added later"),
    "another step's": (lambda folder: folder.rename(folder.with_name("checkpoint-6")), "written at step 4"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(run, case):
    spoil, why = SPOILT[case]
    spoil(run / "checkpoints" / "checkpoint-4")
    said: list[str] = []
    assert latest(run, FINGERPRINT, said.append) == run / "checkpoints" / "checkpoint-2"
    assert len(said) == 1 and "is damaged" in said[0] and why in said[0] and "checkpoint-2 takes its place" in said[0]
    assert [path.name for path in checkpoints_in(run)] == ["checkpoint-2"]  # the next one is written into a folder of its own


def test_where_no_whole_one_is_left_the_run_is_refused_again_and_again(run):
    for step in (2, 4):
        flip(run / "checkpoints" / f"checkpoint-{step}" / "optimizer.pt")
    for _ in range(2):
        with pytest.raises(InputError, match=r"checkpoint-4 is damaged: the bytes of optimizer.pt changed") as caught:
            latest(run, FINGERPRINT, lambda _: None)
        assert caught.value.exit_code == 3 and "--fresh" in caught.value.do


def test_a_torn_one_is_not_used_and_another_runs_is_refused(tmp_path):
    said: list[str] = []
    assert latest(tmp_path, FINGERPRINT, said.append) is None
    make(tmp_path, 2, sealed=False)
    assert latest(tmp_path, FINGERPRINT, said.append) is None and "interrupted by a kill" in said[0]
    whole = make(tmp_path, 4)
    make(tmp_path, 6, sealed=False)
    assert latest(tmp_path, FINGERPRINT, said.append) == whole
    make(tmp_path, 8, fingerprint="another")
    with pytest.raises(InputError, match="belongs to another run"):
        latest(tmp_path, FINGERPRINT, said.append)


def test_rotation_is_by_step_whatever_the_clock_says(tmp_path):
    for step in (2, 4, 10):
        folder = make(tmp_path, step)
        for path in [folder, *folder.iterdir()]:
            os.utime(path, (1e9 - 1000 * step,) * 2)  # a clock that runs backwards
        rotate(tmp_path)
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-10", "checkpoint-4"]


def test_bytes_are_hashed_once_in_a_process_and_again_where_a_file_was_touched(run, monkeypatch):
    hashed = []
    real = checkpoints.sha256_of
    monkeypatch.setattr(checkpoints, "sha256_of", lambda path: hashed.append(path) or real(path))
    folder = run / "checkpoints" / "checkpoint-4"
    assert damage(folder) is None and damage(folder) is None and len(hashed) == len(FILES)
    flip(folder / "model.safetensors")
    assert damage(folder) == "the bytes of model.safetensors changed"


RANK = """
import sys
from pathlib import Path
from types import SimpleNamespace as Space
import torch.distributed as dist
from safework_cli.core import checkpoints
from safework_cli.core.errors import InputError
from safework_cli.core.launch.world import World
from safework_cli.training.loop import latest_checkpoint
run, rank = Path(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{run / 'meeting'}", rank=rank, world_size=2)
if rank == 1:  # a read error of this process
    checkpoints.damage = lambda checkpoint: "it cannot be read"
work = Space(path=run, fingerprint=sys.argv[3], world=World(rank, 2), progress=Space(warn=lambda text: print("warned:", text)))
for attempt in range(2):
    try:
        print(latest_checkpoint(work).name, flush=True)
    except InputError as error:
        print("refused:", error.what, error.why, error.do, flush=True)
    dist.barrier()
    if rank == 0:
        (run / "checkpoints" / "checkpoint-2" / "model.safetensors").write_bytes(b"x")
    dist.barrier()
"""


def test_all_processes_take_the_checkpoint_that_the_first_one_finds(run):
    (run / "checkpoints" / "checkpoint-4" / "optimizer.pt").write_bytes(b"x")
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(run), str(rank), FINGERPRINT], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    first, second = (process.communicate(timeout=200)[0].splitlines() for process in ranks)
    assert first[0].startswith("warned: checkpoint-4 is damaged") and not [line for line in second if line.startswith("warned")]
    assert first[1] == second[0] == "checkpoint-2"
    assert first[-1] == second[-1] and "checkpoint-2 is damaged: the bytes of model.safetensors changed" in second[-1]
    assert "run again with --fresh" in second[-1]


def test_a_fork_whose_note_was_cut_off_is_made_again_or_says_what_to_do(tmp_path, monkeypatch):
    request = {"stage": "sft", "fingerprint": "f", "config": {"seed": 1}, "inputs": {}, "digests": {}}
    other, folder = tmp_path / "sft-0", tmp_path / "sft-1"
    (other / "checkpoints" / "checkpoint-3").mkdir(parents=True)
    (other / "checkpoints" / "checkpoint-3" / "weights").write_bytes(b"w")
    seal(other / "checkpoints" / "checkpoint-3", "0")
    (other / "request.json").write_text(json.dumps(request | {"config": {"seed": 0}}))
    folder.mkdir()

    def full(self, *_, **__):  # the file is there, and nothing in it: what a full disk leaves
        self.touch()
        raise OSError(errno.ENOSPC, "no space", str(self))

    def not_replaced(*_):
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        patched.setattr(os, "replace", lambda a, b: not_replaced() if Path(b).name == resume.FORK else os.rename(a, b))
        with pytest.raises(OSError, match="no space"):
            resume.begin(tmp_path, other.name, folder, request)
    note = resume.begin(tmp_path, other.name, folder, request)
    assert note == "forked from sft-0 at step 3, with seed 0 → 1" == resume.begin(tmp_path, other.name, folder, request)
    (folder / resume.FORK).write_bytes(b"")
    with pytest.raises(InputError, match=r"(?s)fork.json cannot be read.*delete the folder"):
        resume.begin(tmp_path, other.name, folder, request)
