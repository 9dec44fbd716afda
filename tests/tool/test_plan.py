"""What a plan says that a run needs: bytes by hand and against torch's memory tracker, refusals, and the run's own comparison."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from conftest import cli_environment
from safework_cli.core.artifacts import Store
from safework_cli.core.artifacts.manifest import RECORD
from safework_cli.core.artifacts.transfer import import_folder
from safework_cli.core.config import resolve
from safework_cli.core.errors import ConfigError
from safework_cli.core.plan import device
from safework_cli.core.plan.cards import CARDS, card_like, card_named
from safework_cli.core.plan.device import Device, device_of
from safework_cli.core.plan.duration import step_flops, step_seconds
from safework_cli.core.plan.estimate import estimate, estimate_lines
from safework_cli.core.plan.fit import setting_that_fits
from safework_cli.core.plan.memory import ON_CPU, layer_bytes, memory_of
from safework_cli.core.plan.shape import ModelShape
from safework_cli.core.plan.tokens import characters_per_token, passes_of
from safework_cli.core.plan.work import Activations, Estimate, Sampling, Work
from safework_cli.core.prepare import prepare
from safework_cli.core.registry import load_stage
from safework_cli.core.runtime import execute
from safework_cli.core.settings import LaunchSettings, SlurmSettings
from safework_cli.core.stage import Plan
from safework_cli.training.work import disk_of

SHAPE = ModelShape(
    parameters=1_000, layers=2, layer=300, active=300, embedding=200, head=200, tied=False, hidden=10, feed_forward=30, query=10, key=5,
    vocabulary=20, stored=2.0,
)  # fmt: skip
WORK = Work(
    Path("model"), SHAPE, held=1_000, trained=1_000, layers=2, backward=2, rows=2, length=8, pass_tokens=16, head="supervised",
    head_tokens=4, step_tokens=16, step_head_tokens=4, steps=5, bf16=False, checkpointing=False, lora=False,
)  # fmt: skip
CPU = Device("cpu", "cores", 16 * 2**30, None, 2e9, 1e9, 1e9, bf16=False)
SEVEN = ModelShape(
    parameters=7_615_616_512, layers=28, layer=233_057_792, active=233_057_792, embedding=544_997_376, head=544_997_376, tied=False,
    hidden=3_584, feed_forward=18_944, query=3_584, key=512, vocabulary=152_064, stored=2.0,
)  # fmt: skip


def launch(strategy: str = "single", processes: int = 1, **more: Any) -> LaunchSettings:
    return LaunchSettings(strategy=strategy, processes=processes, **more)


# ------------------------------------------------------------------ bytes


def test_bytes_of_one_process_by_hand():
    memory = memory_of(WORK, launch(), CPU)
    assert (memory.weights, memory.gradients, memory.optimizer) == (4_000, 4_000, 8_000)
    layer = 4 * (2 * 2 * 10 + 2 * 10 + 4 * 10 + 4 * 30)  # norms, inputs of projections, attention, MLP
    assert memory.activations == 16 * (2 * layer + 8 * (10 + 30)) and memory.logits == 12 * 4 * 20
    early = 4 * 200  # the head's gradient is there before the activations are gone
    assert memory.peak == ON_CPU + 4_000 + 8_000 + max(memory.activations + memory.logits + early, 4_000)
    assert memory.first_peak == ON_CPU + 4_000 + max(memory.activations + memory.logits + early, 4_000 + 8_000)
    assert memory_of(WORK, launch(), replace(CPU, kind="gpu")).peak == memory.peak - ON_CPU == memory.peak - memory.parts["libraries"]


def test_gradients_are_there_during_the_passes_where_several_make_an_update():
    once, twice = memory_of(WORK, launch(), CPU), memory_of(replace(WORK, passes=2), launch(), CPU)
    assert twice.peak - once.peak == 4 * 1_000 - 4 * 200


@pytest.mark.parametrize(
    ("strategy", "weights", "gradients", "moments"),
    [
        ("ddp", 4_000, 8_000, 8_000),  # the reducer's buckets are copies of the gradients
        ("zero2", 4_000, 1_000 + 8_000, 3_000),  # two buckets, and a float32 copy of the part
        ("zero3", 1_000 + 4_000, 1_000 + 8_000, 3_000),
        ("fsdp", 1_000 + 4 * (400 + 600), 1_000 + 4_000, 2_000),  # both embeddings and two layers are gathered
    ],
)
def test_bytes_of_each_of_four_processes(strategy, weights, gradients, moments):
    memory = memory_of(WORK, launch(strategy, 4), CPU)
    assert (memory.weights, memory.gradients, memory.optimizer) == (weights, gradients, moments)


def test_weights_that_are_divided_after_loading_have_to_fit_whole():
    little = replace(WORK, pass_tokens=0, head_tokens=0, trained=1, shape=replace(SHAPE, layer=1, embedding=1, head=1))
    card = replace(CPU, kind="gpu")
    whole, parts = (memory_of(replace(little, loads_parts=given), launch("fsdp", 4), card).peak for given in (False, True))
    assert whole == 4_000 and parts < 1_100


def test_zero_trains_in_bfloat16_over_masters_and_autocast_over_float32_weights():
    gpu = replace(CPU, kind="gpu", bf16=True)
    half = replace(WORK, bf16=True)
    assert memory_of(half, launch("zero2", 4), gpu).weights == 2_000
    assert memory_of(half, launch(), gpu).weights == 4_000
    copies = 2 * (2 * 300 + 200)  # of the layers and the head
    layer = 4 * 4 * 10 + 10 * 10 + 8 * 30 + 8 * 10
    assert memory_of(half, launch(), gpu).activations == 16 * (2 * layer + 8 * 40) + copies


def test_logits_on_a_card_are_those_of_its_own_head():
    gpu, wide = replace(CPU, kind="gpu"), replace(WORK, shape=replace(SHAPE, vocabulary=100_000), head_on_card="tiles")
    assert memory_of(wide, launch(), CPU).logits == 12 * 4 * 100_000
    assert memory_of(wide, launch(), gpu).logits == 8 * 4 * 32_768


def test_recomputed_activations_keep_a_layers_input_and_one_layer():
    layer = layer_bytes(SHAPE, bf16=False, attention_in_float32=True)
    memory = memory_of(replace(WORK, checkpointing=True), launch(), CPU)
    assert memory.activations == 16 * (2 * 4 * 10 + layer + 8 * 40)
    measured = memory_of(WORK, launch(), CPU, Activations(base=100.0, layer=50.0))
    assert measured.activations == 200


def test_sampling_holds_keys_and_values_and_gathers_divided_weights():
    sampled = replace(WORK, sampling=Sampling(batch=4, prompt=6, reply=10, step_replies=4))
    memory = memory_of(sampled, launch(), CPU)
    assert memory.cache == 2 * 4 * 5 * 2 * 4 * 16
    large = replace(sampled, sampling=replace(sampled.sampling, batch=400))
    whole, without = (memory_of(each, launch("fsdp", 2), CPU) for each in (large, replace(large, sampling=None)))
    assert whole.cache == 100 * memory.cache
    logits, gathered = 8 * 400 * 20, 4 * 1_000
    assert whole.peak - without.peak == whole.cache + logits + gathered - without.activations - without.logits, "in place of a pass"


CONFIGS = {
    "llama": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 16},
}


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_formula_agrees_with_the_memory_tracker(architecture, bf16, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    from safework_cli.models.activations import measured

    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = AutoConfig.for_model(architecture, **sizes, **CONFIGS[architecture])
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    shape = ModelShape.of(tmp_path)
    rows, length = 2, 64
    work = replace(WORK, folder=tmp_path, shape=shape, rows=rows, pass_tokens=rows * length, bf16=bf16)
    tracked = measured(work)
    formula = layer_bytes(shape, bf16=bf16, attention_in_float32=True) * rows * length
    assert formula == pytest.approx(tracked.layer, rel=0.1)
    assert 0 <= tracked.base <= 2 * formula


def test_the_shape_of_a_model_is_read_from_its_folder(tiny_model):
    from safework_cli.models.load import load_model

    shape, model = ModelShape.of(tiny_model), load_model(tiny_model, dtype="float32")
    config, layers = model.config, model.model.layers
    assert shape.parameters == model.num_parameters() and shape.layers == len(layers) == config.num_hidden_layers
    assert shape.layer == sum(weight.numel() for weight in layers[0].parameters())
    assert (shape.hidden, shape.feed_forward, shape.vocabulary) == (config.hidden_size, config.intermediate_size, config.vocab_size)
    assert shape.tied == config.tie_word_embeddings and shape.norms == 2 and not shape.head_norms


def test_the_shape_of_an_adapters_base_is_that_of_its_configuration(tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(sizes | {"vocab_size": 100, "tie_word_embeddings": True}))
    save_file({"layers.0.q_proj.lora_A.weight": np.zeros((2, 64), np.float32)}, tmp_path / "adapter_model.safetensors")
    shape = ModelShape.of(tmp_path)
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160 + 2 * 64
    assert (shape.layer, shape.parameters, shape.key) == (layer, 3 * layer + 64 + 100 * 64, 32)


def test_disk_is_two_checkpoints_with_a_third_or_the_artifact():
    assert disk_of(WORK, "source") == 3 * 12 * 1_000  # the next one is written before the oldest is deleted
    adapters = replace(WORK, trained=10, lora=True)
    assert disk_of(adapters, "float32") == 4 * 1_000 + 2 * 12 * 10
    assert disk_of(adapters, "source", adapters_only=True) == 3 * 12 * 10


# ------------------------------------------------------------------ time


def test_operations_and_seconds_of_an_update_by_hand():
    layer = 2 * 300 + 2 * 10 * 8
    assert step_flops(WORK) == 16 * layer * 2 * 3 + 4 * 2 * 10 * 20 * 3
    adapters = replace(WORK, own_gradient=0.0, trained=10)
    assert step_flops(adapters) == 16 * layer * 2 * 2 + 4 * 2 * 10 * 20 * 3
    assert step_flops(replace(WORK, extra_forwards=1.0)) - step_flops(WORK) == 16 * layer * 2
    assert step_seconds(WORK, launch(), CPU) == pytest.approx(step_flops(WORK) / 0.8e9 + 28 * 1_000 / 1e9)
    assert step_seconds(WORK, launch("ddp", 2), CPU) == pytest.approx(2 * step_seconds(WORK, launch(), CPU))  # they share the cores
    assert step_seconds(WORK, launch(), replace(CPU, single=0.0)) == 0.0


def test_passes_take_the_longest_rows_of_an_update_together():
    passes = passes_of([1, 2, 3, 4], rows=2, passes=2, processes=1, padded=False)
    assert (passes.longest, passes.largest, passes.per_step) == (4, 7, 10)
    assert passes_of([1, 2, 3, 4], rows=2, passes=2, processes=1, padded=True).per_step == 2 * 4 + 2 * 2
    assert passes_of([1, 2, 3, 4], rows=2, passes=1, processes=2, padded=False).per_step == 5


def test_tokens_are_counted_by_the_models_own_tokenizer(tiny_model, tmp_path):
    assert characters_per_token(tiny_model, ["plain words"] * 3) == pytest.approx(1.0)  # one token a byte
    assert characters_per_token(tmp_path, ["plain words"]) == 4.0


# ------------------------------------------------------------------ devices


@pytest.mark.parametrize(
    ("text", "gib", "name"),
    [
        ("NVIDIA H100 80GB HBM3", 79.6, "NVIDIA H100 SXM"),
        ("NVIDIA H100 PCIe", None, "NVIDIA H100 PCIe"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "NVIDIA A100 40 GB"),
        ("a100_80gb", None, "NVIDIA A100 80 GB"),
        ("NVIDIA L40S", None, "NVIDIA L40S"),
        ("NVIDIA GeForce RTX 4090", None, "NVIDIA RTX 4090"),
        ("Tesla V100-SXM2-16GB", None, "NVIDIA V100 16 GB"),
        ("NVIDIA H200", 140, "NVIDIA H200 SXM"),
    ],
)
def test_what_a_driver_or_slurm_calls_a_card(text, gib, name):
    card = card_like(text, gib)
    assert card is not None and card.name == name
    assert card_like("NVIDIA K80") is None


def test_the_card_of_a_run_is_the_settings_or_slurms():
    assert device_of(launch(device="H100"), None).name == CARDS["h100"].name
    eight = device_of(launch(), SlurmSettings(gpus_per_node="a100:8"))
    assert (eight.name, eight.count, eight.memory) == ("NVIDIA A100 80 GB", 8, 80 * 2**30)
    assert device_of(launch(), SlurmSettings(gpus_per_node="8")).memory is None
    cores = device_of(launch(), SlurmSettings(mem="500G"))
    assert (cores.kind, cores.memory) == ("cpu", 500 * 2**30)
    with pytest.raises(ConfigError, match="h1000 is unknown.*h100"):
        card_named("h1000")


def test_this_machine_is_measured():
    cores = device_of(launch(device="cpu"), None)
    assert cores.memory and 1e9 < cores.single < 1e15 and 1e8 < cores.bandwidth < 1e13


# ------------------------------------------------------------------ refusals


def planned(work: Work, **settings: Any) -> Plan:
    stage: Any = SimpleNamespace(name="sft", many_processes=True)
    plan = Plan(work=work)
    estimate(stage, SimpleNamespace(launch=LaunchSettings(**settings), slurm=None), plan)
    return plan


def seven_billion(**more: Any) -> Work:
    every = {"held": SEVEN.parameters, "trained": SEVEN.parameters, "layers": 28, "backward": 28, "rows": 8, "length": 2_048}
    every |= {"pass_tokens": 8 * 1_024, "head_tokens": 8 * 512, "bf16": None}
    return replace(WORK, shape=SEVEN, **every | more)


def test_a_strategy_whose_memory_cannot_suffice_is_refused_with_what_fits():
    plan = planned(seven_billion(), device="h100")
    refusal = plan.too_large
    assert refusal is not None and not plan.refusals
    assert "NVIDIA H100 SXM leaves 78.6 GiB" in refusal.what and "weights 28.4 GiB · gradients 28.4 GiB · optimiser 56.7 GiB" in refusal.why
    assert refusal.do.startswith("launch.strategy=fsdp launch.processes=")
    settings = dict(word.split("=") for word in refusal.do.split(" needs ")[0].split())
    work = seven_billion(checkpointing=settings.get("gradient_checkpointing") == "true")
    if rows := settings.get("per_device_train_batch_size"):
        share = int(rows) / work.rows
        work = replace(work, rows=int(rows), passes=int(settings["gradient_accumulation_steps"]), pass_tokens=work.pass_tokens * share)
        work = replace(work, head_tokens=work.head_tokens * share)
    again = planned(work, device="h100", strategy="fsdp", processes=int(settings["launch.processes"]))
    assert not again.too_large and again.estimate is not None and again.estimate.memory.peak <= again.estimate.capacity


def test_smaller_passes_are_tried_before_more_processes_and_adapters():
    small = replace(seven_billion(), held=8 * 10**8, trained=8 * 10**8)
    assert setting_that_fits(small, launch(), device_of(launch(device="a40"), None), many_processes=True)[0] == (
        "per_device_train_batch_size=2 gradient_accumulation_steps=4"
    )
    alone = setting_that_fits(
        seven_billion(rows=1, pass_tokens=512), launch(), device_of(launch(device="h100"), None), many_processes=False
    )
    assert alone is not None and alone[0] == "lora={}"
    nothing = replace(seven_billion(), held=10**12, trained=10**12, lora=None)
    assert setting_that_fits(nothing, launch(), device_of(launch(device="t4"), None), many_processes=False) is None


def test_the_check_can_be_left_out_and_an_unknown_card_refuses_nothing():
    assert planned(seven_billion(), device="h100", check_memory=False).too_large is None
    stage: Any = SimpleNamespace(name="sft", many_processes=True)
    plan = Plan(work=seven_billion())
    estimate(stage, SimpleNamespace(launch=LaunchSettings(), slurm=SlurmSettings(gpus_per_node="8")), plan)
    assert plan.too_large is None and plan.estimate is not None and "launch.device=NAME" in plan.estimate.notes[0]


def test_lines_for_people_name_every_part_and_the_hours_of_cards():
    work = replace(seven_billion(step_tokens=65_536.0, steps=100), other_weights=10**8, passes=8)
    plan = planned(work, device="h100", strategy="fsdp", processes=8)
    plan.disk_bytes, plan.tokens, plan.optimizer_steps = 2**30, 12_000, 100
    first, parts, *rest = list(estimate_lines(plan))
    assert first.startswith("memory of each of 8 processes at its peak: ") and "of 78.6 GiB (NVIDIA H100 SXM" in first
    assert [part.strip().rsplit(" ", 2)[0] for part in parts.split("·")] == [
        "weights", "gradients", "optimiser", "activations", "logits", "other models",
    ]  # fmt: skip
    assert "host memory: " in rest[-1] and "disk: 1.0 GiB" in rest[-1] and "GPU hours" in rest[-1]


def test_an_estimate_reaches_the_processes_of_a_run():
    made = planned(WORK, device="h100").estimate
    assert made is not None and Estimate.from_json(json.loads(json.dumps(made.to_json()))) == made


# ------------------------------------------------------------------ the commands and the run

DRY = """
import sys
from safework_cli.cli.main import main
sys.argv = ["safework", *{words}]
try:
    main()
