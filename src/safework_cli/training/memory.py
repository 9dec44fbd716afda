"""What holds memory when a training pass finds none."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from transformers import Trainer

from safework_cli.core.system import peak_memory
from safework_cli.core.system_errors import ACTIVATIONS, GRADIENTS, OPTIMISER, REFERENCE, WEIGHTS, TrainingOutOfMemory

_ASKED = re.compile(r"tried to allocate ([\d.]+) ?(bytes|[KMGT]iB)", re.IGNORECASE)
_UNITS = {"bytes": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def out_of_memory(trainer: Trainer, error: BaseException) -> TrainingOutOfMemory:
    """The error of a training loop in which a pass found no memory, with what each part of the training held."""
    model, optimizer = trainer.model_wrapped, trainer.optimizer
    weights = list(model.parameters())
    held = {
        WEIGHTS: _bytes(weights),
        GRADIENTS: _bytes(weight.grad for weight in weights if weight.grad is not None),
        OPTIMISER: _bytes(value for state in getattr(optimizer, "state", {}).values() for value in state.values()),
    }
    other = next((one for name in ("ref_model", "_reference") if isinstance(one := getattr(trainer, name, None), torch.nn.Module)), None)
    if other is not None:
        held[REFERENCE] = _bytes(other.parameters())
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    total = torch.cuda.memory_allocated() if trainer.args.device.type == "cuda" else peak_memory().host
    held[ACTIVATIONS] = max(0, total + _asked(reason) - sum(held.values()))
    return TrainingOutOfMemory(reason, held)


def _asked(reason: str) -> int:
    """The bytes of the allocation that failed, where the text says it."""
    found = _ASKED.search(reason)
    return int(float(found[1]) * _UNITS[found[2].lower()]) if found else 0


def _bytes(tensors: Iterable[Any]) -> int:
    """What distinct tensors take in this process."""
    distinct = {id(tensor): tensor for tensor in tensors if isinstance(tensor, torch.Tensor)}
    return sum(map(local_bytes, distinct.values()))


def local_bytes(tensor: Any) -> int:
    """What a tensor takes in this process, which under ZeRO-3 or FSDP2 holds a part of it."""
    part = getattr(tensor, "ds_tensor", None)
    if part is None and hasattr(tensor, "to_local"):
        part = tensor.to_local()
    own = tensor if part is None else part
    return int(own.numel() * own.element_size())
