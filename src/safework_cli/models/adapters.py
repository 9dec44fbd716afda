"""Low-rank adapters that are kept: taken off a trained model, written in peft's format next to the name of their base, and added to it.

Base and adapter are one model here: a loader adds the adapter to the weights and rounds the sum as a merged model would have been saved,
and all other code reads whole models only. An adapter may change a model that is an adapter itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from safework_cli.core.artifacts import Artifact
from safework_cli.core.artifacts.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Base
from safework_cli.core.artifacts.payload import parameter_count
from safework_cli.core.errors import InputError
from safework_cli.models.weights import listed

_AGAIN = "run the stage that made it again with --fresh"


@dataclass(frozen=True)
class Adapter:
    """Adapters without the model that they sit in.

    Attributes:
        base: the model that training started from.
    """

    tensors: dict[str, torch.Tensor]
    config: LoraConfig
    base: Artifact


def adapter_of(model: Any, base: Artifact) -> Adapter | None:
    """The adapters of a model in training, copied to the CPU; None where it has none."""
    if not isinstance(model, PeftModel):
        return None
    state = get_peft_model_state_dict(model, save_embedding_layers=False)  # adapters sit in linear layers; "auto" asks the hub
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}
    config = model.peft_config[model.active_adapter]
    assert isinstance(config, LoraConfig)
    return Adapter(tensors, config, base)


def merged(model: Any) -> Any:
    """The model with its adapters, if it has any, added to the weights: each sum is rounded to the type of the weight."""
    return model.merge_and_unload() if isinstance(model, PeftModel) else model


def write_adapter(adapter: Adapter, model: PreTrainedModel, folder: Path) -> None:
    """Writes the adapter, the configuration of the model that it makes, and its base's name.

    Args:
        model: with the adapter merged, in the type that the sum is rounded to.
    """
    save_file(adapter.tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    settings = {**adapter.config.to_dict(), "inference_mode": True, **_base_for_peft(adapter.base)}
    written = {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(written, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8")
    model.config.architectures, model.config.dtype = [type(model).__name__], model.dtype
    model.config.save_pretrained(str(folder))
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.save_pretrained(str(folder))
    dtype = str(model.dtype).removeprefix("torch.")
    Base(ref=adapter.base.ref, digest=adapter.base.digest, dtype=dtype, parameters=parameter_count(adapter.base.path)).write(folder)


def _base_for_peft(base: Artifact) -> dict[str, str | None]:
    """How other programs find the base: a repository of the hub with its commit; else our reference, which they cannot follow."""
    if base.ref.startswith("hf:"):
        repository, _, revision = base.ref.removeprefix("hf:").partition("@")
        return {"base_model_name_or_path": repository, "revision": revision or None}
    return {"base_model_name_or_path": Path(base.ref).name if Path(base.ref).is_absolute() else base.ref}


def with_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The base with the adapter of a folder added to its weights; every weight can be trained.

    Raises:
        InputError: the adapter does not fit the base.
    """
    try:
        config = PeftConfig.from_pretrained(str(folder))
        if not isinstance(config, LoraConfig):
            raise InputError(
                f"the adapter in {folder} is of peft's type {config.peft_type}", "only LoRA is merged here", "merge it with peft"
            )
        config.base_model_name_or_path = model.name_or_path
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):  # the random start, which is replaced, takes no numbers
            wrapped = get_peft_model(model, config)
        tensors = load_file(folder / ADAPTER_WEIGHTS)
        result: Any = set_peft_model_state_dict(wrapped, tensors)
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        raise InputError(
            f"the adapter in {folder} does not fit its base", str(error).strip().splitlines()[0], "run its stage again"
        ) from error
    missing = [name for name in result.missing_keys if "lora_" in name]
    if missing or result.unexpected_keys:
        parts = [
            f"{len(names)} {word}: {listed(names)}"
            for word, names in (("missing", missing), ("unexpected", result.unexpected_keys))
            if names
        ]
        raise InputError(
            f"the adapter in {folder} does not fit its base", "; ".join(parts), "run the stage that made it again with --fresh"
        )
    whole: PreTrainedModel = merged(wrapped)
    return whole.requires_grad_(True)
