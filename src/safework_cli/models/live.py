"""The weights of a model in training under the names of the saved model, for an engine that serves it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

_BASE, _WRAPPED = "base_model.model.", ".base_layer"


def live_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, weight) of every weight as it would be saved, adapters added to what they adapt.

    The sums are made one by one and kept nowhere: merging in place and taking back, as peft does, leaves rounding in the base each time.
    """
    if not isinstance(model, PeftModel):
        yield from ((name, weight.data) for name, weight in model.named_parameters())
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
