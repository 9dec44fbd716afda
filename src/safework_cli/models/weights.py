"""Whether a model's weights are the ones that its folder promises: nothing missing, nothing left over, every number finite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from safework_cli.core.artifacts.payload import weight_headers
from safework_cli.core.errors import InputError, SafeworkError

_SHOWN = 4
"""Names in an error; the others are counted."""


def refuse_unfit(folder: Path, info: Mapping[str, Any]) -> None:
    """Refuses weights that do not fit the configuration: transformers would fill missing ones with random numbers.

    Args:
        info: what ``from_pretrained`` also returns if ``output_loading_info`` is set. Tied tensors, buffers that are
            computed and what an architecture declares as left out do not appear in it.

    Raises:
        InputError: with the tensors' names.
    """
    mismatched = {name: f"{name} ({_shape(saved)} in the file, {_shape(wanted)} wanted)" for name, saved, wanted in info["mismatched_keys"]}
    missing = set(info["missing_keys"]) - mismatched.keys()
    unexpected = set(info["unexpected_keys"])
    parts = []
    for word, names in (("missing", missing), ("of another shape", mismatched.values()), ("unexpected", unexpected)):
        if names:
            parts.append(f"{len(names)} {word}: {listed(names)}")
    if info["error_msgs"]:
        parts.append(str(info["error_msgs"][0]))
    if parts:
        raise InputError(
            f"the weights in {folder} do not fit its config.json",
            "; ".join(parts) + ". The missing ones would be random numbers",
            "fetch the folder again; or correct config.json (num_hidden_layers, tie_word_embeddings, vocab_size), or the tensors' names",
        )


def refuse_not_finite(folder: Path, module: nn.Module) -> None:
    """Refuses weights that are NaN or infinite, by name. One pass over the numbers, on their device."""
    if bad := not_finite(module):
        raise InputError(
            f"{len(bad)} tensors in {folder} hold NaN or infinite numbers: {listed(bad)}",
            "such a model cannot reply; training diverged, or the numbers are too large for the type",
            "use an earlier checkpoint, or another dtype than float16",
        )


def not_finite(module: nn.Module) -> list[str]:
    """Names of the parameters and saved buffers that hold NaN or infinity."""
    held = [(name, tensor) for name, tensor in module.state_dict().items() if isinstance(tensor, torch.Tensor) and tensor.numel()]
    # a sum of finite numbers can overflow: only then is every number looked at
    return [
        name
        for name, tensor in held
        if tensor.is_floating_point() and not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all()
    ]


def refuse_other_than_saved(model: Any, folder: Path) -> None:
    """Compares a saved folder's headers with the model that it was saved from.

    Files hold a tensor under the name and in the layout that the architecture was published with: the experts that the model computes
    as one tensor are many there, and a tied tensor is there once. So names that both sides know have to agree in shape, and all tensors
    together have to hold as many numbers as the model does.

    Raises:
        SafeworkError: they do not.
    """
    held = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, torch.Tensor)}
    ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    own = {(tensor.data_ptr(), tensor.shape): tensor.numel() for name, tensor in held.items() if name not in ignored}
    saved = {name: entry["shape"] for header in weight_headers(folder).values() for name, entry in header.items()}
    empty = [name for name, shape in saved.items() if 0 in shape]
    reshaped = [name for name in saved.keys() & held.keys() if list(held[name].shape) != saved[name]]
    if count := sum(own.values()) - sum(map(prod, saved.values())):
        where = f"{abs(count)} numbers {'are missing' if count > 0 else 'too many'} in {folder}"
    elif empty or reshaped:
        where = f"of another shape or empty: {listed(empty + reshaped)}"
    else:
        return
    raise SafeworkError(
        f"the {type(model).__name__} was not saved completely", where, "this is a bug of this tool or of transformers: please report it"
    )


def listed(names: Iterable[str]) -> str:
    """The first names, in order, and how many others there are."""
    ordered = sorted(names)
    return ", ".join(ordered[:_SHOWN]) + (f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else "")


def _shape(shape: Iterable[int]) -> str:
    return "×".join(map(str, shape)) or "scalar"
