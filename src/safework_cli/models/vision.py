"""Images in prompts: how a model's processor encodes them, and how they are batched.

A prompt with images is its token ids, with one placeholder token for each feature of an image, and the tensors that the vision tower
takes. The names of those tensors are the processor's (``pixel_values``, ``image_grid_thw``, …) and differ between architectures; two
kinds are distinguished here: one entry for each image, and one number for each token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from transformers import PreTrainedModel

from safework_cli.data.images import TAG
from safework_cli.data.row import Image, Message
from safework_cli.models.folder import has_vision
from safework_cli.models.processors import encode_images

Vision = dict[str, torch.Tensor]
"""The input of the vision tower for one prompt. Treated as immutable and compared by identity: the replies of a group share it."""
BY_TOKEN = ("mm_token_type_ids", "token_type_ids")
"""Tensors that hold one number for each token, (1, P)."""


def has_vision_tower(model: PreTrainedModel) -> bool:
    """Whether the model has a vision tower."""
    return has_vision(base_of(model).config)


def base_of(model: Any) -> Any:
    """The model under its adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def keep_logits(model: Any, count: int) -> dict[str, int]:
    """The argument with which a forward pass computes the logits of the last ``count`` positions only; none for an architecture that always
    computes all: read ``logits[:, -count:]``."""
    return {"logits_to_keep": count} if "logits_to_keep" in signature(type(base_of(model)).forward).parameters else {}


def placeholders(model: Any) -> list[int]:
    """The placeholder tokens of images: a reply that contains one would refer to an image that does not exist."""
    config = base_of(model).config
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    return sorted({value for name in names if isinstance(value := getattr(config, name, None), int)}) if has_vision_tower(model) else []


def encode_prompt_with_images(processor: Any, messages: Sequence[Message], images: Sequence[Image]) -> tuple[list[int], Vision]:
    """The ids of the prompt, and the input of the vision tower. Each image replaces its ``<image>`` tag."""
    parts = [{"role": message["role"], "content": _parts(message["content"])} for message in messages]
    text = processor.apply_chat_template(parts, tokenize=False, add_generation_prompt=True)
    return encode_images(processor, text, images)


def _parts(content: str) -> list[dict[str, str]]:
    texts = re.split(re.escape(TAG), content)
    parts: list[dict[str, str]] = []
    for number, text in enumerate(texts):
        if number:
            parts.append({"type": "image"})
        if text:
            parts.append({"type": "text", "text": text})
    return parts


def collate(visions: Sequence[Vision | None], lengths: Sequence[int], width: int, extra: int = 0) -> Vision:
    """The tensors of several left-padded prompts as one batch; empty if none has images.

    Args:
        lengths: tokens of each prompt.
        width: columns of the prompts.
        extra: columns of text after them.
    """
    with_images = [vision for vision in visions if vision]
    batch: Vision = {}
    for name in with_images[0] if with_images else ():
        if name in BY_TOKEN:
            rows = [torch.zeros(width + extra, dtype=torch.long) for _ in visions]
            for row, vision, length in zip(rows, visions, lengths, strict=True):
                if vision:
                    row[width - length : width] = vision[name][0]
            batch[name] = torch.stack(rows)
        else:
            batch[name] = _joined([vision[name] for vision in with_images])
    return batch


def _joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The tensors concatenated; if their second dimension counts tiles (Idefics), it is filled up with empty ones."""
    widest = max(t.shape[1] for t in tensors) if tensors[0].ndim > 1 else 0
    if any(t.ndim > 1 and t.shape[1] != widest for t in tensors):
        tensors = [torch.cat([t, t.new_zeros(t.shape[0], widest - t.shape[1], *t.shape[2:])], dim=1) for t in tensors]
    return torch.cat(list(tensors))


def positions(model: Any, ids_BL: torch.Tensor, mask_BL: torch.Tensor, vision: Vision) -> torch.Tensor:
    """Position of every token: (B, L), or (3, B, L) if the architecture gives images two dimensions and time (M-RoPE).

    Args:
        vision: of the whole batch, as ``collate`` makes it; its by-token tensors as wide as ``ids_BL``.
    """
    inner: Any = getattr(base_of(model), "model", None)
    if vision and hasattr(inner, "get_rope_index"):
        position_3BL, _ = inner.get_rope_index(
            ids_BL, mm_token_type_ids=vision["mm_token_type_ids"], image_grid_thw=vision["image_grid_thw"], attention_mask=mask_BL
        )
        return position_3BL
    return (mask_BL.cumsum(1) - 1).clamp(min=0)


@contextmanager
def positions_given(model: Any) -> Iterator[None]:
    """Inside, a text model that is called without positions gets those of its attention mask, counted from the first token that is not
    padding. With learned positions (GPT-2), a padded prompt would otherwise begin at another one.
    """
    causal = base_of(getattr(model, "module", model))
    if has_vision_tower(causal) or "position_ids" not in signature(type(causal).forward).parameters:
        yield
        return

    def give(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask_BL = kwargs.get("attention_mask")
        if mask_BL is None or kwargs.get("position_ids") is not None:
            return args, kwargs
        return args, kwargs | {"position_ids": (mask_BL.cumsum(1) - 1).clamp(min=0)}

    handle = model.register_forward_pre_hook(give, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
