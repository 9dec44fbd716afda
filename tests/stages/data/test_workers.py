"""Several processes: the same results in the same order, and no process left running however a run ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import psutil
import pytest

from safework_cli.core.errors import InputError, SafeworkError
from safework_cli.core.progress import Progress, QuietDisplay
from safework_cli.core.signals import StopRequest
from safework_cli.core.stage import WorkDir
from safework_cli.core.system import cores
from safework_data.build import batches, workers
from safework_data.build.run import build
from safework_data.build.sources import Arrived, as_it_is
from safework_data.build.stage import stage
from safework_data.build.workers import WorkerPool

WAIT_S, SLOW_S = 60, 20
CORES = cores()
HELD = "Explain in two paragraphs why the harbour wall of the northern port was raised by three metres."


def in_order(work, shared, pieces, check=lambda: None):
    with WorkerPool(check) as several:
        yield from several.in_order(work, shared, pieces)


def doubled(shared: int, piece: int) -> tuple[int, int]:
    time.sleep(0.02 * (piece % 3))  # later pieces may be done first
    return shared + 2 * piece, os.getpid()


def killed(shared: None, piece: int) -> int:
    if piece == 40:
        os.kill(os.getpid(), signal.SIGKILL)
    return piece


def refused(shared: None, piece: int) -> int:
    if piece == 40:
        raise InputError("row 40 is broken", "it has no end", "fix it")
    return piece


def divided(shared: None, piece: int) -> float:
    return 1 / (piece - 40)


def odd(shared: None, piece: int) -> int:
    if piece == 40:
        warnings.warn("row 40 is odd", stacklevel=1)
    return piece


def slow_elsewhere(here: int, piece: int) -> int:
    if os.getpid() != here:
        time.sleep(SLOW_S)
    return piece


@pytest.fixture(autouse=True)
def cores(request, monkeypatch) -> int:
    """Two, whatever the machine has."""
    count = getattr(request, "param", 2)
    monkeypatch.setattr(workers, "cores", lambda: count)
    return count


@pytest.mark.parametrize("cores", [1, 2, 3], indirect=True)
def test_results_come_in_order_from_several_processes(cores: int) -> None:
    results = list(in_order(doubled, 100, range(60)))
    assert [value for value, _ in results] == [100 + 2 * piece for piece in range(60)]
    assert len({pid for _, pid in results}) == (1 if cores == 1 else 1 + cores)  # the first pieces are given to one each
    assert {pid for _, pid in results[: workers.FIRST_HERE]} == {os.getpid()}


def test_workers_stay_for_what_comes_next() -> None:
    with WorkerPool() as several:
        first = list(several.in_order(doubled, 100, range(60)))
        second = list(several.in_order(doubled, 7, range(5)))
        third = list(several.in_order(odd, None, range(3)))
    assert [value for value, _ in second] == [7, 9, 11, 13, 15] and third == [0, 1, 2]
    assert {pid for _, pid in second} == {pid for _, pid in first} - {os.getpid()}


def test_few_pieces_start_no_process() -> None:
    assert {pid for _, pid in in_order(doubled, 0, range(workers.FIRST_HERE))} == {os.getpid()}


def test_only_a_few_pieces_are_taken_ahead() -> None:
    taken = []
    results = in_order(doubled, 0, (taken.append(piece) or piece for piece in range(1000)))
    for _ in range(50):
        next(results)
    assert len(taken) <= 50 + 2
    results.close()


def test_a_worker_that_is_killed_ends_the_run_by_name() -> None:
    with pytest.raises(SafeworkError, match="a worker process was killed"):
        list(in_order(killed, None, range(60)))


def test_an_error_of_a_worker_arrives_whole() -> None:
    with pytest.raises(InputError, match="row 40 is broken") as caught:
        list(in_order(refused, None, range(60)))
    assert (caught.value.why, caught.value.do) == ("it has no end", "fix it")
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        list(in_order(divided, None, range(60)))


def test_a_warning_of_a_worker_is_given_here() -> None:
    with pytest.warns(UserWarning, match="row 40 is odd"):
        list(in_order(odd, None, range(60)))


def test_nothing_waits_for_the_piece_that_a_worker_has() -> None:
    started = time.monotonic()

    def check() -> None:
        if time.monotonic() > started + 1:
            raise InputError("stop", "", "")

    with pytest.raises(InputError, match="stop"):
        list(in_order(slow_elsewhere, os.getpid(), range(60), check=check))
    assert time.monotonic() - started < SLOW_S


def test_pieces_are_bounded_by_their_size() -> None:
    def sizes(record: dict, image_keys: tuple[str, ...] = ()) -> list[int]:
        arrived = Arrived("s", "", ((number, record) for number in range(100)), "", as_it_is, image_keys=image_keys)
        return [len(piece.items) for piece in batches.pieces(arrived)]

    assert sizes({"q": "short"}) == [100]
    assert sizes({"img": {"bytes": bytes(2**20)}}) == [16] * 6 + [4]
    assert sizes({"messages": [{"role": "user", "content": "x" * 2**22}]}) == [4] * 25
    assert sizes({"file": "a/b.png", "other": None}, ("file", "other")) == [16] * 6 + [4]


def recipe(folder: Path, rows: int) -> dict:
    """A recipe of rows with copies, near copies, leaks and broken rows, some of them pieces apart."""
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
def test_a_dataset_is_the_same_to_the_byte_from_several_processes(tmp_path: Path, tiny_artifact, monkeypatch, heldout: float) -> None:
    monkeypatch.setattr(batches, "PIECE_ROWS", 50)
    monkeypatch.setattr(workers, "FIRST_HERE", 2)
    started = []

    class Counted(workers._Worker):
        def __init__(self) -> None:
            super().__init__()
            started.append(self)

    monkeypatch.setattr(workers, "_Worker", Counted)
    found = []
    for cores in (1, 2):
        monkeypatch.setattr(workers, "cores", lambda cores=cores: cores)
        (folder := tmp_path / f"of-{cores}").mkdir()
        work = WorkDir(folder, "0" * 64, Progress(folder, QuietDisplay()), StopRequest())
        config = stage.Config.model_validate(recipe(tmp_path, 600) | {"heldout": heldout, "check_replies": ["verifier"]})
        outcome = build(config, {}, work, tiny_artifact.path if heldout == 0 else None)
        files = {str(path.relative_to(work.output)): path.read_bytes() for path in sorted(work.output.rglob("*")) if path.is_file()}
        found.append((outcome.metrics, files, len(started)))
    assert found[0][:2] == found[1][:2]
    assert (found[0][2], found[1][2]) == (0, 2)  # for all passes
    assert {"exact duplicate", "near duplicate", "evaluation prompt", "no reply"} <= found[0][0]["dropped"].keys()


@pytest.mark.skipif(CORES < 2, reason="one core: no process is started")
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_no_process_is_left_behind(tmp_path: Path, number: signal.Signals, code: int, times: int) -> None:
    """The signal goes to all processes of the run, as a terminal's or a scheduler's does; a kill to the first only. Some press twice."""
    (tmp_path / "data.yaml").write_text(json.dumps(recipe(tmp_path, 40_000)))
    command = [str(Path(sys.executable).with_name("safework")), "data", "build", "-c", str(tmp_path / "data.yaml")]
    env = os.environ | {"SAFEWORK_STORE": str(tmp_path / "store")}
    run = psutil.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    others: list[psutil.Process] = []
    most = min(workers.MOST_PROCESSES, CORES)
    deadline = time.monotonic() + WAIT_S
    while len(others) < most and time.monotonic() < deadline:
        others = run.children(recursive=True) if run.is_running() else others
        time.sleep(0.02)
    assert len(others) == most, run.communicate()
    for _ in range(times):
        (os.kill if number is signal.SIGKILL else os.killpg)(run.pid, number)
        time.sleep(0.05)
    _, complained = run.communicate(timeout=WAIT_S)
    assert run.returncode in ((code,) if times == 1 else (code, -number)), complained
    assert "Traceback" not in complained
    _, alive = psutil.wait_procs(others, timeout=15)
    assert not alive
