"""The plan of a run against the run: peak memory, and the time of an update before any is measured and after the first one.

    python benchmarks/plan.py [--architectures llama qwen3 gemma3_text] [--strategies single ddp fsdp] [--hidden 1024] [--layers 12]
                              [--rows 8] [--length 256] [--steps 4] [--bf16] [--measure] [--json]

Random models of three architectures are fine-tuned on rows of one length, in float32 or with products in bfloat16, by one process and by
two. "memory": the plan's peak of a process against what the process held at its peak, beyond what it held without the model (resident set
on a CPU, ``max_memory_allocated`` on a GPU). "time": the plan's seconds of an update, with the speed of a product that the run measures
before its first update in place of the device's, against the mean over the updates but the first. "after the first": the first update's
seconds, less those in which the system gave the process its memory, against the same. ``--measure`` takes the activations from torch's
memory tracker, else they are by formula. FSDP2 on a CPU is made possible by ``processes_site``: accelerate offers it on GPUs only. There,
what a layer frees goes back to the system at once: the tool keeps it for the next step, and pieces of gathered weights would count as held.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from processes_runs import COMMAND, SITE, commit_rows

from safework_cli.core.artifacts import Store
from safework_cli.core.artifacts.manifest import RECORD
from safework_cli.core.config import resolve
from safework_cli.core.formats import duration, size
from safework_cli.core.plan.device import device_of
from safework_cli.core.plan.duration import step_seconds
from safework_cli.core.plan.work import Activations, Work
from safework_cli.core.prepare import prepare
from safework_cli.core.registry import load_stage

ARCHITECTURES = ("llama", "qwen3", "gemma3_text")
STRATEGIES = ("single", "ddp", "fsdp")
PROCESSES = 2
BARS = {"memory": 0.20, "time": 0.50, "after the first": 0.15}
"""The largest relative difference of plan and run."""
VOCABULARY = 8192


@dataclass(frozen=True, slots=True)
class Bar:
    """A planned number against a measured one; ``value`` is their relative difference."""

    name: str
    planned: float
    measured: float
    value: float
    bar: float
    holds: bool


def main() -> None:
    options = parse(sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        commit_rows(store, "rows", list(rows_of(options)))
        bars = []
        for architecture in options.architectures:
            model = random_model(Path(folder) / architecture, architecture, options)
            for strategy in options.strategies:
                for bar in compared(store, model, architecture, strategy, options):
                    print(line(bar), file=sys.stderr, flush=True)
                    bars.append(bar)
    if options.json:
        print(json.dumps({"bars": [asdict(bar) for bar in bars]}))
    else:
        print("\n".join(map(line, bars)))
    sys.exit(not all(bar.holds for bar in bars))


def parse(words: list[str]) -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    options.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    options.add_argument("--hidden", type=int, default=1024)
    options.add_argument("--layers", type=int, default=12)
    options.add_argument("--rows", type=int, default=8, help="of an update, over all processes")
    options.add_argument("--length", type=int, default=256, help="tokens of a row")
    options.add_argument("--steps", type=int, default=4)
    options.add_argument("--bf16", action="store_true", help="products in bfloat16")
    options.add_argument("--measure", action="store_true")
    options.add_argument("--json", action="store_true")
    return options.parse_args(words)


def rows_of(options: argparse.Namespace) -> Iterator[Any]:
    """Rows of one length: half of each is the reply."""
    from safework_cli.data.row import Row

    half = options.length // 2 - 12  # the template's own tokens, one a byte
    for number in range(options.rows * options.steps):
        text = f"{number:04d} " * (half // 5 + 1)
        messages = [{"role": "user", "content": text[:half]}, {"role": "assistant", "content": text[::-1][:half]}]
        yield Row(str(number), "general", messages)


def random_model(folder: Path, architecture: str, options: argparse.Namespace) -> Path:
    """The folder of a random model with the tiny models' tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from safework_cli.models.load import load_tokenizer, save_model
    from safework_cli.models.tiny import create_tiny_model

    create_tiny_model(folder)
    tokenizer = load_tokenizer(folder)
    config = AutoConfig.for_model(
        architecture, vocab_size=VOCABULARY, hidden_size=options.hidden, intermediate_size=11 * options.hidden // 4,
        num_hidden_layers=options.layers, num_attention_heads=8, num_key_value_heads=4, head_dim=options.hidden // 8,
        max_position_embeddings=4096, tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    save_model(AutoModelForCausalLM.from_config(config, dtype=torch.float32), tokenizer, folder)
    return folder


def words_of(model: Path, strategy: str, options: argparse.Namespace) -> list[str]:
    """The settings of a run: the same rows in each update, whatever the processes."""
    words = [f"model={model}", "data=dataset/rows", f"max_steps={options.steps}", f"bf16={options.bf16}", "sample_prompts=0"]
    if strategy == "single":
        return [*words, f"per_device_train_batch_size={options.rows}"]
    each = options.rows // PROCESSES
    return [*words, f"per_device_train_batch_size={each}", f"launch.strategy={strategy}", f"launch.processes={PROCESSES}"]


def compared(store: Store, model: Path, architecture: str, strategy: str, options: argparse.Namespace) -> Iterator[Bar]:
    """Plans a run, runs it, and compares."""
    stage, words = load_stage("sft"), words_of(model, strategy, options)
    resolved = resolve(stage, [], words)
    prepared = prepare(stage, resolved, store, measure=tracked if options.measure else None)
    work, planned = prepared.plan.work, prepared.plan.estimate
    assert work is not None and planned is not None
    events = run(store, words, {"PROCESSES_RETURN_MEMORY": "1"} if strategy == "fsdp" else {})
    first, every = events["first_updates"], events["all_updates"]
    rest = (every["seconds"] * every["updates"] - first["seconds"]) / (every["updates"] - 1)
    launch = resolved.config.launch
    speed = {"half" if options.bf16 else "single": first["product_speed"] * launch.processes}
    device = replace(device_of(launch, None), **speed)
    name = f"{architecture}, {strategy}"
    yield bar(f"{name}: memory", planned.memory.peak, every["peak_bytes"], BARS["memory"])
    yield bar(f"{name}: time", step_seconds(work, launch, device), rest, BARS["time"])
    yield bar(f"{name}: time after the first", first["lasting_seconds"], rest, BARS["after the first"])


def tracked(work: Work, config: Any) -> Activations:
    from safework_cli.models.activations import measured

    return measured(work)


def run(store: Store, words: list[str], more: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Runs ``safework sft``; its last event of each kind."""
    path = os.pathsep.join([str(SITE), *filter(None, sys.path)])
    environment = os.environ | {"SAFEWORK_STORE": str(store.root), "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"} | more
    done = subprocess.run([*COMMAND, "sft", *words, "--fresh"], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"safework sft {' '.join(words)} failed:\n{done.stderr[-3000:]}")
    written = store.resolve(done.stdout.strip(), ("model",)).path / RECORD / "events.jsonl"
    return {event["event"]: event for event in map(json.loads, written.read_text().splitlines())}


def bar(name: str, planned: float, measured: float, limit: float) -> Bar:
    value = abs(planned / measured - 1)
    return Bar(name, planned, measured, round(value, 4), limit, value <= limit)


def line(one: Bar) -> str:
    shown = size if one.name.endswith("memory") else duration
    figures = f"planned {shown(one.planned):>10}   measured {shown(one.measured):>10}   off by {one.value:.0%} (≤ {one.bar:.0%})"
    return f"{one.name:38} {figures}" + ("" if one.holds else "   MISSED")


if __name__ == "__main__":
    main()
