"""Images in prompts: how a model's processor encodes them, and how they are batched.

A prompt with images is its token ids, with one placeholder token for each feature of an image, and the tensors that the vision tower
takes. The names of those tensors are the processor's (``pixel_values``, ``image_grid_thw``, …) and differ between architectures; two
kinds are distinguished here: one entry for each image, and one number for each token. An engine that encodes images itself (vLLM) takes
the images in place of the tensors, and the prompt as it was before the processor expanded each image's placeholder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any, NamedTuple

import torch
from transformers import PretrainedConfig, PreTrainedModel

from safework_cli.data.row import Image
from safework_cli.models.folder import has_vision
from safework_cli.models.processors import Headers, encode_images, prompt_ids

Vision = dict[str, torch.Tensor]
"""The input of the vision tower for one prompt. Treated as immutable and compared by identity: the replies of a group share it."""


class EncodedImages(Vision):
    """A prompt's ``Vision``, and what it was encoded from, which costs no memory: the rows hold the images' bytes.

    Attributes:
        images: as rows hold them, in the prompt's order.
        short: the prompt's ids as the chat template wrote it, with the family's own mark for each image.
        length: ids of the prompt with all placeholders.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], images: Sequence[Image], short: Sequence[int], length: int):
        super().__init__(tensors)
        self.images, self.short, self.length = tuple(images), list(short), length

    def short_of(self, ids: Sequence[int]) -> list[int]:
        """The short form of this prompt's ids with more text after them, such as the part of a reply that there is."""
        return self.short + list(ids[self.length :])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> EncodedImages:
        """The same on a device, as ``torch.Tensor.to``; accelerate moves what a data loader gives, and cannot make this class by itself."""
        tensors = {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in self.items()}
        return EncodedImages(tensors, self.images, self.short, self.length)


BY_TOKEN = ("mm_token_type_ids", "token_type_ids")
"""Tensors that hold one number for each token, (1, P). Tokens after the last of them are text."""


class Prompt(NamedTuple):
    """Token ids, and what the vision tower takes for the images among them; None where there are none."""

    ids: list[int]
    vision: EncodedImages | None = None


def has_vision_tower(model: PreTrainedModel) -> bool:
    """Whether the model has a vision tower."""
    return has_vision(base_of(model).config)


def base_of(model: Any) -> Any:
    """The model under its adapters, and under what DDP or DeepSpeed wraps it in."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def keep_logits(model: Any, count: int) -> dict[str, int]:
    """The argument with which a forward pass computes the logits of the last ``count`` positions only; none for an architecture that always
    computes all: read ``logits[:, -count:]``."""
    return {"logits_to_keep": count} if "logits_to_keep" in signature(type(base_of(model)).forward).parameters else {}


def placeholders(model: Any) -> list[int]:
    """The placeholder tokens of images: a reply that contains one would refer to an image that does not exist."""
    return placeholders_of(base_of(model).config) if has_vision_tower(model) else []


def placeholders_of(config: PretrainedConfig) -> list[int]:
    """The tokens that stand for a feature of an image or a video, by a model's configuration."""
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    return sorted({value for name in names if isinstance(value := getattr(config, name, None), int)})


def prompt_with_images(processor: Any, text: str, images: Sequence[Image]) -> Prompt:
    """Text that a chat template wrote, with the family's placeholder for each image, as token ids with the encoded images.

    Args:
        processor: of the model; as ``Headers``, the ids come without encoded images.

    Raises:
        InputError: see ``encode_images``.
    """
    if isinstance(processor, Headers):
        return Prompt(prompt_ids(processor.processor, text, images))
    ids, made = encode_images(processor, text, images)
    return Prompt(ids, EncodedImages(made, images, processor.tokenizer(text, add_special_tokens=False)["input_ids"], len(ids)))


def joined(pieces: Sequence[Prompt]) -> Prompt:
    """Pieces of a conversation as one."""
    ids = [token for piece in pieces for token in piece.ids]
    with_images = [piece.vision for piece in pieces if piece.vision]
    if not with_images:
        return Prompt(ids)
    images = [image for vision in with_images for image in vision.images]
    short = [token for piece in pieces for token in (piece.vision.short if piece.vision else piece.ids)]
    vision = EncodedImages({}, images, short, len(ids))
    for name, first in with_images[0].items():
        if name in BY_TOKEN:
            parts = [piece.vision[name] if piece.vision else first.new_zeros(1, len(piece.ids)) for piece in pieces]
            vision[name] = torch.cat(parts, dim=1)
        else:
            vision[name] = _joined([other[name] for other in with_images])
    return Prompt(ids, vision)


def after(piece: Prompt, count: int) -> Prompt:
    """A piece without its first ``count`` tokens, which hold no image."""
    if not (vision := piece.vision):
        return Prompt(piece.ids[count:])
    tensors = {name: value[:, count:] if name in BY_TOKEN else value for name, value in vision.items()}
    return Prompt(piece.ids[count:], EncodedImages(tensors, vision.images, vision.short[count:], vision.length - count))


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
                    numbers = vision[name][0][:length]  # of a prompt, which more text may follow
                    row[width - length : width - length + len(numbers)] = numbers
            batch[name] = torch.stack(rows)
        else:
            batch[name] = _joined([vision[name] for vision in with_images])
    return batch


def _joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The tensors one after another. Where they have other sizes (tiles of LLaVA-Next and Idefics, pixels of Pixtral), zeros fill them up:
    each model knows from another tensor, or from the zeros, what does not belong to an image."""
    if len({tensor.shape[1:] for tensor in tensors}) == 1:
        return torch.cat(list(tensors))
    widest = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    whole = tensors[0].new_zeros(sum(map(len, tensors)), *widest)
    first = 0
    for tensor in tensors:
        whole[(slice(first, first + len(tensor)), *(slice(size) for size in tensor.shape[1:]))] = tensor
        first += len(tensor)
    return whole


def positions(model: Any, ids_BL: torch.Tensor, mask_BL: torch.Tensor, vision: Vision) -> torch.Tensor:
    """Position of every token: (B, L), or (3, B, L) if the architecture gives images two dimensions and time (M-RoPE).

    Args:
        vision: of the whole batch, as ``collate`` makes it; its by-token tensors as wide as ``ids_BL``.
    """
    base = base_of(model)
    inner: Any = base if hasattr(base, "get_rope_index") else getattr(base, "model", None)
    if "image_grid_thw" in vision and hasattr(inner, "get_rope_index"):
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
    causal = base_of(model)
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
