"""Memory that runs out in training: once more with half as many rows in a pass, and otherwise an error that names what took the most."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from safework_cli.core.errors import OutOfMemory
from safework_cli.core.memory import half_passes, run_in_memory
from safework_cli.core.progress import Progress, QuietDisplay
from safework_cli.core.signals import StopRequest
from safework_cli.core.stage import Inputs, WorkDir
from safework_cli.core.system import PeakMemory, peak_memory
from safework_cli.core.system_errors import ACTIVATIONS, GRADIENTS, OPTIMISER, REFERENCE, WEIGHTS, TrainingOutOfMemory, explain
from safework_rl.m3.config import M3Config
from safework_sft.config import SftConfig
from safework_sft.stage import stage
from safework_sft.trainer import SupervisedTrainer

SFT = {"max_steps": 4, "learning_rate": 3e-3, "save_steps": 2, "sample_prompts": 0, "bf16": False, "padding_free": False}


def run(config: SftConfig, inputs: Inputs, folder) -> tuple[dict[str, torch.Tensor], list[dict], list[str]]:
    """The weights, the events and the notes of a run of sft."""
    folder.mkdir()
    progress = Progress(folder, QuietDisplay())
    work = WorkDir(folder, "0" * 64, progress, StopRequest())
    try:
        outcome = run_in_memory(stage.run, config, inputs, work)
    finally:
        progress.close()
    return load_file(work.output / "model.safetensors"), [json.loads(line) for line in (folder / "events.jsonl").open()], outcome.notes


@pytest.fixture
def inputs(tiny_artifact, toy_data) -> Inputs:
    return Inputs({"model": tiny_artifact, "data": toy_data.with_subset("cot")})


@pytest.fixture
def room_for(monkeypatch):
    """Limits the rows of a pass from the third step on, as an allocator would: by its error, inside a step. Returns the failed passes."""
    own, failed = SupervisedTrainer.compute_loss, []

    def limit(rows: int, error: Exception | None = None) -> list[int]:
        def compute_loss(self, model, batch, *others, **settings):
            loss = own(self, model, batch, *others, **settings)
            if self.state.global_step >= 2 and len(batch["labels"]) > rows:
                loss.backward()  # gradients of a part of the step are there when memory runs out
                failed.append(len(batch["labels"]))
                raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has …")
            return loss

        monkeypatch.setattr(SupervisedTrainer, "compute_loss", compute_loss)
        return failed

    return limit


def test_a_pass_without_memory_is_tried_once_more_with_half_of_its_rows(inputs, tmp_path, room_for):
    config = SftConfig(**SFT, per_device_train_batch_size=8)
    whole, _, _ = run(config, inputs, tmp_path / "whole")
    failed = room_for(4)
    halved, events, notes = run(config, inputs, tmp_path / "halved")
    assert failed == [8], "from there on, passes have four rows"
    assert max(float((whole[name] - halved[name]).abs().max()) for name in whole) < 1e-5, "the same rows made a step"
    (warning,) = (event["text"] for event in events if event["event"] == "warning" and "out of memory" in event["text"])
    assert "per_device_train_batch_size=4 gradient_accumulation_steps=2" in warning and "Tried to allocate 20.00 GiB" in warning
    assert notes[-1].startswith("out of memory with per_device_train_batch_size=8")
    assert any("resumed at step 2 of 4" in event.get("text", "") for event in events)


def test_memory_that_does_not_suffice_for_half_is_an_error_with_the_largest_consumer(inputs, tmp_path, room_for):
    failed = room_for(2)
    config = SftConfig(**SFT, per_device_train_batch_size=8)
    with pytest.raises(TrainingOutOfMemory) as raised:
        run(config, inputs, tmp_path / "run")
    assert failed == [8, 4]
    error = explain(raised.value, None, config)
    assert isinstance(error, OutOfMemory) and f"{ACTIVATIONS} took the most, 2" in error.what  # 20 GiB and this process
    assert "Tried to allocate 20.00 GiB" in error.why and all(name in error.why for name in (WEIGHTS, GRADIENTS, OPTIMISER))
    assert error.do.startswith("lower per_device_train_batch_size (now 8)")


def test_what_a_cpu_says_counts_too(inputs, tmp_path, monkeypatch):
    def compute_loss(self, *others, **settings):
        return torch.empty(2**60, dtype=torch.uint8).sum()

    monkeypatch.setattr(SupervisedTrainer, "compute_loss", compute_loss)
    with pytest.raises(TrainingOutOfMemory, match="allocate"):
        run(SftConfig(**SFT, per_device_train_batch_size=1), inputs, tmp_path / "run")


def test_the_settings_that_are_named_are_those_of_the_largest_consumer():
    def explained(largest: str, config) -> OutOfMemory:
        held = dict.fromkeys((WEIGHTS, GRADIENTS, OPTIMISER, REFERENCE, ACTIVATIONS), 2**30) | {largest: 2**34}
        error = explain(TrainingOutOfMemory("CUDA out of memory.", held), None, config)
        assert isinstance(error, OutOfMemory) and error.exit_code == 2 and f"{largest} took the most, 16.0 GiB" in error.what
        return error

    for largest in (WEIGHTS, GRADIENTS, OPTIMISER):
        assert explained(largest, SftConfig()).do.startswith("set lora={}; or divide them among processes: launch.strategy=fsdp")
        assert explained(largest, SftConfig(lora={})).do.startswith("divide them among processes")
    assert explained(REFERENCE, SftConfig(kl={})).do.startswith("set lora={}; or set kl=null")
    assert explained(REFERENCE, M3Config(beta=0.1)).do.startswith("set lora={}; or set beta=0")


def test_half_passes_leave_a_step_as_it_was():
    half = half_passes(M3Config(per_device_train_batch_size=8, gradient_accumulation_steps=4, steps_per_generation=8, num_generations=8))
    assert (half.per_device_train_batch_size, half.gradient_accumulation_steps, half.steps_per_generation) == (4, 8, 16)
    assert half.generation_batch_size == 16
    for name in ("prompts_per_step", "updates_per_rollout", "prompts_per_rollout"):
        assert getattr(half, name) == getattr(M3Config(num_generations=8, steps_per_generation=8), name)
    assert half_passes(SftConfig(per_device_train_batch_size=3)) is None and half_passes(SftConfig(per_device_train_batch_size=1)) is None
    assert half_passes(SftConfig(launch={"strategy": "ddp", "processes": 2})) is None, "processes have to stay in step"


def test_the_peak_of_a_gpu_is_recorded_next_to_the_hosts(monkeypatch):
    assert peak_memory().gpu is None and peak_memory().host > 2**20
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: [5, 7][device])
    assert peak_memory().gpu == 7
    assert PeakMemory(3, 9) | PeakMemory(4) == PeakMemory(4, 9)