finally:
    print("imported", [name for name in ("torch", "transformers") if name in sys.modules], file=sys.stderr)
"""


def test_a_dry_run_prints_the_plan_without_torch(store: Store, toy_data, tiny_model):
    words = ["sft", f"model={tiny_model}", f"data={toy_data.ref}:cot", "--dry-run", "--json", "launch.device=h100"]
    done = subprocess.run(
        [sys.executable, "-c", DRY.format(words=words)], env=cli_environment(store), capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0 and "imported []" in done.stderr, done.stderr
    made = json.loads(done.stdout)["estimates"]
    shape = ModelShape.of(tiny_model)
    assert made["memory"]["weights"] == 4 * shape.parameters and made["device"] == "NVIDIA H100 SXM" and made["gpu_hours"] > 0
    assert made["optimizer_steps"] == 8 and made["tokens"] > 0 and made["disk_bytes"] > 0 and made["measured"] is False


def test_where_nvidia_smi_fails_the_plan_is_not_that_of_the_cpu(tmp_path, monkeypatch):
    script = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    ask = device.this_gpu.__wrapped__
    assert ask() is None
    script.write_text("#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'\nexit 18\n")
    script.chmod(0o755)
    failed = ask()
    assert failed.kind == "gpu" and failed.memory is None and "nvidia-smi fails" in failed.name
    script.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81559'\n")
    assert ask().name == "NVIDIA H100 SXM" and ask().memory == 81559 * 2**20 and ask().count == 1


def test_a_run_that_cannot_fit_does_not_start_and_one_that_runs_compares_itself_with_the_plan(
    cli, store: Store, toy_data, tiny_model, monkeypatch
):
    import_folder(store, tiny_model, "tiny")
    stage, small = load_stage("sft"), Device("cpu", "a small machine", 2**30 + 2**20, None, 1e9, 1e9, 1e9, bf16=False)
    words = ["model=tiny", f"data={toy_data.ref}:cot", "max_steps=2", "per_device_train_batch_size=4", "sample_prompts=0"]
    with monkeypatch.context() as patched:
        patched.setattr(device, "this_gpu", lambda: None)
        patched.setattr(device, "this_cpu", lambda: small)
        refused = prepare(stage, resolve(stage, [], words), store)
        with pytest.raises(ConfigError, match="a small machine leaves 1.0 MiB"):
            execute(refused, store)
        allowed = prepare(stage, resolve(stage, [], [*words, "launch.check_memory=false"]), store)
    assert allowed.fingerprint == refused.fingerprint and allowed.plan.too_large is None

    done = cli("sft", *words)
    assert done.returncode == 0, done.stderr
    assert "the first update took" in done.stderr and "(planned: " in done.stderr
    written = store.resolve(done.stdout.strip(), ("model",)).path / RECORD / "events.jsonl"
    events = {event["event"]: event for event in map(json.loads, written.read_text().splitlines())}
    assert events["first_updates"]["updates"] == 1 and events["all_updates"]["updates"] == 2
    assert 0 < events["first_updates"]["lasting_seconds"] <= events["first_updates"]["seconds"]
    assert events["first_updates"]["product_speed"] > 0 and events["all_updates"]["planned_bytes"] > 0
    assert execute(refused, store).already  # what is there already is printed on any machine


def test_what_the_first_update_takes_for_new_memory_does_not_come_again():
    """A gibibyte of pages takes the system tenths of a second, and memory that is there already takes none."""
    from safework_cli.training.planned import Measured, new_memory_seconds

    assert Measured(updates=1, seconds=10.0, peak=None, once=1.5).lasting == 8.5
    assert Measured(updates=2, seconds=10.0, peak=None, once=3.0).lasting == 8.5
    assert 0 <= new_memory_seconds() < 20 / 2**30


def test_checkpoints_are_no_part_of_an_updates_time(store: Store, toy_data, tiny_model, monkeypatch):
    from safework_cli.training.callbacks import Seal

    words = [f"model={tiny_model}", f"data={toy_data.ref}:cot", "max_steps=3", "per_device_train_batch_size=4", "sample_prompts=0"]
    sealed = Seal.on_save
    waited = []

    def slowly(*args, **more) -> None:
        waited.append(time.sleep(3))
        sealed(*args, **more)

    monkeypatch.setattr(Seal, "on_save", slowly)
    made = execute(prepare(load_stage("sft"), resolve(load_stage("sft"), [], [*words, "save_steps=1"]), store), store)
    events = map(json.loads, (made.artifact.path / RECORD / "events.jsonl").read_text().splitlines())
    seconds = {event["event"]: event["seconds"] for event in events if event["event"] in ("first_updates", "all_updates")}
    assert len(waited) == 3 and seconds["all_updates"] < 2, seconds


def test_measuring_belongs_to_the_dry_run(cli, toy_data, tiny_model):
    done = cli("sft", f"model={tiny_model}", f"data={toy_data.ref}:cot", "--measure")
    assert done.returncode == 2 and "--measure is given without --dry-run" in done.stderr
