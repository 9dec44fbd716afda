"""The trainer of label verifiers: cross-entropy over the label codes at the last prompt position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset
from transformers import Trainer

from safework_cli.models.encodings import ONCE_BYTES, Encodings, tensor_bytes
from safework_cli.training.sampler import StepSampler, step_sampler
from safework_cli.verifiers.contract import Exchange
from safework_cli.verifiers.labels import judge_batch, label_logits
from safework_cli.verifiers.prompting import JudgePrompt


class Examples(Dataset[dict[str, Any]]):
    """Tokenized judge prompts with their gold labels. Images are encoded when their step comes: those of a data set do not fit into memory.

    Args:
        write: makes the prompt of an exchange.
        write_ids: the same without its images.
    """

    def __init__(
        self,
        exchanges: Sequence[Exchange],
        golds: Sequence[int],
        write: Callable[[Exchange], JudgePrompt],
        write_ids: Callable[[Exchange], JudgePrompt],
    ):
        self._exchanges, self.golds = exchanges, golds
        self._kept = [write_ids(exchange) for exchange in exchanges]
        self._with_images: Encodings[int, JudgePrompt] = Encodings(
            lambda index: write(exchanges[index]), lambda prompt: tensor_bytes((prompt.ids, prompt.vision)), int, limit_bytes=ONCE_BYTES
        )

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt."""
        return [len(prompt.ids) for prompt in self._kept]

    @property
    def truncated(self) -> int:
        """How many prompts lost their middle."""
        return sum(prompt.left_out > 0 for prompt in self._kept)

    def prompt(self, index: int) -> JudgePrompt:
        """A prompt with its images."""
        return self._with_images(index) if self._exchanges[index].images else self._kept[index]

    @property
    def has_images(self) -> bool:
        """Whether some prompt has images."""
        return any(one.images for one in self._exchanges)

    def ahead(self, indices: Sequence[int]) -> None:
        """Begins to encode the images of prompts that come next; returns at once."""
        self._with_images.ahead(index for index in indices if self._exchanges[index].images)

    def __len__(self) -> int:
        return len(self.golds)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"prompt": self.prompt(index), "label": self.golds[index]}


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

    def _collate(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {"prompts": [e["prompt"] for e in examples], "labels": torch.tensor([e["label"] for e in examples])}

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        gold_B = inputs["labels"]
        batch = judge_batch(self.model, inputs["prompts"], self.pad_id)
        logits_BC = label_logits(model, batch, self.code_ids)
        weight_B = torch.tensor(self.weight_C, device=gold_B.device)[gold_B]
        loss_B = cross_entropy(logits_BC, gold_B, reduction="none", label_smoothing=self.smoothing)
        return (weight_B * loss_B).mean()

    def _get_train_sampler(self, train_dataset: Any = None) -> StepSampler:
        data = self.train_dataset
        assert isinstance(data, Examples)
        return step_sampler(self, data.lengths, data.ahead)
