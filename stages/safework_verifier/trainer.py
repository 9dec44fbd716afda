"""The trainer of label verifiers: cross-entropy over the label codes at the last prompt position, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, Sampler
from transformers import Trainer

from safework_cli.verifiers.labels import label_logits, pad_left

SORTED_TOGETHER = 16
"""Batches whose rows are sorted by length together: enough to spare padding, few enough to keep the order random."""


class Examples(Dataset[dict[str, Any]]):
    """Tokenized judge prompts with their gold labels."""

    def __init__(self, prompts: Sequence[list[int]], golds: Sequence[int]):
        self.prompts, self.golds = prompts, golds

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.prompts[index], "label": self.golds[index]}


class LengthSampler(Sampler[int]):
    """Row indices in batches of like length, shuffled anew each epoch by the seed and the epoch's number alone.

    That makes the order of a resumed run that of an uninterrupted one; transformers' own length sampler draws from the global generator.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, epoch: Callable[[], int]):
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch())
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        span = self.batch_size * SORTED_TOGETHER
        batches = []
        for start in range(0, len(order), span):
            rows = sorted(order[start : start + span], key=lambda row: -self.lengths[row])
            batches += [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        whole = [batch for batch in batches if len(batch) == self.batch_size]
        rest = [batch for batch in batches if len(batch) < self.batch_size]  # one at most, kept last: the others must not shift
        for position in torch.randperm(len(whole), generator=generator).tolist():
            yield from whole[position]
        for batch in rest:
            yield from batch


class LabelTrainer(Trainer):
    """A Trainer whose loss is Σ_b w(y_b) · CE(logits over the C codes, y_b) / B.

    Args:
        code_ids: the token of each label.
        weight_C: weight of each class's rows, mean 1 over the training rows.
        label_smoothing: share of the target spread over all labels.
    """

    def __init__(self, *, code_ids: Sequence[int], weight_C: Sequence[float], label_smoothing: float, pad_id: int, **kwargs: Any):
        self.code_ids, self.weight_C, self.smoothing, self.pad_id = list(code_ids), list(weight_C), label_smoothing, pad_id
        super().__init__(data_collator=self._collate, **kwargs)
        self.model_accepts_loss_kwargs = False  # the loss is a mean over rows: Trainer divides it by the accumulation steps

    def _collate(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = pad_left([e["input_ids"] for e in examples], self.pad_id)
        return batch | {"labels": torch.tensor([e["label"] for e in examples])}

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        gold_B = inputs["labels"]
        logits_BC = label_logits(model, {k: v for k, v in inputs.items() if k != "labels"}, self.code_ids)
        weight_B = torch.tensor(self.weight_C, device=gold_B.device)[gold_B]
        loss_B = cross_entropy(logits_BC, gold_B, reduction="none", label_smoothing=self.smoothing)
        return (weight_B * loss_B).mean()

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthSampler:
        data = self.train_dataset
        assert isinstance(data, Examples)
        per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        steps_per_epoch = -(-len(data) // per_step)
        lengths = [len(prompt) for prompt in data.prompts]
        return LengthSampler(lengths, self.args.train_batch_size, self.args.seed, lambda: self.state.global_step // steps_per_epoch)
