"""Which weights of a model are trained: all, its top layers, or adapters."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig
from torch import nn

from safework_cli.core.errors import ConfigError, nearest
from safework_cli.training.config import Lora, LoraAndParts


def keep_first_layers(model: Any, count: int) -> None:
    """Drops every decoder layer above the first ``count``; the folder saved afterwards loads as a shallower model of the same kind."""
    decoder = _decoder(model, "keep_layers")
    decoder.layers = decoder.layers[:count]
    model.config.num_hidden_layers = count
    if getattr(model.config, "layer_types", None) is not None:
        model.config.layer_types = list(model.config.layer_types[:count])


def train_top_layers(model: Any, count: int) -> None:
    """Freezes everything but the top ``count`` decoder layers and the final norm."""
    decoder = _decoder(model, "train_layers")
    model.requires_grad_(False)
    decoder.layers[-count:].requires_grad_(True)
    decoder.norm.requires_grad_(True)


def freeze_vision(model: Any) -> None:
    """Freezes the vision tower, whatever the architecture calls it, and adapters in it. Qwen-VL's holds what projects its features into
    the language model; elsewhere that stays as it is.

    Raises:
        ConfigError: no vision tower is found.
    """
    towers = [module for name, module in model.named_modules() if name.rsplit(".", 1)[-1] in ("visual", "vision_tower", "vision_model")]
    if not towers:
        raise ConfigError(
            f"no vision tower is found in {type(model).__name__}", "its parts have other names", "train it too: train_vision=true"
        )
    for tower in towers:
        tower.requires_grad_(False)


def lora_config(lora: Lora | None, model: nn.Module) -> LoraConfig | None:
    """peft's configuration of adapters on every linear layer of a model.

    Raises:
        ConfigError: no module has the name of a part that is to be trained in full.
    """
    if lora is None:
        return None
    full = lora.full if isinstance(lora, LoraAndParts) else []
    names = sorted({name.rsplit(".", 1)[-1] for name, module in model.named_modules() if name and not name.rsplit(".", 1)[-1].isdecimal()})
    for part in full:
        if part not in names:
            raise ConfigError(
                f"lora.full names '{part}', and {type(model).__name__} has no such module{nearest(part, names)}",
                "a part is named by the last word of a module's name",
                "name one, such as multi_modal_projector, or leave lora.full out",
            )
    # some routers are linear layers that return more than a product (Phi-MoE, Llama 4)
    routers = [name for name, module in model.named_modules() if name.endswith(".router") and isinstance(module, nn.Linear)]
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear",
        exclude_modules=routers or None,
        modules_to_save=full or None,
        task_type="CAUSAL_LM",
    )


def disable_dropout(model: Any) -> None:
    """Sets every dropout of a model and every jitter of its routers to 0, those that modules keep as plain numbers included.

    A policy that drops activations in training is not the one that was sampled from.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if ("dropout" in name or "jitter" in name) and isinstance(value, float):
                setattr(module, name, 0.0)


def _decoder(model: Any, setting: str) -> Any:
    decoder = model.base_model
    if not (hasattr(decoder, "layers") and hasattr(decoder, "norm")):
        raise ConfigError(
            f"{setting} does not support this architecture",
            f"the layers of {type(model).__name__} have other names",
            f"leave {setting} out",
        )
    return decoder
