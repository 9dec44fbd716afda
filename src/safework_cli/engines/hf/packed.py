"""Linear layers whose weights are laid out once for a CPU's matrix kernels.

A product with few rows (a token each of a handful of replies) spends most of its time laying out the weight matrix again.
oneDNN can keep the layout: torch's compiler does so for frozen models with the same two operators, which have no public name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def packed_linears(model: torch.nn.Module, rows: int) -> Iterator[None]:
    """Inside, float32 linear layers on a CPU compute with packed weights; elsewhere nothing changes. For inference only.

    Args:
        rows: about how many rows a product has; other numbers work, a little slower.
    """
    layers = [layer for layer in model.modules() if type(layer) is torch.nn.Linear and _packable(layer)]
    for layer in layers:
        layer.forward = _product(layer, rows)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _packable(layer: torch.nn.Linear) -> bool:
    known = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    return known and layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32 and "forward" not in vars(layer)


def _product(layer: torch.nn.Linear, rows: int) -> Callable[[torch.Tensor], torch.Tensor]:
    with torch.inference_mode(False), torch.no_grad():  # the operator does not take inference tensors
        weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), rows)
    bias = layer.bias

    def product(x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    return product
