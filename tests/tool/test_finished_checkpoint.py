"""A command that is killed after its last training step has nothing left to train: run again, it makes the same artifact."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from safework_cli.core.artifacts import Store
from safework_cli.data.row import Row, write_rows

KILLED_AS_IT_SAVES = """
import os, signal
import safework_cli.models.load as models
models.save_model = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
from safework_cli.cli.main import main
main()
"""
STEPS = ("max_steps=4", "save_steps=2", "learning_rate=1e-3", "-q")


def _labelled(folder: Path) -> Path:
    replies = {"Safe with refusal": "no no no", "Safe without risk": "yes yes", "Unsafe": "zzzz zzzz"}
    rows = []
    for i in range(90):
        label = list(replies)[i % 3]
        messages = [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"<think>t</think>{replies[label]}"}]
        rows.append(Row(str(i), "safety", messages, harmful=label != "Safe without risk", meta={"label": label}))
    return _written(folder, rows)


def _prefixes(folder: Path) -> Path:
    rows = []
    for i in range(60):
        for text, value in (("aaaa", 0.9), ("zzzz", 0.1)):
            messages = [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": text}]
            rows.append(Row(f"{i}{text}", "safety", messages, meta={"group": str(i), "values": {"safety": value}}))
    return _written(folder, rows)


def _written(folder: Path, rows: list[Row]) -> Path:
    folder.mkdir()
    write_rows(folder / "rows.parquet", rows)
    return folder


@pytest.mark.parametrize("command", ["sft", "verifier train", "verifier values", "rl m3"])
def test_it_trains_no_step_more(command, tiny_artifact, toy_data, tmp_path, store: Store, cli):
    words = [*command.split(), "model=tiny", *STEPS]
    match command:
        case "sft":
            words += ["data=toy:cot", "sample_prompts=2", "sample_max_tokens=8"]
        case "verifier train":
            words += [f"data={_labelled(tmp_path / 'rows')}", "instruction=short", "max_length=256", "eval_fraction=0.4", "attack_rows=0"]
        case "verifier values":
            words += [f"data={_prefixes(tmp_path / 'rows')}", "max_length=64", "train_layers=0", "head_learning_rate=0.01"]
        case "rl m3":
            words += [
                "data=toy:rl", "rewards.safety={constraints: 1}", "format.mode=term", "format.weight=0.1", "filter_groups=false",
                "preflight=0",
                "num_generations=4", "per_device_train_batch_size=4", "gradient_accumulation_steps=1", "max_completion_length=8",
                "phases=[{tasks: [safety], share: 1}]",
            ]  # fmt: skip
    whole = cli(*words)
    assert whole.returncode == 0, whole.stderr
    expected = store.resolve(whole.stdout.strip())
    store.remove(expected)

    environment = os.environ | {"SAFEWORK_STORE": str(store.root)}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AS_IT_SAVES, *words], env=environment, capture_output=True, text=True, timeout=280
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = cli(*words)
    assert again.returncode == 0, again.stderr
    made = store.resolve(again.stdout.strip())
    assert made.manifest.metrics["steps"] == 4
    assert {f.path: f.sha256 for f in made.manifest.files if f.path.endswith(".safetensors")} == {
        f.path: f.sha256 for f in expected.manifest.files if f.path.endswith(".safetensors")
    }
    assert made.manifest.metrics == expected.manifest.metrics
    events = [json.loads(line) for line in (made.path / "safework" / "events.jsonl").read_text().splitlines()]
    assert "resumed at step 4 of 4" in [event.get("text") for event in events]
