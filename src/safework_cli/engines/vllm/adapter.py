"""A kept adapter in vLLM: it serves the base, and adds the adapter by its own LoRA support."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safework_cli.core.artifacts.adapters import ADAPTER_CONFIG
from safework_cli.core.artifacts.bases import base_folder
from safework_cli.core.errors import InputError
from safework_cli.models.folder import read_json

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Of adapters, as vLLM reserves room for them."""


def model_options(folder: Path, *, live: bool) -> dict[str, Any]:
    """vLLM's options that say which weights it loads: those of a whole model, or a base's and how much room the adapter takes.

    Args:
        live: the weights will be replaced by those of a model in training, adapters in them: any of the same shape will do.

    Raises:
        InputError: an adapter of an adapter, or of a rank that vLLM does not take.
    """
    base, given = base_folder(folder), folder
    if base is None:
        return {"model": str(folder)}
    if live:
        while base is not None:
            folder, base = base, base_folder(base)
        return {"model": str(folder), "tokenizer": str(given)}
    if base_folder(base) is not None:
        what = f"the model in {folder} is an adapter of an adapter"
        raise InputError(what, "vLLM adds one", "safework models merge ADAPTER; or engine.kind=hf")
    rank = read_json(folder / ADAPTER_CONFIG)["r"]
    room = next((room for room in RANKS if room >= rank), None)
    if room is None:
        what = f"the adapter in {folder} has rank {rank}"
        raise InputError(what, f"vLLM takes at most {RANKS[-1]}", "safework models merge ADAPTER; or engine.kind=hf")
    return {"model": str(base), "tokenizer": str(folder), "enable_lora": True, "max_loras": 1, "max_lora_rank": room}


def lora_request(folder: Path, *, live: bool) -> Any:
    """What vLLM's ``generate`` is given with each request; None for a whole model, and where the weights are replaced."""
    if live or base_folder(folder) is None:
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest("adapter", 1, str(folder))
