"""A vision-language model on two processes: passes with images and passes without at the same time."""

from __future__ import annotations

import pytest
import torch
from processes import ALIKE, MOVED
from processes_runs import _SHORT, Run, commit_rows, difference, movement, weights

import tiny_vision
from exactness import image
from safework_cli.core.artifacts import Store
from safework_cli.core.artifacts.transfer import import_folder
from safework_cli.data.row import Row

MODEL = "model/seeing"
_ROWS = (f"model={MODEL}", *_SHORT, "launch.timeout_minutes=2")
SFT = Run(("sft", *_ROWS, "data=dataset/shown:cot", "sample_prompts=0", "verdict=null"), 4)
TEXT = Run(("sft", *_ROWS, "data=dataset/texts:cot", "sample_prompts=0", "verdict=null"), 4)
VALUES = Run(
    (
        "verifier",
        "values",
        *_ROWS,
        "data=dataset/valued",
        "head_learning_rate=3e-2",
        "max_length=256",
        "eval_fraction=0.3",
        "dtype=float32",
    ),
    8,
)
M3 = Run(
    (
        "rl",
        "m3",
        *_ROWS,
        "data=dataset/shown:rl",
        "num_generations=4",
        "preflight=0",
        "steps_per_generation=4",
        "gradient_accumulation_steps=2",
        "max_logprob_gap=0.1",
        "max_completion_length=12",
        "language.mode=off",
        "format.mode=term",
        "format.weight=0.01",
        "rewards={general: {rule:constraints: 1}}",
        "filter_groups=false",
        "beta=0.05",
        "train_vision=true",
        "phases=[{tasks: [general], share: 1}]",
        "max_steps=1",
    ),
    8,
)
"""One update: samples of a random model have gradients near 0, of which rounding turns some; later updates sample from other weights."""
ROUNDED = 1e-3


def rows(*, reply: bool, every: int | None = None) -> list[Row]:
    """Questions, of which one in ``every`` has an image."""
    made, letters = [], {"constraints": [{"type": "contains", "text": letter} for letter in "aeknst"]}
    for i in range(32):
        seen = every is not None and i % every == 0
        messages = [{"role": "user", "content": f"{'<image>' if seen else ''}What is number {i}?"}]
        messages += [{"role": "assistant", "content": "It is " + "a" * (i % 3 + 1)}] if reply else []
        made.append(Row(str(i), "general", messages, [image(56, 56, i + 1)] if seen else [], meta=letters))
    return made


def valued() -> list[Row]:
    made = []
    for question in rows(reply=False, every=3) * 2:
        for text, value in (("aaaa", 0.9), ("zzzz", 0.1)):
            number, messages = len(made), [*question.messages, {"role": "assistant", "content": text}]
            meta = {"group": str(number // 2), "values": {"safety": value}}
            made.append(Row(f"r{number}", "general", messages, question.images, meta=meta))
    return made


@pytest.fixture
def seeing(store, tiny_model, tmp_path):
    folder = tiny_vision.create("qwen2_5_vl", tiny_model, tmp_path / "seeing")
    import_folder(store, folder, "seeing")
    commit_rows(store, "shown", cot=rows(reply=True, every=3), rl=rows(reply=False, every=2))
    commit_rows(store, "texts", cot=rows(reply=True))
    commit_rows(store, "valued", valued())
    return store


def compared(store: Store, ref: str) -> dict[str, torch.Tensor]:
    """The weights without the biases of keys: softmax does not depend on them, and Adam makes steps of what rounding leaves of their
    gradients."""
    return {name: tensor for name, tensor in weights(store, ref).items() if not name.endswith(("k_proj.bias", "qkv.bias"))}


@pytest.mark.parametrize(("a_run", "strategies"), [(SFT, ("ddp", "fsdp")), (M3, ("ddp", "fsdp")), (VALUES, ("fsdp",)), (TEXT, ("ddp",))])
def test_two_processes_train_the_weights_of_one(run, seeing, a_run, strategies):
    start, one = compared(seeing, MODEL), compared(seeing, run(a_run, "single"))
    moved = movement(start, one)
    assert moved >= MOVED or a_run is M3
    tower = {name: tensor for name, tensor in start.items() if "visual" in name}
    assert tower and (movement(tower, one) > 0) == (a_run is not TEXT)
    for strategy in strategies:
        two = compared(seeing, run(a_run, strategy))
        assert difference(one, two) <= (ROUNDED if a_run is M3 else ALIKE) * moved, strategy
