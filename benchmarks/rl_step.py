"""One whole RL step (sampling, log-probabilities, backward, optimiser): ours in float32 and in bfloat16, and TRL's GRPOTrainer.

    python benchmarks/rl_step.py --model REF [--prompt 384] [--completion 64] [--group 8] [--dtype float32] [--steps 5]
                                [--bf16] [--lora RANK] [--image SIDE] [--json]

All sides: the same model, prompts, group, completion length (the stop token is never drawn), temperature 1, AdamW, a reward that differs
within every group, one group a step. Each side runs in a process of its own; the first step, which pays for imports and allocations,
is left out; medians of the others. "beyond" is peak memory less weights, gradients and optimiser state. "bf16" is ours with bf16=true:
weights stay float32, products are made in bfloat16. Its log-probabilities: how far those of sampling are from those of training (mean
over the tokens), and the largest log-ratio before the first update. ``--bf16``: both sides so, and float32 is not measured. ``--lora``:
both sides train adapters of that rank on every linear layer. ``--image``: each prompt begins with an image of SIDE × SIDE pixels
(448: 256 tokens), and the model is a random Qwen2.5-VL of SmolLM2's size in place of ``--model``; its tower is frozen on both sides.
Sampled tokens a second are those of the whole step.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from common import device, model_and_tokenizer, parser, vision_model_and_processor

from safework_cli.data.row import Image, Row

PARTS = ("step", "generation", "update")


def main() -> None:
    options = parse(sys.argv[1:])
    if options.side:
        print(json.dumps(measure(options)))
        return
    third = ["bf16"] if options.dtype == "float32" and not options.bf16 else []
    sides = {side: run_side(options, side) for side in ("trl", "ours", *third)}
    rows = []
    for what, unit in (("step_s", "s"), ("generation_s", "s"), ("update_s", "s"), ("beyond_gb", "GB"), ("peak_gb", "GB")):
        ours, theirs = sides["ours"][what], sides["trl"][what]
        row = {"what": what, "unit": unit, "ours": round(ours, 3), "trl": round(theirs, 3), "ratio": round(ours / theirs, 3)}
        if "bf16" in sides:
            row |= {"bf16": round(sides["bf16"][what], 3), "bf16_ratio": round(sides["bf16"][what] / ours, 3)}
        rows.append(row)
    sampled = options.group * options.completion
    speeds = {side: round(sampled / made["step_s"], 1) for side, made in sides.items()}
    rows.append({"what": "sampled_tokens", "unit": "1/s", **speeds, "ratio": round(speeds["ours"] / speeds["trl"], 3)})
    if third:
        rows[-1]["bf16_ratio"] = round(speeds["bf16"] / speeds["ours"], 3)
    measured = {side: made["log_probabilities"] for side, made in sides.items() if side != "trl"}
    named = ("model", "image", "prompt", "completion", "group", "dtype", "steps", "bf16", "lora")
    setting = {name: getattr(options, name) for name in named} | {"device": device()}
    if options.json:
        steps = {side: made["steps"] for side, made in sides.items()}
        print(json.dumps({"setting": setting, "rows": rows, "log_probabilities": measured, "steps": steps}))
        return
    print(" ".join(f"{name}={value}" for name, value in setting.items()))
    print(f"{'':14} {'ours':>9} {'TRL':>9} {'ratio':>7}" + (f" {'ours bf16':>10} {'to float32':>10}" if "bf16" in sides else ""))
    for row in rows:
        more = f" {row['bf16']:10.2f} {row['bf16_ratio']:10.2f}" if "bf16" in sides else ""
        print(f"{row['what']:14} {row['ours']:9.2f} {row['trl']:9.2f} {row['ratio']:7.2f}{more}")
    for side, numbers in measured.items():
        print(f"{side}: " + ", ".join(f"{name} {value:.2g}" for name, value in numbers.items()))


def parse(words: list[str]) -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=5, help="steps measured on each side")
    options.add_argument("--bf16", action="store_true", help="products in bfloat16 on both sides, weights as --dtype")
    options.add_argument("--lora", type=int, default=0, metavar="RANK", help="adapters on both sides")
    options.add_argument("--image", type=int, default=0, metavar="SIDE", help="of each prompt's image, in pixels")
    options.add_argument("--side", choices=["trl", "ours", "bf16"], help=argparse.SUPPRESS)
    given = options.parse_args(words)
    if given.image:
        given.model = "a random Qwen2.5-VL"
    return given


def run_side(options: argparse.Namespace, side: str) -> dict[str, Any]:
    env = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--side", side], env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the side '{side}' failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Times of every step but the first, and peak memory, of one side."""
    import torch
    from transformers import TrainerCallback

    model, speaker = made_of(options)
    model.generation_config.eos_token_id = None  # every reply takes all its tokens, on both sides
    rows = rows_of(speaker, options)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = (trl if options.side == "trl" else ours)(options, model, speaker, rows, Path(scratch))
        clock = Clock()
        owner, method = (trainer, "_generate_single_turn") if options.side == "trl" else (import_module("safework_rl.step"), "sample")
        clock.wrap(owner, method, "generation")

        class Steps(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                clock.begin()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                clock.end()

        trainer.add_callback(Steps())
        # TRL samples when it prepares a step's inputs, which is before on_step_begin: that time belongs to the step
        clock.wrap(trainer, "_prepare_inputs", "prepare")
        trainer.train()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    steps = clock.steps[1:]
    lengths = {int(x) for x in trainer._metrics["train"].get("completions/mean_length", [])} or {options.completion}
    assert lengths == {options.completion}, f"replies of {lengths} tokens, {options.completion} wanted"
    return {
        "steps": steps,
        "log_probabilities": {
            name: max(entry[name] for entry in trainer.state.log_history if name in entry)
            for name in ("engine/logprob_gap", "engine/first_log_ratio")
            if options.side != "trl"
        },
        "peak_gb": peak / 1e9,
        "beyond_gb": (peak - weights - 3 * trained) / 1e9,  # the gradient and two Adam moments, in the weights' type
        **{f"{part}_s": statistics.median(step[part] for step in steps) for part in PARTS},
    }


class Clock:
    """Seconds of each optimiser step, of the sampling in it, and of what is left: log-probabilities, backward, optimiser."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._spent: dict[str, float] = {}
        self._last: float | None = None

    def wrap(self, owner: Any, method: str, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                synchronize()
                self._spent[name] = self._spent.get(name, 0.0) + time.perf_counter() - started

        setattr(owner, method, timed)

    def begin(self) -> None:
        if self._last is None:
            self._last = time.perf_counter()

    def end(self) -> None:
        synchronize()
        now = time.perf_counter()
        assert self._last is not None
        step, generation = now - self._last, self._spent.pop("generation", 0.0)
        self.steps.append({"step": step, "generation": generation, "update": step - generation})
        self._last, self._spent = now, {}


def synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def made_of(options: argparse.Namespace) -> tuple[Any, Any]:
    """The model, and its tokenizer, or its processor where prompts have images."""
    if not options.image:
        return model_and_tokenizer(options.model, options.dtype)
    from safework_cli.models.layers import freeze_vision

    model, processor = vision_model_and_processor(options.image**2, options.dtype)
    freeze_vision(model)
    return model, processor


def parts(speaker: Any) -> tuple[Any, Any]:
    """The tokenizer, and the processor or None."""
    return (speaker.tokenizer, speaker) if hasattr(speaker, "tokenizer") else (speaker, None)


def rows_of(speaker: Any, options: argparse.Namespace) -> list[Row]:
    """Rows whose encoded prompts have so many tokens, different from their first word on, and in their images."""
    from safework_cli.models.chat_template import encode_prompt

    tokenizer, processor = parts(speaker)
    made = []
    for number in range(options.steps + 1):
        images = [picture(options.image, number)] if options.image else []
        words = [f"{'<image>' * len(images)}{number}."]
        while len(encode_prompt(tokenizer, [{"role": "user", "content": " ".join(words)}], images, processor).ids) < options.prompt:
            words.append("one")
        made.append(Row(str(number), "general", [{"role": "user", "content": " ".join(words)}], images))
    return made


def picture(side: int, number: int) -> Image:
    """A square of noise, as PNG."""
    import numpy as np
    from PIL import Image as Pillow

    content = io.BytesIO()
    Pillow.fromarray(np.random.default_rng(number).integers(0, 255, (side, side, 3), dtype=np.uint8)).save(content, "PNG")
    return {"bytes": content.getvalue(), "path": f"{number}.png"}


def shared_settings(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "learning_rate": 1e-6, "max_steps": options.steps + 1, "num_generations": options.group,
        "per_device_train_batch_size": options.group, "gradient_accumulation_steps": 1, "max_completion_length": options.completion,
        "temperature": 1.0, "beta": 0.0,
    }  # fmt: skip


def trl(options: argparse.Namespace, model: Any, speaker: Any, rows: list[Row], scratch: Path) -> Any:
    """GRPOTrainer as it comes."""
    import torch
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from safework_cli.data.images import TAG, open_image
    from safework_cli.models.vision import placeholders

    sampling: dict[str, Any] = {"min_new_tokens": options.completion}
    columns: dict[str, list[Any]] = {"prompt": [row.prompt for row in rows]}
    if options.image:  # TRL puts the image before the text by itself; a sampled placeholder would have no image
        sampling["suppress_tokens"] = placeholders(model)
        columns["prompt"] = [[{"role": "user", "content": row.prompt[0]["content"].removeprefix(TAG)}] for row in rows]
        columns["image"] = [open_image(row.images[0]) for row in rows]
    args = GRPOConfig(
        output_dir=str(scratch), report_to="none", disable_tqdm=True, save_strategy="no", logging_steps=1, shuffle_dataset=False,
        use_cpu=not torch.cuda.is_available(), bf16=options.bf16, gradient_checkpointing=False, log_level="error",
        generation_kwargs=sampling, **shared_settings(options),
    )  # fmt: skip

    def reward(completions: list[Any], **_: Any) -> list[float | None]:
        return [float(i % 2) for i in range(len(completions))]

    return GRPOTrainer(
        model=model, reward_funcs=reward, args=args, train_dataset=Dataset.from_dict(columns), processing_class=speaker,
        peft_config=adapters(options, model),
    )  # fmt: skip


def adapters(options: argparse.Namespace, model: Any) -> Any:
    """The same adapters on both sides; ``None`` where all weights are trained."""
    from safework_cli.models.layers import lora_config
    from safework_cli.training.config import Lora

    return lora_config(Lora(r=options.lora, alpha=2 * options.lora) if options.lora else None, model)


def ours(options: argparse.Namespace, model: Any, speaker: Any, rows: list[Row], scratch: Path) -> Any:
    """The trainer of ``safework rl`` with CPGD, and an objective that asks no verifier."""
    from datasets import Dataset

    from safework_cli.core.progress import Progress, make_display
    from safework_cli.core.signals import StopRequest
    from safework_cli.core.stage import WorkDir
    from safework_cli.engines import over_tokens
    from safework_rl.config import RlConfig
    from safework_rl.curriculum import Curriculum
    from safework_rl.objectives import M3Objective, Scored
    from safework_rl.prompts import Prompts
    from safework_rl.run import grpo_arguments
    from safework_rl.step import StepContext
    from safework_rl.trl_adapter import LadderTrainer

    over_tokens.stop_token_ids = lambda *_: []  # every reply takes all its tokens

    class Alternating(M3Objective):
        def __init__(self) -> None:
            super().__init__(None, "std", False)  # type: ignore[arg-type] # no verifiers

        def score(self, rows: Any, replies: Any, transcripts: Any) -> Scored:
            return Scored([float(i % 2) for i in range(len(rows))], [i % 2 == 1 for i in range(len(rows))], [{} for _ in rows])

    work = WorkDir(scratch, "0" * 64, Progress(scratch, make_display(quiet=True)), StopRequest())
    shared = shared_settings(options)
    # TRL's default: a rollout for each step
    config = RlConfig(**shared, steps_per_generation=shared["gradient_accumulation_steps"], bf16=options.bf16 or options.side == "bf16")
    args = grpo_arguments(config, work)
    args.save_strategy = "no"
    tokenizer, processor = parts(speaker)
    prompts = Prompts(tokenizer, processor)
    data = Dataset.from_dict({"prompt": [row.prompt for row in rows], "row": list(range(len(rows)))})
    curriculum = Curriculum(rows, [(["general"], 1.0)], len(rows), 1, {}, 0)
    run = StepContext(config, Alternating(), rows, curriculum, prompts, prepare=prompts.ahead)
    return LadderTrainer(
        run=run, work=work, folder=scratch, processor=processor, model=model, args=args, train_dataset=data, processing_class=tokenizer,
        peft_config=adapters(options, model),
    )  # fmt: skip


if __name__ == "__main__":
    main()
