"""Vision towers on several processes: passes with images and passes without run the same modules.

The forward of every family calls its vision tower only where a pass has images. On several processes the passes of one moment differ:
where weights are divided (FSDP, ZeRO-3), the process with an image waits for parts that the others do not send, and where gradients are
averaged (DDP), the others have none for the tower.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from inspect import signature
from io import BytesIO
from typing import Any

import torch
from PIL import Image as Pillow
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from safework_cli.core.launch.world import World
from safework_cli.core.settings import LaunchSettings
from safework_cli.data.row import Image
from safework_cli.models.processors import encode_images
from safework_cli.models.vision import base_of, has_vision_tower
from safework_cli.training.group import any_of
from safework_cli.training.strategy import DIVIDED

EDGE = 56
"""Width and height of the empty image, in pixels: a few patches of every family; processors resize it as they resize others."""


@contextmanager
def towers_in_every_pass(
    models: Sequence[Any], processor: Any, *, images: bool, launch: LaunchSettings, world: World
) -> Iterator[list[TrainerCallback]]:
    """Inside, on several processes, passes without images run the vision tower on an empty image, with gradients of 0. What no pass uses
    is frozen, which changes nothing, since it would get no gradient, and DDP would wait for one: the tower and its projector where no row
    has images, and layers of a tower after the one whose features the family takes (LLaVA).

    Args:
        models: the one in training, and those that it is compared with; their weights may be divided later.
        processor: of the models; None where they read text only.
        images: whether some row has images.

    Returns:
        callbacks for the trainer.
    """
    callbacks: list[TrainerCallback] = []
    with ExitStack() as undo:
        # a model that is compared with gets no gradients: its passes matter where its weights are divided
        several = processor is not None and world.size > 1
        for model in filter(None, (models if launch.strategy in DIVIDED else models[:1]) if several else ()):
            if not has_vision_tower(model):
                continue
            if not images:
                _freeze(_image_weights(model))
                continue
            vision = empty_image(processor)
            if launch.strategy == "ddp":  # elsewhere a process may not have the weights yet, and none waits for a gradient
                _freeze(_unused(model, vision))
            tower = EmptyImage(model, vision, world)
            undo.enter_context(tower)
            if model is models[0]:
                callbacks.append(tower)
        yield callbacks


def empty_image(processor: Any) -> dict[str, torch.Tensor]:
    """What the vision tower takes for a black image of ``EDGE`` pixels."""
    written = BytesIO()
    Pillow.new("RGB", (EDGE, EDGE)).save(written, "PNG")
    return encode_images(processor, processor.image_token, [Image(bytes=written.getvalue(), path=None)])[1]


def _image_weights(model: Any) -> list[Any]:
    """What only images pass: everything in front of the language model, and adapters in it."""
    inner = base_of(model).base_model
    text = {id(weight) for weight in inner.get_decoder().parameters()}
    return [weight for weight in inner.parameters() if id(weight) not in text]


def _unused(model: Any, vision: Mapping[str, torch.Tensor]) -> list[Any]:
    """What only images pass and no feature depends on, of the weights that are trained."""
    trained = [weight for weight in _image_weights(model) if weight.requires_grad]
    if not trained:
        return []
    with torch.enable_grad():
        gradients = torch.autograd.grad(_features(base_of(model).base_model, vision), trained, allow_unused=True)
    return [weight for weight, gradient in zip(trained, gradients, strict=True) if gradient is None]


def _freeze(weights: Sequence[Any]) -> None:
    for weight in weights:
        weight.requires_grad_(False)


class EmptyImage(TrainerCallback):
    """Inside, a forward pass without images, and not the continuation of another one, runs the tower before the language model, as a pass
    with images does, and adds 0 times its features to the tokens' embeddings.

    As a callback of the trainer, takes away the gradients of a step without any image, which are 0: the optimiser then does not move the
    tower, as where one process trains. (DeepSpeed's optimiser has updated by then, and its moments do move it.)

    Args:
        model: has a vision tower.
        vision: what it takes for an empty image.
    """

    def __init__(self, model: Any, vision: Mapping[str, torch.Tensor], world: World):
        self._model, self._inner, self._vision, self._world = model, base_of(model).base_model, vision, world
        self._seen = False
        """Whether a pass since the last update had images."""

    def __enter__(self) -> None:
        self._passes = self._inner.register_forward_pre_hook(self._before, with_kwargs=True)

    def __exit__(self, *_: object) -> None:
        self._passes.remove()

    def _before(self, inner: Any, args: Any, kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        with_images, continues = kwargs.get("pixel_values") is not None, cache is not None and cache.get_seq_length() > 0
        self._seen |= with_images and torch.is_grad_enabled()
        if not (with_images or continues):
            self._embedding = inner.get_input_embeddings().register_forward_hook(self._embedded)

    def _embedded(self, embeddings: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        """After FSDP's own hook on the embedding, so that both passes gather and reduce in one order. All of a pass depends on its
        embeddings, its keys and values too, which are all that is read of a common prompt's pass."""
        self._embedding.remove()
        return output + 0.0 * _features(self._inner, self._vision).to(output.dtype)

    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not any_of(self._world, self._seen, args.device):
            for weight in _image_weights(self._model):
                weight.grad = None
        self._seen = False


def _features(inner: Any, vision: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A number that everything depends on that the forward takes from an image."""
    weight, takes = next(inner.parameters()), signature(type(inner).get_image_features).parameters
    inputs = {
        name: tensor.to(weight.device, weight.dtype if tensor.is_floating_point() else None)
        for name, tensor in vision.items()
        if name in takes
    }
    output = inner.get_image_features(**inputs, return_dict=True)
    found = _tensors([output.pooler_output, getattr(output, "deepstack_features", None)])  # of Qwen3-VL's inner layers
    return torch.stack([tensor.float().mean() for tensor in found]).sum()


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in lists of them."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)
