"""SFTTrainer with a head that looks at supervised tokens alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset
from trl import SFTTrainer

from safework_cli.models.vision import base_of
from safework_cli.training.sampler import StepSampler, step_sampler
from safework_sft.encode import IGNORE


class SupervisedTrainer(SFTTrainer):
    """TRL's trainer; on a CPU, the model's own head runs on supervised positions alone.

    TRL does the same on devices with Triton. Elsewhere its head scores every position, prompts and padding too, which for short
    replies over a vocabulary of 49,152 took more than half of a step. The loss is the model's own to rounding (tests/stages/sft): what
    it does to its logits, such as scaling and capping them, is done by its own code.
    """

    def _get_train_sampler(self, train_dataset: Any = None) -> StepSampler:
        """(transformers' own length sampler goes from the longest rows to the shortest: a short run ends on one kind of reply.)"""
        assert isinstance(self.train_dataset, Dataset)
        return step_sampler(self, [len(ids) for ids in self.train_dataset["input_ids"]])

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        if return_outputs or inputs["input_ids"].device.type != "cpu" or self.accelerator.num_processes > 1:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels_BT = inputs["labels"][:, 1:]
        keep_BT = labels_BT != IGNORE
        extra = {"output_router_logits": True} if self.aux_loss_enabled else {}
        with _head_on(base_of(self.accelerator.unwrap_model(model)), keep_BT) as narrowed:
            output = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False, **extra)
        logits_NV = (output.logits[0] if narrowed else output.logits[:, :-1][keep_BT]).float()
        target_N = labels_BT[keep_BT]
        total = torch.nn.functional.cross_entropy(logits_NV, target_N, reduction="sum")
        self._metrics["train"]["mean_token_accuracy"].append(float((logits_NV.argmax(-1) == target_N).float().mean()))
        loss = total / (keep_BT.sum() if num_items_in_batch is None else num_items_in_batch).clamp(min=1)
        if not self.aux_loss_enabled:
            return loss
        self._metrics["train"]["aux_loss"].append(float(output.aux_loss.detach()))
        steps = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps  # as TRL: a mean over the passes
        return loss + self.router_aux_loss_coef * output.aux_loss / steps


@contextmanager
def _head_on(causal: Any, keep_BT: torch.Tensor) -> Iterator[list[bool]]:
    """Inside, a causal model computes logits (1, N, V) of the N positions kept, from which the next token is read off.

    Args:
        keep_BT: of all positions but the last.

    Returns:
        a list that holds something once that was done; an architecture that does not call its backbone as a whole gives all logits.
    """
    done: list[bool] = []

    def narrow(_: Any, __: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[:, :-1][keep_BT][None]
        done.append(True)
        return output

    handle = causal.base_model.register_forward_hook(narrow)
    try:
        yield done
    finally:
        handle.remove()
