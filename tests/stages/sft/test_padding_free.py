"""Rows without padding, their beginning shared: the loss and the gradients of padded rows, and nothing seen of the neighbours."""

from __future__ import annotations

import random

import pytest
import torch
from datasets import Dataset

from safework_cli.core.stage import Inputs
from safework_cli.models.attention import attention_by_row, keeps_rows_apart, without_padding
from safework_cli.models.load import load_model, load_tokenizer
from safework_sft.batches import Batches, common_beginning
from safework_sft.config import SftConfig
from safework_sft.run import _arguments, train
from safework_sft.trainer import SupervisedTrainer
from tiny_families import FAMILIES, tiny_of

PADDED = {"bloom", "mpt", "mamba", "gemma2", "qwen3_next", "gpt_oss", "stablelm", "nemotron", "gptj", "qwen2_moe"}
"""Families whose attention is not the fused one or takes no arguments, or that have a position bias or a recurrent state."""


def rows_and_labels() -> tuple[list[list[int]], list[list[int]]]:
    """Rows that begin with the same four tokens; the first supervised one is the fifth."""
    drawn = random.Random(3)
    start, *ends = ([drawn.randrange(10, 250) for _ in range(n)] for n in (4, 5, 10, 26, 8))
    rows = [start + end for end in ends]
    return rows, [[-100] * (len(row) // 2) + row[len(row) // 2 :] for row in rows]


@pytest.mark.parametrize("one_call", [False, True], ids=["as on a CPU", "as on a GPU"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_loss_and_its_gradients_are_those_of_padded_rows(name, one_call, tiny_model, work, monkeypatch):
    monkeypatch.setattr("safework_cli.models.attention._in_one_call", lambda device: one_call)
    tokenizer = load_tokenizer(tiny_model)
    model = tiny_of(name, tokenizer, **({"sliding_window": 64} if "sliding_window" in FAMILIES[name] else {}))
    assert keeps_rows_apart(model, 30) is (name not in PADDED)
    if name in PADDED:
        return
    rows, labels = rows_and_labels()
    measured = []
    for padding_free in (False, True):
        trainer = SupervisedTrainer(
            model=model,
            args=_arguments(SftConfig(max_steps=1, bf16=False), work, tokenizer, "device"),
            train_dataset=Dataset.from_dict({"input_ids": rows, "labels": labels}),
            processing_class=tokenizer,
            lengths=[len(row) for row in rows],
            padding_free=padding_free,
        )
        batch = next(iter(trainer.get_train_dataloader()))
        shared = 0 if trainer.aux_loss_enabled else 3
        assert batch["input_ids"].shape == ((1, 65 - 3 * shared) if padding_free else (4, 30))
        model.eval()  # no dropout
        model.zero_grad()
        with attention_by_row(model):
            loss = trainer.compute_loss(model, dict(batch), num_items_in_batch=None)
            loss.backward()
        measured.append((loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (padded, padded_grad), (flat, flat_grad) = measured
    assert flat == pytest.approx(padded, rel=1e-5) and flat_grad.keys() == padded_grad.keys()
    for name_, gradient in padded_grad.items():
        assert torch.allclose(flat_grad[name_], gradient, rtol=1e-3, atol=1e-5), name_


def test_a_row_sees_nothing_of_its_neighbours(tiny_model):
    model = load_model(tiny_model, dtype="float32")
    one, other = [5, 6, 7, 8, 9], [50, 60, 70]
    with torch.no_grad(), attention_by_row(model):
        first = model(**without_padding([other, one]), use_cache=False).logits[0, 3:]
        second = model(**without_padding([[1, 2, 3], one]), use_cache=False).logits[0, 3:]
    assert torch.equal(first, second)


def test_rows_go_on_from_a_shared_beginning_and_see_nothing_else(tiny_model):
    model = load_model(tiny_model, dtype="float32")
    one, other = [5, 6, 7, 8, 9], [5, 6, 70]
    with torch.no_grad(), attention_by_row(model):
        together = model(**without_padding([one, other], shared=2), use_cache=False).logits[0]
        changed = model(**without_padding([[5, 6, 1, 2, 3], other], shared=2), use_cache=False).logits[0]
        alone = model(input_ids=torch.tensor([other]), use_cache=False).logits[0]
    assert together.shape[0] == 2 + 3 + 1
    assert torch.equal(together[5:], changed[5:]) and torch.allclose(together[5:], alone[2:], atol=1e-5)
    assert torch.allclose(together[:2], alone[:2], atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "labels", "shared"),
    [
        ([[1, 2, 3, 4], [1, 2, 3, 5]], [[-100, -100, -100, 4], [-100, -100, -100, 5]], 2),  # the third predicts a supervised token
        ([[1, 2, 3, 4], [1, 2, 9, 5]], [[-100, -100, -100, 4], [-100, -100, -100, 5]], 2),
        ([[1, 2, 3], [1, 2, 3]], [[-100, 2, 3], [-100, -100, 3]], 0),
        ([[1, 2], [1, 2, 3]], [[-100, -100], [-100, -100, 3]], 1),  # each row keeps a token
        ([[7, 2, 3], [1, 2, 3]], [[-100, -100, 3], [-100, -100, 3]], 0),
        ([[1, 2, 3]], [[-100, -100, 3]], 0),
    ],
)
def test_what_rows_share_ends_before_the_first_token_that_predicts_a_supervised_one(rows, labels, shared):
    batch = Batches(0, padding_free=True)([{"input_ids": ids, "labels": own} for ids, own in zip(rows, labels, strict=True)])
    assert batch.get("shared", 0) == shared and batch["input_ids"].shape == batch["labels"].shape == batch["position_ids"].shape
    assert sum(batch["row_lengths"]) == sum(map(len, rows)) - shared * (len(rows) - 1)
    supervised = batch["labels"][batch["labels"] != -100].tolist()
    assert supervised == [label for row in labels for label in row if label != -100]
    assert Batches(0, padding_free=True, share=False)([{"input_ids": ids, "labels": ids} for ids in rows]).get("shared", 0) == 0


def test_what_rows_share_ends_before_an_image():
    rows = [torch.tensor(row) for row in ([1, 2, 90, 90, 3, 4], [1, 2, 90, 90, 3, 5])]
    labels = [torch.tensor([-100] * 5 + [row[-1]]) for row in rows]
    assert common_beginning(rows, labels) == 4 and common_beginning(rows, labels, torch.tensor([90, 91])) == 2


def test_a_window_that_is_shorter_than_a_row_is_padded(tiny_model):
    model = tiny_of("mistral", load_tokenizer(tiny_model))
    assert keeps_rows_apart(model, 16) and not keeps_rows_apart(model, 17)


@pytest.mark.parametrize(
    "more", [{}, {"gradient_checkpointing": True}, {"lora": {"r": 4, "alpha": 8}}, {"bf16": True}, {"kl": {"weight": 0.5}}]
)
def test_a_run_without_padding_learns_what_a_padded_one_learns(more, tiny_artifact, toy_data, work):
    losses = {}
    for padding_free in (True, False):
        for old in work.checkpoints.iterdir():
            old.rename(work.path / f"{padding_free}-{old.name}")
        config = SftConfig(padding_free=padding_free, learning_rate=3e-3, max_steps=6, sample_prompts=0, **{"bf16": False} | more)
        outcome = train(config, Inputs({"model": tiny_artifact, "data": toy_data.with_subset("cot")}), work)
        assert outcome.metrics["padding_free"] is padding_free
        losses[padding_free] = outcome.metrics["loss_last"]
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)
