"""Linear layers whose weights are laid out once for a CPU's matrix kernels.

A product with few rows (a token each of a handful of replies) spends most of its time laying out the weight matrix again, and under
autocast casting it. oneDNN can keep the layout: torch's compiler does so for frozen models with the same two operators, which have no
public name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from safework_cli.models.precision import computes_in_float32


@contextmanager
def packed_linears(model: torch.nn.Module, rows: int) -> Iterator[None]:
    """Inside, float32 linear layers on a CPU compute with packed weights, in bfloat16 where autocast is on; elsewhere nothing changes. For
    inference only.

    Args:
        rows: about how many rows a product has; other numbers work, a little slower.
    """
    layers = [layer for layer in model.modules() if type(layer) is torch.nn.Linear and _packable(layer)]
    before = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = _product(layer, rows)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward  # type: ignore[method-assign]


def _packable(layer: torch.nn.Linear) -> bool:
    known = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    plain = "forward" not in vars(layer) or computes_in_float32(layer)
    fast = (torch.float32, torch.bfloat16) if torch.ops.mkldnn._is_mkldnn_bf16_supported() else (torch.float32,)
    own = layer.weight
    return known and plain and own.device.type == "cpu" and own.dtype == torch.float32 and _multiplied_in(layer) in fast


def _multiplied_in(layer: torch.nn.Linear) -> torch.dtype:
    autocast = torch.is_autocast_enabled("cpu") and not computes_in_float32(layer)
    return torch.get_autocast_dtype("cpu") if autocast else layer.weight.dtype


def _product(layer: torch.nn.Linear, rows: int) -> Callable[[torch.Tensor], torch.Tensor]:
    dtype = _multiplied_in(layer)
    with torch.inference_mode(False), torch.no_grad():  # the operator does not take inference tensors
        weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().to(dtype), rows)
        bias = None if layer.bias is None else layer.bias.detach().to(dtype)

    def product(x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.to(dtype), weight, bias, "none", [], "")

    return product
