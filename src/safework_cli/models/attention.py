"""Attention for training: in float32 where everything else multiplies in bfloat16, and within rows that follow each other without padding.

On a CPU the backward pass of torch 2.13's fused attention takes more than twice as long in bfloat16 as in float32.

A batch without padding is one sequence of all its rows, (1, ΣT). A mask of blocks would keep the rows apart at the cost of (ΣT)²; here the
attention of each row is computed by itself, at the cost of ΣT². Everything else in a transformer works token by token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IN_FLOAT32, BY_ROW = "sdpa_in_float32", "sdpa_by_row"
PROBE_LENGTHS = (5, 9, 4)
PROBE_DIFFERENCE = 1e-3
"""The largest difference of a log-probability in float32 that is rounding."""


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


def _sdpa_by_row(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    row_lengths: Sequence[int] | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """The attention of rows that follow each other; the ordinary one where ``row_lengths`` are not given."""
    attend: Any = _sdpa_in_float32 if query.device.type == "cpu" else sdpa_attention_forward
    if row_lengths is None:
        return attend(module, query, key, value, attention_mask, **settings)[0], None
    settings.pop("position_ids", None)
    # one split of each tensor: its backward pass is one concatenation, where that of a slice would fill a tensor of the whole with zeros
    parts = zip(*(tensor.split(list(row_lengths), dim=2) for tensor in (query, key, value)), strict=True)
    return torch.cat([attend(module, *part, None, **settings)[0] for part in parts], dim=1), None


def _mask_by_row(*places: Any, attention_mask: torch.Tensor | None = None, **settings: Any) -> torch.Tensor | None:
    """No mask for rows without padding: one of all blocks would be built, and not used."""
    whole = settings.get("q_length") == settings.get("kv_length") and not settings.get("local_size")
    if attention_mask is None and not places and whole and not settings.get("use_vmap"):
        return None
    return sdpa_mask(*places, attention_mask=attention_mask, **settings)  # type: ignore[misc]


for name, attention, mask in ((IN_FLOAT32, _sdpa_in_float32, sdpa_mask), (BY_ROW, _sdpa_by_row, _mask_by_row)):
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, mask)


@contextmanager
def attention_in_float32(model: Any) -> Iterator[None]:
    """Inside, the model's fused attention computes in float32; an attention of another kind stays as it is."""
    with _attention(model, IN_FLOAT32):
        yield


@contextmanager
def attention_by_row(model: Any) -> Iterator[None]:
    """Inside, a model takes rows without padding: ``model(input_ids=(1, ΣT), position_ids=…, row_lengths=(T, …))``. Padded batches are
    computed as always. An attention of another kind than the fused one stays as it is."""
    with _attention(model, BY_ROW):
        yield


@contextmanager
def _attention(model: Any, name: str) -> Iterator[None]:
    whole = _pretrained(model)
    if whole is None or whole.config._attn_implementation != "sdpa":
        yield
        return
    whole.set_attn_implementation(name)
    try:
        yield
    finally:
        whole.set_attn_implementation("sdpa")


def _pretrained(model: Any) -> PreTrainedModel | None:
    return next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)


def without_padding(ids: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> dict[str, Any]:
    """Rows as one sequence: ``input_ids`` and ``position_ids``, (1, ΣT) each, and ``row_lengths``."""
    return {
        "input_ids": torch.tensor([[token for row in ids for token in row]], device=device),
        "position_ids": torch.cat([torch.arange(len(row), device=device) for row in ids])[None],
        "row_lengths": tuple(map(len, ids)),
    }


def keeps_rows_apart(model: Any, longest: int) -> bool:
    """Whether a model, in float32, gives rows without padding the log-probabilities that it gives them one by one. (Architectures with a
    recurrent state, a position bias or an attention of their own do not.)

    Args:
        longest: tokens of the longest row; a window of fewer tokens would not be kept.
    """
    whole = _pretrained(model)
    if whole is None or whole.config._attn_implementation != "sdpa":
        return False
    config = whole.config.get_text_config()
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    if any(window is not None and window < longest for window in windows):
        return False
    drawn = torch.Generator().manual_seed(0)
    rows = [torch.randint(config.vocab_size, (length,), generator=drawn).tolist() for length in PROBE_LENGTHS]
    device, was_training = whole.device, model.training
    model.eval()
    try:
        with torch.no_grad(), attention_by_row(model):
            together = model(**without_padding(rows, device), use_cache=False).logits[0].float().log_softmax(-1)
            alone = [model(input_ids=torch.tensor([row], device=device), use_cache=False).logits[0].float().log_softmax(-1) for row in rows]
    except (TypeError, ValueError, RuntimeError, IndexError):  # an architecture that takes no positions, or no further arguments
        return False
    finally:
        model.train(was_training)
    return bool((together - torch.cat(alone)).abs().max() < PROBE_DIFFERENCE)
