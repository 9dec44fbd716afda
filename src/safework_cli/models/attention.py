"""Attention in float32 while everything else multiplies in bfloat16, for training on a CPU.

The backward pass of torch 2.13's fused attention takes more than twice as long there in bfloat16 as in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IN_FLOAT32 = "sdpa_in_float32"


def _sdpa_in_float32(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    with torch.autocast(query.device.type, enabled=False):
        output, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **settings)
    return output.to(query.dtype), None


AttentionInterface.register(IN_FLOAT32, _sdpa_in_float32)
AttentionMaskInterface.register(IN_FLOAT32, sdpa_mask)


@contextmanager
def attention_in_float32(model: Any) -> Iterator[None]:
    """Inside, the model's fused attention computes in float32; an attention of another kind stays as it is."""
    whole = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    if whole is None or whole.config._attn_implementation != "sdpa":
        yield
        return
    whole.set_attn_implementation(IN_FLOAT32)
    try:
        yield
    finally:
        whole.set_attn_implementation("sdpa")
