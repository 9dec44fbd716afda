"""Loading models and tokenizers, with the checks that later surprises come from."""

from __future__ import annotations

import ctypes
import hashlib
import json
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from safework_cli.errors import InputError
from safework_cli.lm.chat import TEMPLATE_DATE, shows_date
from safework_cli.lm.vision import has_vision

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # names and numbers of malloc.h

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def pick_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(dtype: Dtype) -> torch.dtype:
    """ "auto" is bfloat16 where the hardware multiplies in it (CUDA, AVX512-BF16, AMX), float32 elsewhere."""
    if dtype != "auto":
        return getattr(torch, dtype)
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def cast_weights(model: Any, dtype: torch.dtype) -> Any:
    """Casts the weights, as saving and loading them would. ``Module.to`` rounds the rotary frequencies as well, which loading does not."""
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    return model


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Loads a tokenizer that has a chat template and a stop token; pads with the stop token where it has no padding token.

    Raises:
        InputError: the folder has no tokenizer, no chat template, or no end-of-sequence token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise InputError(
            f"no tokenizer can be loaded from {folder}", str(error).splitlines()[0], "is this a Hugging Face model folder?"
        ) from None
    if not tokenizer.chat_template:
        raise InputError(
            f"the model in {folder} has no chat template",
            "every stage speaks to models through their template; guessing one would train and judge another model than yours",
            "take the instruct variant, or save a chat_template.jinja beside tokenizer_config.json",
        )
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"the tokenizer in {folder} has no eos_token",
            "a model that cannot stop cannot be trained to",
            "set eos_token in tokenizer_config.json",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # harmless: every mask here goes by length, never by token id
    return tokenizer


def load_model(folder: Path, *, dtype: Dtype = "auto", trust_remote_code: bool = False) -> PreTrainedModel:
    """Loads a causal language model, one that sees pictures or one that does not, from safetensors onto the device at hand, in eval mode.

    Raises:
        InputError: no safetensors weights, or transformers does not know the architecture.
    """
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
        kind = AutoModelForImageTextToText if has_vision(config) else AutoModelForCausalLM
        model = kind.from_pretrained(str(folder), dtype=pick_dtype(dtype), use_safetensors=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"no causal language model can be loaded from {folder}", str(error).splitlines()[0], f"safework artifacts verify {folder}"
        ) from None
    device = pick_device()
    if device.type == "cpu":
        _keep_freed_memory()
    model.to(device)  # type: ignore[arg-type] # transformers wraps nn.Module.to
    return model.eval()


def _keep_freed_memory() -> None:
    """Tells glibc to keep freed buffers for the next step instead of giving them back to the kernel.

    A training step frees and takes again gigabytes of activations; faulting their pages in anew cost a fifth of a CPU step. Only this
    process is changed; elsewhere than on glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of the chat template, and of the date that it prints: part of a model's identity, compared between training and evaluation."""
    template = tokenizer.chat_template
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    if shows_date(tokenizer):
        text += f"\n{TEMPLATE_DATE}"
    return hashlib.sha256(text.encode()).hexdigest()


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, settings: PreTrainedModel | GenerationConfig | None = None) -> list[int]:
    """The tokens that end a turn: the tokenizer's eos and those of the model's generation config."""
    stops = {tokenizer.eos_token_id}
    configured = getattr(getattr(settings, "generation_config", settings), "eos_token_id", None)
    if configured is not None:
        stops.update(configured if isinstance(configured, list) else [configured])
    return sorted(stops)


def template_of(folder: Path) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """A model's tokenizer and the tokens that end its turns, without its weights."""
    settings = GenerationConfig.from_pretrained(str(folder)) if (folder / "generation_config.json").exists() else None
    tokenizer = load_tokenizer(folder)
    return tokenizer, stop_token_ids(tokenizer, settings)


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | ProcessorMixin, folder: Path) -> None:
    """Writes a Hugging Face folder with safetensors and checks it by reopening the headers.

    Args:
        tokenizer: or the whole processor, for a model that sees pictures.

    Raises:
        InputError: a tensor is missing, empty or of another shape than the model's.
    """
    model.save_pretrained(str(folder), safe_serialization=True)
    tokenizer.save_pretrained(str(folder))
    saved: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        saved.update({name: entry["shape"] for name, entry in safetensors_header(file).items()})
    tied = set(getattr(model, "_tied_weights_keys", None) or {})
    held = {name: list(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}
    # some architectures are saved under the names of an earlier release: then what is left on both sides must be of the same shapes
    renamed = Counter(str(saved[name]) for name in saved.keys() - held.keys() - tied)
    for name, shape in held.items():
        if 0 in shape or (saved[name] != shape if name in saved else not renamed[str(shape)]):
            raise InputError(
                f"tensor {name} was saved as {saved.get(name)}, the model holds {shape}", "the save lost weights", "report this"
            )
        if name not in saved:
            renamed[str(shape)] -= 1


def safetensors_header(file: Path) -> dict[str, Any]:
    """Names, types and shapes of the tensors of a file, without reading them."""
    with open(file, "rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8))
        header = json.loads(handle.read(length))
    header.pop("__metadata__", None)
    return header
