"""What images cost: start-up with many image rows, and the waiting of `safework rl m3`'s steps for encoded images.

    python benchmarks/image_prompts.py [--rows 10000] [--size 640 480] [--steps 6] [--prompts 2] [--completion 64] [--json]

A random Qwen2.5-VL of a few hundred thousand weights, made here, is trained through the stage itself on photographs-like JPEG files (noise
of several frequencies), one image a prompt, group 8. Three figures, each with its bar:

start_up_s      from the start of the stage to its first step, all rows' lengths included; imports are not.
sft_rows_s      what `safework sft` does with as many rows before its first step: the tokens and labels of each.
share           time that steps wait for encoded images, of the time of all steps but the first.

"serial_share" is the share if images were encoded when they are needed: their encoding time over the time of the same steps.
The model is far smaller than a real one, so a real step takes longer and the share is smaller there.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import device

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

BARS = {"start_up_s": 10.0, "sft_rows_s": 10.0, "share": 0.05}


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rows", type=int, default=10_000)
    made.add_argument("--size", type=int, nargs=2, default=(640, 480), metavar=("WIDTH", "HEIGHT"))
    made.add_argument("--steps", type=int, default=6)
    made.add_argument("--completion", type=int, default=64)
    made.add_argument("--prompts", type=int, default=2, help="prompts of a step")
    made.add_argument("--json", action="store_true")
    options = made.parse_args()
    numbers = measure(options)
    bars = [{"name": name, "value": round(numbers[name], 4), "bar": bar, "holds": numbers[name] <= bar} for name, bar in BARS.items()]
    setting = vars(options) | {"device": device()}
    if options.json:
        print(json.dumps({"setting": setting, "bars": bars, "numbers": numbers}))
        return
    print(" ".join(f"{name}={value}" for name, value in setting.items()))
    for name, value in numbers.items():
        print(f"{name:20} {value:10.4f}" + (f"   bar {BARS[name]}" if name in BARS else ""))


def measure(options: argparse.Namespace) -> dict[str, float]:
    from safework_cli.core.artifacts import Manifest, Store
    from safework_cli.core.artifacts.store import now
    from safework_cli.core.artifacts.transfer import import_folder
    from safework_cli.core.progress import Progress, QuietDisplay
    from safework_cli.core.signals import StopRequest
    from safework_cli.core.stage import Inputs, WorkDir
    from safework_cli.data.row import write_rows
    from safework_cli.models import encodings
    from safework_rl.m3.stage import stage

    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        store = Store(home / "store")
        model = import_folder(store, tiny_vlm(home), "vlm")
        sft_rows_s = tokenizing(model.path, rows_of(options.rows, tuple(options.size)))
        folder = store.staging()
        (folder / "rl").mkdir()
        write_rows(folder / "rl" / "rows.parquet", rows_of(options.rows, tuple(options.size)))
        manifest = Manifest(kind="dataset", name="photos", version=0, created=now(), stage="b", stage_version=1, fingerprint="b", files=[], digest="")  # noqa: E501 # fmt: skip
        data = store.commit(folder, manifest).with_subset("rl")
        (home / "run").mkdir()
        work = WorkDir(home / "run", "0" * 64, Progress(home / "run", QuietDisplay()), StopRequest())
        config = stage.Config.model_validate(
            {
                "phases": [{"tasks": ["general"], "share": 1.0}],
                "rewards": {"general": {"exact": 1.0}},
                "language": {"mode": "off"},
                "filter_groups": False,
                "max_steps": options.steps,
                "num_generations": 8,
                "per_device_train_batch_size": 8 * options.prompts,
                "gradient_accumulation_steps": 1,
                "max_completion_length": options.completion,
                "require_gradient": False,
                "preflight": 0,
                "save_steps": 10**6,
            }
        )
        clock = Clock()
        clock.watch(encodings.Encodings)
        clock.begin()
        stage.run(config, Inputs({"model": model, "data": data}), work)
        work.progress.close()
    return clock.numbers() | {"sft_rows_s": sft_rows_s}


def tokenizing(model: Path, rows: list[Any]) -> float:
    """Seconds for the tokens and labels of rows that have replies."""
    from safework_cli.models.load import load_tokenizer
    from safework_cli.models.processors import load_processor
    from safework_sft.encode import encode_rows

    tokenizer, processor = load_tokenizer(model), load_processor(model)
    for row in rows:
        row.messages.append({"role": "assistant", "content": f"It is {row.answer}."})
    began = time.perf_counter()
    encoded = encode_rows(rows, tokenizer, [tokenizer.convert_tokens_to_ids("<|im_end|>")], 4096, processor=processor)
    assert not encoded.dropped, list(encoded.dropped)
    return time.perf_counter() - began


class Clock:
    """Times of start-up and steps, of waiting for encodings, and of encoding itself, in whichever thread."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.waited: list[tuple[float, float]] = []
        self.encoded: list[float] = []
        self.started = 0.0

    def begin(self) -> None:
        self.started = time.perf_counter()

    def watch(self, kind: Any) -> None:
        from transformers import TrainerCallback

        from safework_cli.models import processors
        from safework_rl.trl_adapter import LadderTrainer

        clock, call, encode, train = self, kind.__call__, processors.encode_images, LadderTrainer.train

        def waiting(encodings: Any, row: Any) -> Any:
            began = time.perf_counter()
            value = call(encodings, row)
            clock.waited.append((began, time.perf_counter() - began))
            return value

        def encoding(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            value = encode(*args, **kwargs)
            clock.encoded.append(time.perf_counter() - began)
            return value

        class Steps(TrainerCallback):
            def on_train_begin(self, *_: Any, **__: Any) -> None:
                clock.steps.append(time.perf_counter())

            def on_step_end(self, *_: Any, **__: Any) -> None:
                clock.steps.append(time.perf_counter())

        def training(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            trainer.add_callback(Steps())
            return train(trainer, *args, **kwargs)

        kind.__call__, LadderTrainer.train = waiting, training
        for module in list(sys.modules.values()):
            if getattr(module, "encode_images", None) is encode:
                module.encode_images = encoding

    def numbers(self) -> dict[str, float]:
        first, last = self.steps[1], self.steps[-1]
        waited = sum(seconds for began, seconds in self.waited if first <= began <= last)
        mean = sum(self.encoded) / max(len(self.encoded), 1)
        counted = sum(first <= began <= last for began, _ in self.waited)
        return {
            "start_up_s": self.steps[0] - self.started,
            "share": waited / (last - first),
            "serial_share": mean * counted / (last - first),
            "step_s": (last - first) / (len(self.steps) - 2),
            "encode_s": mean,
        }


def rows_of(count: int, size: tuple[int, int]) -> list[Any]:
    """Rows with an image each; 64 files of different sizes around the given one take turns."""
    import numpy as np
    from PIL import Image

    from safework_cli.data.row import Row

    draw = np.random.default_rng(0)
    files = []
    for number in range(64):
        width, height = size[0] - number % 8 * 9, size[1] - number // 8 * 7
        coarse = Image.fromarray(draw.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        fine = Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))
        file = io.BytesIO()
        Image.blend(coarse, fine, 0.15).save(file, "JPEG", quality=85)
        files.append(file.getvalue())
    return [
        Row(
            f"p{number}", "general", [{"role": "user", "content": f"<image>\nWhat is number {number}?"}],
            images=[{"bytes": files[number % len(files)], "path": f"{number}.jpg"}], answer=str(number),
            meta={"answer_type": "exact"},
        )
        for number in range(count)
    ]  # fmt: skip


def tiny_vlm(home: Path) -> Path:
    """A random Qwen2.5-VL with its processor's files, which reduce images to 256 tokens."""
    import torch
    from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    import tiny_processors
    from safework_cli.models.tiny import create_tiny_model

    create_tiny_model(home / "text", architecture="qwen2")
    folder = tiny_processors.create("qwen2_5_vl", home / "text", home / "vlm")
    settings = json.loads((folder / "preprocessor_config.json").read_text()) | {"min_pixels": 256 * 784, "max_pixels": 300 * 784}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    start, end, image, video = tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"])
    text = {
        "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 4096, "vocab_size": len(tokenizer),
        "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e4},
    }  # fmt: skip
    vision = {
        "hidden_size": 64, "out_hidden_size": 128, "intermediate_size": 128, "depth": 4, "num_heads": 4, "patch_size": 14,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112, "fullatt_block_indexes": [1, 3],
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        vision_config=vision, text_config=text, image_token_id=image, video_token_id=video, vision_start_token_id=start,
        vision_end_token_id=end, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config).float()
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = tokenizer.eos_token_id
    model.save_pretrained(str(folder))
    return folder


if __name__ == "__main__":
    main()
