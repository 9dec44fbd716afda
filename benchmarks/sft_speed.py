"""Tokens per second of supervised fine-tuning: `safework sft` and TRL's SFTTrainer on the same rows, in the same precision.

    python benchmarks/sft_speed.py --model REF --data REF [--rows 64] [--batch 16] [--steps 2] [--repeats 3] [--json]

TRL runs with its defaults (padded batches, gradient checkpointing), without checkpointing, and packed without checkpointing; the bar is
over its fastest. Every side trains float32 weights, with bfloat16 products where the hardware has them, and takes the same rows in a step
(packed ones as near as whole sequences allow). The sides are timed in turns (ours, theirs, ours, …), so that a change of the machine's
load affects all; medians. Counted are the tokens of the rows, not those of the padding. The first step of each run is left out.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from common import device, model_folder

BAR = 1.15


def main() -> None:
    options = parse(sys.argv[1:])
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()
    set_verbosity_error()
    folder = model_folder(options.model)
    rows = encoded_rows(folder, options)
    tokens = sum(len(ids) for ids, _ in rows)
    found: dict[str, list[float]] = {side: [] for side in SIDES}
    with redirect_stdout(sys.stderr):  # trainers print their logs
        for _ in range(options.repeats):
            for side in SIDES:
                found[side].append(tokens_per_second(side, folder, rows, options))
    medians = {side: statistics.median(values) for side, values in found.items()}
    ratios = {side: medians["safework"] / medians[side] for side in SIDES if side != "safework"}
    least = min(ratios.values())  # over TRL's fastest side: packing is not always its best
    bars = [{"name": "safework sft / TRL's best settings", "value": round(least, 3), "bar": BAR, "holds": least >= BAR}]
    setting = {name: getattr(options, name) for name in ("model", "data", "rows", "batch", "steps", "repeats")} | {
        "device": device(), "bf16": in_bf16(), "mean tokens of a row": round(tokens / len(rows), 1)
    }  # fmt: skip
    if options.json:
        print(json.dumps({
            "setting": setting, "tokens_per_second": {side: round(value, 1) for side, value in medians.items()},
            "runs": {side: [round(value, 1) for value in values] for side, values in found.items()},
            "ratio": {side: round(value, 3) for side, value in ratios.items()}, "bars": bars,
        }))  # fmt: skip
        return
    print(" ".join(f"{name}={value}" for name, value in setting.items()))
    for side, value in medians.items():
        ratio = f"{ratios[side]:6.2f} × as fast is safework" if side in ratios else ""
        print(f"{side:16} {value:9.0f} tokens/s {ratio}")


def parse(words: list[str]) -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="smollm2", help="a reference in the store, or a folder")
    options.add_argument("--data", default="starter:cot", help="a data set with replies")
    options.add_argument("--rows", type=int, default=64, help="rows taken, evenly spread")
    options.add_argument("--batch", type=int, default=16, help="rows of a step")
    options.add_argument("--steps", type=int, default=2, help="steps that are timed, after one that is not")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--json", action="store_true")
    return options.parse_args(words)


def encoded_rows(folder: Path, options: argparse.Namespace) -> list[tuple[list[int], list[int]]]:
    """(token ids, labels) of rows that are spread evenly over the data set, as `safework sft` encodes them."""
    from safework_cli.core.artifacts import default_store
    from safework_cli.data.dataset import training_rows
    from safework_cli.models.load import load_model, load_tokenizer, stop_token_ids
    from safework_sft.encode import encode_rows

    tokenizer = load_tokenizer(folder)
    rows = [row for row in training_rows(default_store(None).resolve(options.data, ("dataset",))) if row.reply and not row.images]
    chosen = [rows[i * len(rows) // options.rows] for i in range(min(options.rows, len(rows)))]
    encoded = encode_rows(chosen, tokenizer, stop_token_ids(tokenizer, load_model(folder)), 1024)
    return list(zip(encoded.input_ids, encoded.labels, strict=True))


def in_bf16() -> bool:
    import torch

    from safework_cli.models.load import pick_dtype

    return pick_dtype("auto") == torch.bfloat16


class Clock:
    """Times a trainer's steps after the first one."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def callback(self) -> Any:
        from transformers import TrainerCallback

        ends = self.ends

        class Ends(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                import torch

                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                ends.append(time.perf_counter())

        return Ends()


def tokens_per_second(side: str, folder: Path, rows: list[tuple[list[int], list[int]]], options: argparse.Namespace) -> float:
    from safework_cli.models.load import load_model, load_tokenizer

    model, tokenizer, clock = load_model(folder, dtype="float32"), load_tokenizer(folder), Clock()
    with tempfile.TemporaryDirectory() as out:
        trainer, seen = SIDES[side](model, tokenizer, rows, options, out)
        trainer.add_callback(clock.callback())
        run(side, trainer)
    return sum(seen[1 : options.steps + 1]) / (clock.ends[-1] - clock.ends[0])


def run(side: str, trainer: Any) -> None:
    from contextlib import ExitStack

    from safework_cli.models.attention import attention_by_row

    with ExitStack() as inside:
        if side == "safework":
            inside.enter_context(attention_by_row(trainer.model))
        trainer.train()


def arguments(out: str, options: argparse.Namespace, **more: Any) -> Any:
    import torch
    from trl import SFTConfig

    return SFTConfig(
        out, max_steps=options.steps + 1, use_cpu=not torch.cuda.is_available(), bf16=in_bf16(), report_to="none", disable_tqdm=True,
        save_strategy="no", logging_strategy="no", learning_rate=1e-5, seed=0, **more,
    )  # fmt: skip


def counted(trainer: Any) -> list[int]:
    """Fills up with the number of tokens of each batch, padding left out. (A batch is prepared before the step of the one before it.)"""
    seen: list[int] = []
    collate = trainer.data_collator

    def count(examples: Any) -> Any:
        seen.append(sum(len(one["input_ids"]) for one in examples))
        return collate(examples)

    trainer.data_collator = count
    return seen


def ours(
    model: Any, tokenizer: Any, rows: list[tuple[list[int], list[int]]], options: argparse.Namespace, out: str
) -> tuple[Any, list[int]]:
    from safework_sft.encode import TrainingRows
    from safework_sft.trainer import SupervisedTrainer

    data = TrainingRows([ids for ids, _ in rows], [labels for _, labels in rows], [])
    args = arguments(
        out, options, per_device_train_batch_size=options.batch, gradient_checkpointing=False, dataset_kwargs={"skip_prepare_dataset": True}
    )
    trainer = SupervisedTrainer(
        model=model, args=args, train_dataset=data.dataset(), processing_class=tokenizer, lengths=[len(ids) for ids, _ in rows],
        padding_free=True,
    )  # fmt: skip
    return trainer, counted(trainer)


def trls(
    model: Any,
    tokenizer: Any,
    rows: list[tuple[list[int], list[int]]],
    options: argparse.Namespace,
    out: str,
    *,
    packed: bool,
    checkpointing: bool,
) -> tuple[Any, list[int]]:
    from datasets import Dataset
    from trl import SFTTrainer

    columns = {"input_ids": [ids for ids, _ in rows], "labels": [labels for _, labels in rows]}
    if packed:
        # as many tokens a step as the rows of a batch have on average, in sequences of the longest row's length
        longest = max(len(ids) for ids, _ in rows)
        tokens = sum(len(ids) for ids, _ in rows) / len(rows) * options.batch
        more = {"packing": True, "max_length": longest, "per_device_train_batch_size": max(1, math.ceil(tokens / longest))}
        args = arguments(out, options, gradient_checkpointing=checkpointing, **more)
    else:
        args = arguments(out, options, gradient_checkpointing=checkpointing, per_device_train_batch_size=options.batch)
    trainer = SFTTrainer(model=model, args=args, train_dataset=Dataset.from_dict(columns), processing_class=tokenizer)
    return trainer, counted(trainer)


SIDES = {
    "safework": ours,
    "TRL, packed": partial(trls, packed=True, checkpointing=False),
    "TRL, padded": partial(trls, packed=False, checkpointing=False),
    "TRL, defaults": partial(trls, packed=False, checkpointing=True),
}


if __name__ == "__main__":
    main()
