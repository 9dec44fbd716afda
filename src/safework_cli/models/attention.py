"""Attention for training: in float32 where everything else multiplies in bfloat16, and within rows that follow each other without padding.

On a CPU the backward pass of torch 2.13's fused attention takes more than twice as long in bfloat16 as in float32.

A batch without padding is one sequence of all its rows, (1, ΣT). A mask of blocks would keep the rows apart at the cost of (ΣT)²; here the
attention of each row is computed by itself, at the cost of ΣT². Everything else in a transformer works token by token. On a GPU the rows
are padded for the attention alone, and computed in one call: for small models, a call for each row of each layer takes longer to start than
to compute.

What all rows begin with, such as the template's system message, may come once, before them: the attention of each row then reads its keys
and values from there, and everything else is computed once. For rows of a hundred tokens that is a quarter of all tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IN_FLOAT32, BY_ROW = "sdpa_in_float32", "sdpa_by_row"
PROBE_LENGTHS, PROBE_SHARED = (5, 9, 4), 2
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
    shared: int = 0,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """The attention of rows that follow each other; the ordinary one where ``row_lengths`` are not given, and in a vision tower, to which
    some models pass them on.

    Args:
        shared: tokens of the first of them, which all others go on from; 0 where there is no such row.
    """
    attend: Any = _sdpa_in_float32 if query.device.type == "cpu" else sdpa_attention_forward
    if row_lengths is None or not getattr(module, "is_causal", True):
        return attend(module, query, key, value, attention_mask, **settings)[0], None
    settings.pop("position_ids", None)
    if _in_one_call(query.device):
        place_RL, back_T = _padded_places(tuple(row_lengths), shared, query.device)
        padded = (tensor[0][:, place_RL].transpose(0, 1) for tensor in (query, key, value))
        # causal, so no token attends to the padding after it
        return attend(module, *padded, None, **settings)[0].flatten(0, 1)[back_T][None], None
    # one split of each tensor: its backward pass is one concatenation, where that of a slice would fill a tensor of the whole with zeros
    parts = [*zip(*(tensor.split(list(row_lengths), dim=2) for tensor in (query, key, value)), strict=True)]
    outputs = [attend(module, *part, None, **settings)[0] for part in (parts[:1] if shared else parts)]
    for part in parts[1:] if shared else ():
        # the queries of the shared beginning come with its keys: torch's causal attention is a square
        whole = (torch.cat(pair, dim=2) for pair in zip(parts[0], part, strict=True))
        outputs.append(attend(module, *whole, None, **settings)[0][:, shared:])
    return torch.cat(outputs, dim=1), None


def _in_one_call(device: torch.device) -> bool:
    return device.type != "cpu"


@lru_cache(maxsize=8)
def _padded_places(row_lengths: tuple[int, ...], shared: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the tokens of padded rows come from, (R, L) in the sequence of all rows (padding: its first token), each row with the shared
    beginning; and where each token of the sequence is in them, (ΣT,) in R·L."""
    ends = row_lengths[1:] if shared else row_lengths
    width = shared + max(ends)
    with torch.inference_mode(False):  # they are kept, and a backward pass does not take tensors that were made in it
        place_RL = torch.zeros(len(ends), width, dtype=torch.long)
        place_RL[:, :shared] = torch.arange(shared)
        back_T = torch.arange(sum(row_lengths))  # the shared beginning: that of the first row
        start = shared
        for row, length in enumerate(ends):
            place_RL[row, shared : shared + length] = torch.arange(start, start + length)
            back_T[start : start + length] = row * width + shared + torch.arange(length)
            start += length
        return place_RL.to(device), back_T.to(device)


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


def without_padding(ids: Sequence[Sequence[int]], device: torch.device | str = "cpu", shared: int = 0) -> dict[str, Any]:
    """Rows as one sequence: ``input_ids`` and ``position_ids``, (1, ΣT) each, and ``row_lengths``.

    Args:
        shared: how many tokens, with which all rows begin, come once; they are the first row of the sequence, and the others lack them.
    """
    return {
        "input_ids": one_sequence([torch.tensor([*row], device=device) for row in ids], shared),
        "position_ids": one_sequence([torch.arange(len(row), device=device) for row in ids], shared),
        "row_lengths": (*([shared] if shared else []), *(len(row) - shared for row in ids)),
        **({"shared": shared} if shared else {}),
    }


def one_sequence(columns: Sequence[torch.Tensor], shared: int = 0) -> torch.Tensor:
    """One value for each token of the rows, in the order of ``without_padding``: (1, ΣT) of columns (T,)."""
    return torch.cat([columns[0][:shared], *(column[shared:] for column in columns)])[None]


def keeps_rows_apart(model: Any, longest: int) -> bool:
    """Whether a model, in float32, gives rows without padding, their common beginning shared, the log-probabilities that it gives them one
    by one. (Architectures with a recurrent state, a position bias or an attention of their own do not.)

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
    start, *ends = (torch.randint(config.vocab_size, (n,), generator=drawn).tolist() for n in (PROBE_SHARED, *PROBE_LENGTHS))
    rows = [start + end for end in ends]
    device = whole.device

    def pair(shared: int) -> tuple[torch.Tensor, torch.Tensor]:
        alone = [model(input_ids=torch.tensor([row], device=device), use_cache=False).logits[0] for row in rows]
        return model(**without_padding(rows, device, shared), use_cache=False).logits[0], one_sequence(alone, shared)[0]

    return same_by_row(model, lambda: [pair(0), pair(PROBE_SHARED)])


def same_by_row(model: Any, pairs: Callable[[], Iterable[tuple[torch.Tensor, torch.Tensor]]]) -> bool:
    """Whether the log-probabilities of two logits are the same but for rounding, for each pair; computed inside ``attention_by_row``."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), attention_by_row(model):
            logp = [[logits.float().log_softmax(-1) for logits in pair] for pair in pairs()]
    except (TypeError, ValueError, RuntimeError, IndexError):  # an architecture that takes no positions, or no further arguments
        return False
    finally:
        model.train(was_training)
    return all(bool(((together - each).abs() < PROBE_DIFFERENCE).all()) for together, each in logp)
