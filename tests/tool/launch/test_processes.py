"""A stage on two processes makes what it makes on one, from the same rows and completions, and fails as one command."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from safework_cli.core.artifacts import Store
from safework_cli.core.progress import read_metrics
from safework_cli.data.row import Row, write_rows

FSDP_ON_CPU = Path(__file__).with_name("fsdp_on_cpu")
TWO = ("launch.strategy=ddp", "launch.processes=2")
SFT = ("sft", "model=model/tiny", "data=dataset/toy:cot", "max_steps=8", "learning_rate=3e-3", "bf16=false", "sample_prompts=0")
ROLLOUTS = (
    "model=model/tiny", "data=dataset/toy:rl", "max_steps=8", "num_generations=4", "max_completion_length=12", "learning_rate=3e-3",
    "preflight=0", "bf16=false", "language.mode=off", "format.mode=term", "format.weight=0.01",
    "rewards={general: {rule:constraints: 1}, safety: {rule:constraints: 1}}", "num_iterations=2", "steps_per_generation=4",
    "gradient_accumulation_steps=2", "max_logprob_gap=0.1",
)  # fmt: skip
M3 = ("rl", "m3", *ROLLOUTS, "filter_groups=false", "phases=[{tasks: [safety], share: 1}]")
EFFICIENT = ("rl", "efficient", *ROLLOUTS, "tasks=[safety]")
VERIFIER = (
    "verifier", "train", "model=model/tiny", "data=dataset/judged", "max_steps=8", "learning_rate=3e-3", "instruction=short",
    "max_length=256", "eval_fraction=0.4", "bf16=false", "dtype=float32", "attack_rows=0",
)  # fmt: skip
RUNS = {"sft": (SFT, 4), "m3": (M3, 8), "efficient": (EFFICIENT, 8), "verifier": (VERIFIER, 8)}
"""Name → the command, and how many rows one process takes in a pass where it is the only one."""


@pytest.fixture
def judged(store: Store, commit):
    """Replies of three classes that any model can distinguish."""
    replies = {"Safe with refusal": "no no no", "Safe without risk": "yes yes", "Unsafe": "zzzz zzzz"}
    folder, rows = store.staging(), []
    for i in range(80):  # of which 48 are trained on: whole steps
        label = list(replies)[i % 3]
        asked = [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": replies[label] + " x" * (i % 5)}]
        rows.append(Row(str(i), "safety", asked, harmful=label != "Safe without risk", meta={"label": label}))
    write_rows(folder / "rows.parquet", rows)
    return commit(folder, "dataset", "judged")


def weights(store: Store, ref: str) -> dict[str, torch.Tensor]:
    return load_file(store.resolve(ref.strip(), ("model", "verifier"), slot="model").path / "model.safetensors")


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


@pytest.mark.parametrize(
    ("run", "strategies"),
    [("sft", ["ddp", "fsdp", "zero3"]), ("m3", ["ddp", "fsdp", "zero2", "zero3"]), ("efficient", ["ddp"]), ("verifier", ["ddp"])],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_two_processes_train_the_weights_of_one(cli, store, tiny_artifact, toy_data, judged, monkeypatch, run, strategies):
    """Every strategy against one process, from the same rows or the same completions at the same global batch."""
    words, rows = RUNS[run]
    single = cli(*words, f"per_device_train_batch_size={rows}", "--name", "single")
    assert single.returncode == 0, single.stderr
    start, one = weights(store, "model/tiny"), weights(store, single.stdout)
    moved = difference(start, one)
    assert moved > 2e-3
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FSDP_ON_CPU), *sys.path]))
    for strategy in strategies:
        if strategy.startswith("zero") and find_spec("deepspeed") is None:
            warnings.warn(f"{strategy} of {run} is not tested: deepspeed is not installed", stacklevel=1)
            continue
        shared = (f"per_device_train_batch_size={rows // 2}", f"launch.strategy={strategy}", "launch.processes=2")
        two = cli(*words, *shared, "launch.persistence_threshold=0", "--name", strategy)
        assert two.returncode == 0, two.stderr
        assert difference(one, weights(store, two.stdout)) < 1e-3 * moved, strategy


def test_the_same_comparison_finds_a_process_whose_rows_are_lost(cli, store, tiny_artifact, toy_data):
    """The control: with half of the rows of each step the weights are others, by far more than the bar."""
    whole, half = (cli(*SFT, f"per_device_train_batch_size={rows}") for rows in (4, 2))
    first, second = weights(store, whole.stdout), weights(store, half.stdout)
    assert difference(first, second) > 0.05 * difference(weights(store, "model/tiny"), first)


SHORT = (*SFT, *TWO, "per_device_train_batch_size=2", "save_steps=2")


def running(store: Store) -> list[int]:
    """The processes that work on runs of this store."""
    return [p.pid for p in psutil.process_iter(["cmdline"]) if str(store.runs) in " ".join(p.info["cmdline"] or [])]


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def test_a_killed_command_leaves_no_process_and_resumes_to_the_same_bits(cli, kill_after, store, tiny_artifact, toy_data):
    kill_after(2, *SHORT)
    wait_for(lambda: not running(store), 30)
    resumed = cli(*SHORT)
    assert resumed.returncode == 0 and "resumed at step" in resumed.stderr, resumed.stderr
    whole = cli(*SHORT, "--fresh")
    assert whole.returncode == 0, whole.stderr
    assert difference(weights(store, resumed.stdout), weights(store, whole.stdout)) == 0


def test_sigterm_stops_all_processes_at_one_step_with_a_checkpoint(start_cli, store, tiny_artifact, toy_data):
    process = start_cli(*SHORT, "max_steps=2000", "save_steps=10000")
    wait_for(lambda: list(store.runs.glob("*/metrics.jsonl")) and read_metrics(next(store.runs.glob("*/metrics.jsonl"))))
    process.send_signal(signal.SIGTERM)
    _, printed = process.communicate(timeout=120)
    assert process.returncode == 75 and "stopped by SIGTERM" in printed
    (checkpoint,) = store.runs.glob("*/checkpoints/*/COMPLETE.json")
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in checkpoint.parent.iterdir()}
    assert not running(store)


def test_a_killed_process_is_named(start_cli, store, tiny_artifact, toy_data):
    process = start_cli(*SHORT, "max_steps=2000", "save_steps=10000")
    wait_for(lambda: list(store.runs.glob("*/metrics.jsonl")) and read_metrics(next(store.runs.glob("*/metrics.jsonl"))))
    (record,) = store.runs.glob("*/ranks/1.json")
    os.kill(json.loads(record.read_bytes())["pid"], signal.SIGKILL)
    _, printed = process.communicate(timeout=120)
    assert process.returncode == 1 and "process 1 of 2 was ended by signal 9" in printed, printed
    assert str(record.with_suffix(".log")) in printed
    assert not running(store)


def test_the_error_of_all_processes_is_the_commands(cli, store, tiny_artifact, toy_data):
    refused = cli(*SHORT, "max_length=8")
    assert refused.returncode == 3 and "cannot be trained on" in refused.stderr and "Traceback" not in refused.stderr, refused.stderr
