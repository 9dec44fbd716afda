"""Several processes: the same results in the same order, and no process left behind however a run ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from safework_cli.errors import InputError, SafeworkError
from safework_cli.progress import Progress, QuietDisplay
from safework_cli.stage import Inputs, StopRequest, WorkDir
from safework_data import batches, crew
from safework_data.build_stage import stage
from safework_data.crew import in_order

WAIT_S = 60
HELD = "Explain in two paragraphs why the harbour wall of the northern port was raised by three metres."


def doubled(shared: int, piece: int) -> tuple[int, int]:
    time.sleep(0.02 * (piece % 3))  # later pieces may be done first
    return shared + 2 * piece, os.getpid()


def killed(shared: None, piece: int) -> int:
    if piece == 12:
        os.kill(os.getpid(), signal.SIGKILL)
    return piece


def refused(shared: None, piece: int) -> int:
    if piece == 12:
        raise InputError("row 12 is broken", "it has no end", "mend it")
    return piece


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_results_come_in_order_from_several_processes(processes: int) -> None:
    results = list(in_order(doubled, 100, range(30), processes))
    assert [value for value, _ in results] == [100 + 2 * piece for piece in range(30)]
    assert len({pid for _, pid in results}) == (1 if processes == 1 else 1 + processes)
    assert {pid for _, pid in results[: crew.FIRST_HERE]} == {os.getpid()}


def test_few_pieces_start_no_process() -> None:
    assert {pid for _, pid in in_order(doubled, 0, range(crew.FIRST_HERE), 4)} == {os.getpid()}


def test_only_a_few_pieces_are_taken_ahead() -> None:
    taken = []
    results = in_order(doubled, 0, (taken.append(piece) or piece for piece in range(1000)), 2)
    for _ in range(20):
        next(results)
    assert len(taken) <= 20 + 2 * 2 + 1
    results.close()


def test_a_worker_that_is_killed_ends_the_run_by_name() -> None:
    with pytest.raises(SafeworkError, match="a worker process was killed"):
        list(in_order(killed, None, range(30), 2))


def test_an_error_of_a_worker_arrives_whole() -> None:
    with pytest.raises(InputError, match="row 12 is broken") as caught:
        list(in_order(refused, None, range(30), 2))
    assert (caught.value.why, caught.value.do) == ("it has no end", "mend it")


def recipe(folder: Path, rows: int) -> dict:
    """A recipe of rows with copies, near copies, leaks and faults, some of them pieces apart."""
    said = "The committee met on Monday to discuss the new library budget and the plan for the winter season"
    with (folder / "rows.jsonl").open("w") as handle:
        for number in range(rows):
            again, nearly = number % 11 == 0 and number > 200, number % 17 == 0 and number > 200
            like = number - 109 if again else number - 169 if nearly else number
            text = f"{said}: point {like}, brought by {like * 31} guests on {like % 13} chairs"
            text += " indeed" if nearly and not again else ""
            if number % 103 == 0:
                text = f"A letter from {number} says: {HELD} Reply to it."
            handle.write(json.dumps({"q": text, "a": "" if number % 101 == 0 else f"They agreed on {like}."}) + "\n")
    (folder / "held.jsonl").write_text(json.dumps({"q": HELD, "a": ""}) + "\n")
    columns = {"prompt": "q", "reply": "a"}
    held = {"kind": "file", "path": str(folder / "held.jsonl"), "subset": "heldout", "task": "general", "columns": {"prompt": "q"}}
    return {
        "sources": [
            {"kind": "file", "path": str(folder / "rows.jsonl"), "subset": "verifier", "task": "general", "columns": columns},
            held,
        ],
        "require_label": [],
        "near_duplicate_threshold": 0.9,
        "decontaminate": {"overlap": 0.95},  # the lines are alike, and those held out are prompts as well
        "max_dropped": 1.0,
    }


@pytest.mark.parametrize("heldout", [0.0, 0.2])
def test_a_dataset_is_the_same_to_the_byte_from_several_processes(tmp_path: Path, monkeypatch, heldout: float) -> None:
    monkeypatch.setattr(batches, "PIECE_ROWS", 50)
    monkeypatch.setattr(crew, "FIRST_HERE", 2)
    found = []
    for cores in (1, 2):
        monkeypatch.setattr(crew, "cores", lambda cores=cores: cores)
        (folder := tmp_path / f"of-{cores}").mkdir()
        work = WorkDir(folder, "0" * 64, Progress(folder, QuietDisplay()), StopRequest())
        config = stage.Config.model_validate(recipe(tmp_path, 600) | {"heldout": heldout})
        outcome = stage.run(config, Inputs({}), work)
        files = {str(path.relative_to(work.output)): path.read_bytes() for path in sorted(work.output.rglob("*")) if path.is_file()}
        found.append((outcome.metrics, files))
    assert found[0] == found[1]
    assert {"exact duplicate", "near duplicate", "evaluation prompt", "no reply"} <= found[0][0]["dropped"].keys()


@pytest.mark.skipif(crew.cores() < 2, reason="one core: no process is started")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_no_process_is_left_behind(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """The signal goes to all processes of the run, as a terminal's or a scheduler's does; a kill to the first alone."""
    (tmp_path / "data.yaml").write_text(json.dumps(recipe(tmp_path, 40_000)))
    command = [str(Path(sys.executable).with_name("safework")), "data", "build", "-c", str(tmp_path / "data.yaml")]
    env = os.environ | {"SAFEWORK_STORE": str(tmp_path / "store")}
    run = psutil.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    others: list[psutil.Process] = []
    deadline = time.monotonic() + WAIT_S
    while len(others) < 3 and time.monotonic() < deadline:  # the server that forks, and two workers
        others = run.children(recursive=True) if run.is_running() else others
        time.sleep(0.02)
    assert len(others) >= 3, run.communicate()
    (os.kill if number is signal.SIGKILL else os.killpg)(run.pid, number)
    _, complained = run.communicate(timeout=WAIT_S)
    assert run.returncode == code, complained
    assert "Traceback" not in complained
    _, alive = psutil.wait_procs(others, timeout=15)
    assert not alive
