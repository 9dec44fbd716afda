"""``safework runs``: running, stopped, failed and finished runs, and the log of one."""

from __future__ import annotations

import json
import os
import re
import signal
import time

import pytest

from safework_cli.core import runs
from safework_cli.core.artifacts.staging import this_host
from safework_cli.core.errors import InputError
from safework_cli.core.progress import Progress, QuietDisplay
from safework_cli.core.run_states import find_run, log_lines, runs_of


@pytest.fixture
def begun(store):
    """Makes the folder of an unfinished run, with events and metrics."""

    def make(fingerprint: str, *events: dict, steps: int = 0):
        folder = store.runs / runs.run_folder_name("rl m3", fingerprint)
        folder.mkdir(parents=True)
        request = {"stage": "rl m3", "fingerprint": fingerprint, "config": {"seed": 3}, "inputs": {"model": "model/tiny@v1"}}
        (folder / runs.REQUEST).write_text(json.dumps(request | {"pid": os.getpid(), "host": this_host()}))
        progress = Progress(folder, QuietDisplay())
        for step in range(1, steps + 1):
            progress.metrics(step, {"reward": step / 10})
        for event in events:
            progress.event(event.pop("kind"), **event)
        progress.close()
        return folder

    return make


FAILED = {"kind": "failed", "error": "ValueError", "text": "the loss is NaN\nat step 7"}
STOPPED = {"kind": "failed", "error": "RunAgain", "text": "stopped by SIGTERM\n  why: what was done so far is kept"}
STARTED = {"kind": "started", "pid": 1, "host": "there"}


@pytest.mark.parametrize(
    ("events", "state", "detail"),
    [
        ([FAILED], "failed", "ValueError: the loss is NaN"),
        ([STOPPED], "stopped", "stopped by SIGTERM"),
        ([STARTED], "stopped", "killed: the same command resumes it"),
        ([FAILED, STARTED], "stopped", "killed: the same command resumes it"),
    ],
)
def test_the_state_of_an_unfinished_run(store, begun, events, state, detail):
    begun("a" * 64, *[dict(event) for event in events], steps=7)
    (run,) = runs_of(store)
    assert (run.state, run.detail, run.step, run.stage) == (state, detail, 7, "rl m3")


def test_a_run_whose_lock_is_held_is_running(store, begun):
    folder = begun("b" * 64, dict(FAILED))
    with runs.locked(folder):
        (run,) = runs_of(store)
        assert (run.state, run.detail, run.step) == ("running", f"process {os.getpid()} on {this_host()}", None)


def test_a_run_is_named_by_its_beginning_or_by_what_it_made(store, begun, cli):
    begun("ab" + "0" * 62)
    begun("ac" + "0" * 62)
    assert cli("models", "pull", "tiny", "-q").returncode == 0
    assert find_run(store, "rl-m3-ab").fingerprint.startswith("ab0")
    made = find_run(store, "tiny-llama")
    assert (made.state, made.detail, made.stage) == ("done", "model/tiny-llama@v1", "models pull")
    assert made == find_run(store, "model/tiny-llama@v1") == find_run(store, made.name) == find_run(store, None)
    assert [run.state for run in runs_of(store, finished=False)] == ["stopped", "stopped"]
    with pytest.raises(InputError, match="the beginning of 2 runs"):
        find_run(store, "rl-m3-a")
    with pytest.raises(InputError, match="did you mean 'rl-m3-ab"):
        find_run(store, "rl-m3-ab00000000000001")


def test_a_folder_left_by_a_kill_after_the_commit_is_not_a_second_run(store, begun, cli):
    cli("models", "pull", "tiny", "-q")
    begun(store.list()[0].manifest.fingerprint)
    assert [run.state for run in runs_of(store)] == ["done"]


