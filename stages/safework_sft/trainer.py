"""SFTTrainer with a head that looks at supervised tokens alone."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from trl import SFTTrainer

from safework_cli.lm.training import StepSampler, step_sampler
from safework_sft.encode import IGNORE


class SupervisedTrainer(SFTTrainer):
    """TRL's trainer; on a CPU, the vocabulary projection and its softmax run on supervised positions alone.

    TRL does the same on devices with Triton. Elsewhere its head scores every position, prompts and padding too, which for short
    replies over a vocabulary of 49,152 took more than half of a step. The loss is TRL's "nll" to rounding (tests/stages/sft).
    """

    def _get_train_sampler(self, train_dataset: Any = None) -> StepSampler:
        """(transformers' own length sampler goes from the longest rows to the shortest: a short run ends on one kind of reply.)"""
        assert isinstance(self.train_dataset, Dataset)
        return step_sampler(self, [len(ids) for ids in self.train_dataset["input_ids"]])

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        if return_outputs or inputs["input_ids"].device.type != "cpu" or self.accelerator.num_processes > 1:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        whole = self.accelerator.unwrap_model(model)
        labels_BT = inputs["labels"][:, 1:]
        keep_BT = labels_BT != IGNORE
        causal = whole.get_base_model() if hasattr(whole, "get_base_model") else whole
        with self.accelerator.autocast():  # Trainer's own is in the forward of the whole model, which is gone around here
            hidden_BTD = causal.base_model(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
            ).last_hidden_state
            logits_NV = causal.get_output_embeddings()(hidden_BTD[:, :-1][keep_BT]).float()
        target_N = labels_BT[keep_BT]
        total = torch.nn.functional.cross_entropy(logits_NV, target_N, reduction="sum")
        self._metrics["train"]["mean_token_accuracy"].append(float((logits_NV.argmax(-1) == target_N).float().mean()))
        return total / (keep_BT.sum() if num_items_in_batch is None else num_items_in_batch).clamp(min=1)
