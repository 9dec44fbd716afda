"""The weights of a model in training under the names of the saved model, for an engine that serves it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch.distributed.tensor import DTensor

_BASE, _WRAPPED = "base_model.model.", ".base_layer"


def live_weights(model: Any, *, described: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, weight) of every weight as it would be saved, adapters added to what they adapt.

    The sums are made one by one and kept nowhere: merging in place and taking back, as peft does, leaves rounding in the base each time.
    So are weights that are divided among processes (ZeRO-3, FSDP2): each is gathered when its turn comes, for which all processes iterate.

    Args:
        described: only the shapes and types count: the weights hold no values, and nothing is gathered.
    """
    if not isinstance(model, PeftModel):
        for name, weight in model.named_parameters():
            if described:
                yield name, torch.empty(getattr(weight, "ds_shape", weight.shape), dtype=weight.dtype, device="meta")
                continue
            with _whole(weight) as values:
                yield name, values
        return
    adapted: dict[str, Any] = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    for name, weight in model.named_parameters():
        if "lora_" in name:
            continue
        module = adapted.get(name.rpartition(".")[0].removesuffix(_WRAPPED))
        own = name.removeprefix(_BASE).replace(_WRAPPED, "")
        if module is None or not name.endswith("weight"):
            yield own, weight.data
            continue
        added = sum(module.get_delta_weight(adapter) for adapter in module.active_adapters)
        yield own, weight.data + added


@contextmanager
def _whole(weight: Any) -> Iterator[torch.Tensor]:
    """A weight's values, gathered where processes hold parts of it."""
    if isinstance(weight, DTensor):
        with torch.no_grad():
            values = weight.full_tensor()
        yield values
    elif hasattr(weight, "ds_id"):
        from deepspeed.zero import GatheredParameters

        with GatheredParameters([weight]):
            yield weight.data
    else:
        yield weight.data
