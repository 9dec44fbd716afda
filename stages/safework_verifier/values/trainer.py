"""The trainer of value models: backbone and heads as one module, examples with soft targets, and the loss.

Shapes: B sequences, D hidden size, P principles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.utils.data import Dataset
from transformers import Trainer

from safework_cli.data.row import Row
from safework_cli.models.encodings import ONCE_BYTES, Encodings, tensor_bytes
from safework_cli.training.sampler import StepSampler, step_sampler
from safework_cli.verifiers.contract import Exchange
from safework_cli.verifiers.values import ValueHeads, Written, hidden_ends
from safework_verifier.values.prefixes import routing_targets


class WithHeads(nn.Module):
    """Backbone and heads as one module, which the trainer moves, saves and resumes. Without the output embedding: it is not used, and may
    share its weights with the input embedding."""

    def __init__(self, backbone: Any, heads: ValueHeads):
        super().__init__()
        self.backbone, self.heads = backbone.base_model, heads
        self._no_split_modules = backbone._no_split_modules  # what FSDP divides by

    def forward(self, rows: Sequence[Written], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of values and routing, (B, P) each."""
        return self.heads(*hidden_ends(self.backbone, rows, pad_id))


class Examples(Dataset[dict[str, Any]]):
    """Tokenized prefixes with their values (NaN where a principle has none) and the routing target of their prompt. Images are encoded when
    their step comes: those of a data set do not fit into memory.

    Args:
        write: makes the prompt and the prefix of an exchange.
        write_ids: the same without its images.
    """

    def __init__(
        self, rows: Sequence[Row], principles: Sequence[str], write: Callable[[Exchange], Written], write_ids: Callable[[Exchange], Written]
    ):
        routing = routing_targets(rows, principles)
        self._rows = rows
        self._kept = [write_ids(Exchange.of(row)) for row in rows]
        self._with_images: Encodings[int, Written] = Encodings(
            lambda index: write(Exchange.of(rows[index])), lambda written: tensor_bytes(written[0]), int, limit_bytes=ONCE_BYTES
        )
        self.values = [[row.meta["values"].get(name, float("nan")) for name in principles] for row in rows]
        self.routing = [routing[row.group] for row in rows]

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def has_images(self) -> bool:
        """Whether some prompt has images."""
        return any(one.images for one in self._rows)

    def ahead(self, indices: Sequence[int]) -> None:
        """Begins to encode the images of rows that come next; returns at once."""
        self._with_images.ahead(index for index in indices if self._rows[index].images)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt and prefix."""
        return [len(prompt.ids) for prompt, _ in self._kept]

    def __getitem__(self, index: int) -> dict[str, Any]:
        written = self._with_images(index) if self._rows[index].images else self._kept[index]
        return {"written": written, "values": self.values[index], "routing": self.routing[index]}


class ValueTrainer(Trainer):
    """A Trainer whose loss is the mean over prefixes of the binary cross-entropy of their values against their Monte-Carlo estimates, each
    the mean over the principles that the prefix has, and of the cross-entropy of the routing against its target."""

    def __init__(self, *, routing_weight: float, head_learning_rate: float, pad_id: int, **kwargs: Any):
        self.routing_weight, self.head_learning_rate, self.pad_id = routing_weight, head_learning_rate, pad_id
        super().__init__(data_collator=_not_collated, **kwargs)
        self.model_accepts_loss_kwargs = False

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> torch.Tensor:
        logits_BP, routing_BP = model([example["written"] for example in inputs], self.pad_id)
        return value_loss(
            logits_BP,
            torch.tensor([example["values"] for example in inputs], device=logits_BP.device),
            routing_BP,
            torch.tensor([example["routing"] for example in inputs], device=logits_BP.device),
            self.routing_weight,
        )

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs  # plain lists: the tensors are made on the model's device

    def create_optimizer(self, model: Any = None) -> Any:
        """AdamW with a higher learning rate for the heads, which start at zero."""
        if self.optimizer is None:
            target: Any = self.model
            heads = [p for name, p in target.named_parameters() if name.startswith("heads.")]
            rest = [p for name, p in target.named_parameters() if not name.startswith("heads.") and p.requires_grad]
            groups = [{"params": heads, "lr": self.head_learning_rate, "weight_decay": 0.0}]
            if rest:
                groups.append({"params": rest, "lr": self.args.learning_rate, "weight_decay": self.args.weight_decay})
            self.optimizer = torch.optim.AdamW(groups, betas=(self.args.adam_beta1, self.args.adam_beta2), eps=self.args.adam_epsilon)
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> StepSampler:
        data = self.train_dataset
        assert isinstance(data, Examples)
        return step_sampler(self, data.lengths, data.ahead)


def _not_collated(examples: Any) -> Any:
    """Examples of different lengths: ``hidden_ends`` pads them."""
    return examples


def value_loss(
    logits_BP: torch.Tensor, values_BP: torch.Tensor, routing_BP: torch.Tensor, target_BP: torch.Tensor, routing_weight: float
) -> torch.Tensor:
    """mean_b (mean over its known p of BCE(σ(logit), value) + routing_weight · CE(softmax(routing), target)).

    A mean over rows is the same over passes and processes of equally many rows; one over all values would not be.
    """
    known_BP = ~values_BP.isnan()
    loss_BP = binary_cross_entropy_with_logits(logits_BP, values_BP.nan_to_num(0.5), reduction="none")
    value_B = (loss_BP * known_BP).sum(1) / known_BP.sum(1).clamp(min=1)
    return value_B.mean() + routing_weight * cross_entropy(routing_BP, target_BP)