def test_the_commands(cli, begun):
    assert "no runs" in cli("runs", "ls").stdout and cli("runs", "show").returncode == 3
    folder = begun("c" * 64, {"kind": "warning", "text": "odd \x1b[31m"}, dict(FAILED), steps=3)
    listed = cli("runs", "ls").stdout
    assert "rl-m3-cccccccccccccccc" in listed and "failed" in listed and "the loss is NaN" in listed
    (run,) = json.loads(cli("runs", "ls", "--json").stdout)
    assert (run["state"], run["step"], run["artifact"]) == ("failed", 3, None)
    assert cli("runs", "path", "rl-m3-cc").stdout == f"{folder}\n"
    shown = json.loads(cli("runs", "show", "--json").stdout)
    assert shown["metrics"] == {"step": 3, "reward": 0.3} and shown["config"] == {"seed": 3} and len(shown["warnings"]) == 1
    assert "seed: 3" in cli("runs", "show").stdout
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", shown["written"]), "as a manifest writes a time"
    assert "nothing to delete" in cli("artifacts", "gc").stderr
    log = cli("runs", "tail", "-n", "2", "--follow").stdout
    assert "warning: odd \\x1b[31m" in log and "\x1b" not in log and "step 3: reward 0.3" in log and "step 1:" not in log
    assert log.endswith("failed (ValueError: the loss is NaN)\n")


def test_tail_follows_a_run_to_its_end(store, begun, start_cli):
    folder = begun("d" * 64, steps=1)
    with runs.locked(folder):
        follower = start_cli("runs", "tail", "--follow")
        assert follower.stdout.readline() == "step 1: reward 0.1\n"
        progress = Progress(folder, QuietDisplay())
        progress.metrics(2, {"reward": 0.2})
        progress.event("failed", error="Interrupted", text="interrupted by Ctrl-C")
        progress.close()
        assert follower.stdout.readline().endswith("Interrupted: interrupted by Ctrl-C\n")
        assert follower.stdout.readline() == "step 2: reward 0.2\n"
    assert follower.communicate(timeout=60)[0].endswith("stopped (interrupted by Ctrl-C)\n")


def test_a_real_run_that_is_stopped_says_so(store, tiny_artifact, toy_data, start_cli):
    process = start_cli("sft", "model=tiny", "data=toy:cot", "max_steps=500", "sample_prompts=0", "save_steps=1")
    deadline = time.monotonic() + 120
    while not list(store.runs.glob("*/checkpoints/checkpoint-1/COMPLETE.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    (run,) = [run for run in runs_of(store) if run.stage == "sft"]
    assert run.state == "running" and str(process.pid) in run.detail
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    (run,) = [run for run in runs_of(store) if run.stage == "sft"]
    assert process.returncode == 75 and run.state == "stopped" and "stopped by SIGTERM" in run.detail and run.step >= 1
    assert any("started by process" in line for line in log_lines(run.events()))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("events.jsonl", '5\nnull\n{"event": "note", "time": "x", "text": "hi"}\n{"event": "phase_end", "seconds": null, "time": 1e30}\n'),
        ("metrics.jsonl", '[]\n{"loss": 1}\n{"step": "x", "loss": 1}\n{"step": null}\n{"step": 2, "loss": NaN}\n'),
        ("events.jsonl", "[" * 100_000 + "\n"),
    ],
)
def test_a_damaged_run_does_not_hide_the_others(store, begun, cli, name, content):
    begun("ab" + "0" * 62, steps=3)
    damaged = begun("ac" + "0" * 62)
    (damaged / name).write_text(content)
    assert {run.name: run.step for run in runs_of(store)} == {
        "rl-m3-ab" + "0" * 14: 3,
        damaged.name: 2 if name == "metrics.jsonl" else None,
    }
    run = find_run(store, damaged.name)
    assert [*log_lines(run.events([]))] == (["--:--:--  hi", "--:--:--  None: done in ? s"] if content.startswith("5") else [])


def test_json_of_a_run_whose_loss_is_nan_is_json(store, begun, cli):
    folder = begun("ab" + "0" * 62)
    (folder / "metrics.jsonl").write_text('{"step": 2, "loss": NaN, "scale": Infinity}\n')

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    shown = json.loads(cli("runs", "show", "--json").stdout, parse_constant=refuse)
    assert shown["metrics"] == {"step": 2, "loss": None, "scale": None}


def test_an_empty_name_is_not_the_only_run(store, begun):
    begun("ab" + "0" * 62)
    with pytest.raises(InputError, match="an empty name"):
        find_run(store, "")
