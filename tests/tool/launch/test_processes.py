"""A stage on two processes makes what it makes on one, from the same rows and completions, and fails as one command."""

from __future__ import annotations

import json
import os
import signal
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
from processes import ALIKE, CONTROL, MOVED
from processes_runs import DEEPSPEED, MODEL, RUNS, difference, movement, running, weights

from safework_cli.core.progress import read_metrics
from vllm_served import fake_vllm

STRATEGIES_OF = {
    "sft": ("ddp", "fsdp", "zero3"), "verifier": ("ddp", "fsdp"), "values": ("ddp", "fsdp", "zero2", "zero3"), "efficient": ("ddp",),
    "m3": ("ddp", "fsdp", "zero2", "zero3"), "search": ("ddp", "fsdp", "zero2", "zero3"),
}  # fmt: skip
TWO = ("launch.strategy=ddp", "launch.processes=2")
SFT = RUNS["sft"].words


@pytest.mark.parametrize("name", STRATEGIES_OF)
def test_two_processes_train_the_weights_of_one(run, prepared, name):
    """Every strategy against one process, from the same rows or the same completions at the same global batch; and the control, in which
    the second process's rows do not count."""
    one = weights(prepared, run(RUNS[name], "single"))
    moved = movement(weights(prepared, MODEL), one)
    assert moved >= MOVED
    for strategy in STRATEGIES_OF[name]:
        if strategy in DEEPSPEED and find_spec("deepspeed") is None:
            warnings.warn(f"{strategy} of {name} is not tested: deepspeed is not installed", stacklevel=1)
            continue
        ref = run(RUNS[name], strategy)
        assert difference(one, weights(prepared, ref)) <= ALIKE * moved, strategy
        made = prepared.resolve(ref.strip())
        assert made.manifest.peak_memory_bytes > 2e8, "that of a process with torch"
        in_parts = "the first process reads the model" in (made.path / "safework" / "events.jsonl").read_text()
        assert in_parts == (strategy == "fsdp")
        if name == "sft":
            assert made.manifest.metrics["padding_free"] is True
    dropped = weights(prepared, run(RUNS[name], "ddp", "--fresh", PROCESSES_DROPPED="1"))
    assert difference(one, dropped) >= CONTROL * moved


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2", "zero3"])
def test_a_gradient_of_one_process_that_is_not_finite_ends_the_command(run, prepared, strategy):
    if strategy in DEEPSPEED and find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    with pytest.raises(AssertionError, match="the gradient of (step 1|the last step) is NaN or infinite") as error:
        run(RUNS["sft"], strategy, PROCESSES_NAN="1")
    assert "assert 4 == 0" in str(error.value)


SHORT = (*SFT, *TWO, "per_device_train_batch_size=2", "save_steps=2")


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def test_a_killed_command_leaves_no_process_and_resumes_to_the_same_bits(cli, kill_after, prepared):
    kill_after(2, *SHORT)
    wait_for(lambda: not running(prepared), 30)
    resumed = cli(*SHORT)
    assert resumed.returncode == 0 and "resumed at step" in resumed.stderr, resumed.stderr
    whole = cli(*SHORT, "--fresh")
    assert whole.returncode == 0, whole.stderr
    assert difference(weights(prepared, resumed.stdout), weights(prepared, whole.stdout)) == 0


def test_sigterm_stops_all_processes_at_one_step_with_a_checkpoint(start_cli, prepared):
    process = start_cli(*SHORT, "max_steps=2000", "save_steps=10000")
    wait_for(lambda: list(prepared.runs.glob("*/metrics.jsonl")) and read_metrics(next(prepared.runs.glob("*/metrics.jsonl"))))
    process.send_signal(signal.SIGTERM)
    _, printed = process.communicate(timeout=120)
    assert process.returncode == 75 and "stopped by SIGTERM" in printed
    (checkpoint,) = prepared.runs.glob("*/checkpoints/*/COMPLETE.json")
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in checkpoint.parent.iterdir()}
    assert not running(prepared)


def test_a_killed_process_is_named(start_cli, prepared):
    process = start_cli(*SHORT, "max_steps=2000", "save_steps=10000")
    wait_for(lambda: list(prepared.runs.glob("*/metrics.jsonl")) and read_metrics(next(prepared.runs.glob("*/metrics.jsonl"))))
    (record,) = prepared.runs.glob("*/ranks/1.json")
    os.kill(json.loads(record.read_bytes())["pid"], signal.SIGKILL)
    _, printed = process.communicate(timeout=120)
    assert process.returncode == 1 and "process 1 of 2 was ended by signal 9" in printed, printed
    assert str(record.with_suffix(".log")) in printed
    assert not running(prepared)


def test_the_error_of_all_processes_is_the_commands(cli, prepared):
    refused = cli(*SHORT, "max_length=8")
    assert refused.returncode == 3 and "cannot be trained on" in refused.stderr and "Traceback" not in refused.stderr, refused.stderr


def test_another_number_of_processes_resumes_a_fork(cli, kill_after, prepared):
    """From two processes to one at the same global batch: the weights of an uninterrupted run."""
    whole = cli(*SFT, "per_device_train_batch_size=4", "--name", "whole")
    kill_after(4, *SHORT)
    wait_for(lambda: not running(prepared), 30)
    (name,) = [run.name for run in prepared.runs.iterdir() if (run / "checkpoints").is_dir()]
    forked = cli(*SFT, "per_device_train_batch_size=4", "--fork", name, "--name", "forked")
    assert forked.returncode == 0 and "resumed at step" in forked.stderr, forked.stderr
    expected = weights(prepared, whole.stdout)
    moved = movement(weights(prepared, MODEL), expected)
    assert difference(expected, weights(prepared, forked.stdout)) <= ALIKE * moved


def test_a_node_that_never_joins_ends_the_command(cli, prepared, tmp_path, monkeypatch):
    """srun starts one of two nodes."""
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text('#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n')
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{srun.parent}{os.pathsep}{os.environ['PATH']}")
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURMD_NODENAME": "node1"}.items():
        monkeypatch.setenv(name, value)
    ended = cli(*SFT, "launch.strategy=ddp", "launch.nodes=2", "launch.timeout_minutes=0.1")
    assert ended.returncode == 1 and "a node did not join in time" in ended.stderr and "launcher.log" in ended.stderr, ended.stderr


def test_the_plan_says_where_prompts_are_not_shared(cli, prepared):
    planned = json.loads(cli(*RUNS["m3"].on("fsdp"), "--dry-run", "--json").stdout)
    assert not planned["refusals"] and any("not in training: FSDP" in line for line in planned["plan"])
    planned = json.loads(cli(*RUNS["m3"].on("ddp"), "--dry-run", "--json").stdout)
    assert not any("not in training" in line for line in planned["plan"])


@pytest.mark.enable_socket
def test_divided_weights_reach_a_server_one_by_one(run, prepared, tiny_model):
    """FSDP on two processes, whose replies a server samples: the weights of one process that samples for itself."""
    one = weights(prepared, run(RUNS["m3"], "single"))
    with fake_vllm(tiny_model) as fake:
        over = run(RUNS["m3"], "fsdp", "engine.kind=vllm", f"engine.server.url={fake.url}", "engine.server.timeout_s=60")
        sent = [body for path, body in fake.seen if path == "/update_weights"]
    assert len(sent) == 2 and {body["update_info"]["weights"] for body in sent} == {len(one)}
    moved = movement(weights(prepared, MODEL), one)
    assert difference(one, weights(prepared, over)) <= ALIKE * moved
