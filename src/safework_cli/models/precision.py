"""Products in bfloat16 from weights that stay float32, for a model that is trained and sampled from in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from safework_cli.models.attention import attention_in_float32


@contextmanager
def in_bf16(model: Any, *, enabled: bool = True) -> Iterator[None]:
    """Inside, a model multiplies in bfloat16 (autocast); its weights stay as they are, and each is cast once.

    On a CPU the fused attention computes in float32 (``models.attention``), and so does the output embedding: logits in bfloat16 have
    three significant digits, so a log-probability would be rounded by more than an update of the policy moves it.

    Args:
        enabled: without it, nothing changes.
    """
    with ExitStack() as inside:
        if enabled:
            device = model.device.type
            if device == "cpu":
                inside.enter_context(attention_in_float32(model))
                inside.enter_context(_head_in_float32(model))
            inside.enter_context(torch.autocast(device, torch.bfloat16))
        yield


def computes_in_float32(layer: torch.nn.Module) -> bool:
    """Whether a layer is an output embedding that computes in float32 here."""
    return getattr(vars(layer).get("forward"), "in_float32", False)


@contextmanager
def _head_in_float32(model: Any) -> Iterator[None]:
    head = model.get_output_embeddings()
    if head is None or computes_in_float32(head):
        yield
        return
    own = vars(head)
    before = own.get("forward")
    head.forward = _outside_autocast(head.forward)
    try:
        yield
    finally:
        if before is None:
            del own["forward"]
        else:
            own["forward"] = before


def _outside_autocast(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def outside(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return forward(x.float())

    outside.in_float32 = True  # type: ignore[attr-defined]
    return outside
