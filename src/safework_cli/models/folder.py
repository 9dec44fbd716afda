"""What a model folder says of itself, read without its weights: configuration, code of its own, adapters, the type of its numbers."""

from __future__ import annotations

import json
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from safework_cli.core.artifacts.adapters import read_base, refuse_adapter
from safework_cli.core.artifacts.payload import weight_headers
from safework_cli.core.errors import InputError, SafeworkError

_TYPES = {"F64": torch.float32, "F32": torch.float32, "F16": torch.float16}


def read_config(folder: Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The model's configuration.

    Raises:
        InputError: the folder holds an adapter, its config.json is missing or damaged, or the architecture is known neither to
            transformers nor by code of its own that may run.
    """
    refuse_adapter(folder)
    content = read_json(folder / "config.json")
    kind, own_code = content.get("model_type"), content.get("auto_map")
    if kind == "internvl_chat":
        raise InputError(
            f"the model in {folder} is InternVL in the layout with Python code of its own",
            "its images are encoded by that code; transformers has a port of the same weights, whose names end in -hf",
            "take the port, such as: safework models pull hf:OpenGVLab/InternVL3-8B-hf",
        )
    known = isinstance(kind, str) and kind in CONFIG_MAPPING
    if not known and own_code and not trust_remote_code:
        raise InputError(
            f"the model in {folder} needs Python code of its own",
            "its architecture is in that code, and code from a model's folder runs only with your permission",
            "trust_remote_code=true, if you trust its author",
        )
    if not known and not own_code:
        what = f"its model_type is {kind!r}" if kind else "config.json names no model_type"
        raise InputError(f"{folder} has an architecture that transformers does not know", what, "is this a Hugging Face model folder?")
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except SafeworkError:
        raise
    except Exception as error:
        raise InputError(f"{folder / 'config.json'} cannot be used", first_line(error), "compare it with the original model's") from error
    for name, value in vars(config.get_text_config()).items():
        share = name.endswith(("dropout", "pdrop")) and name != "classifier_dropout"
        if share and not (isinstance(value, (int, float)) and 0 <= value < 1):  # it would end a training run that had begun
            raise InputError(f"{name} in {folder / 'config.json'} is {value!r}", "it is a share below 1", "correct the file")
    return config


def has_vision(config: PretrainedConfig) -> bool:
    """Whether a model of this configuration has a vision tower."""
    return getattr(config, "vision_config", None) is not None


def read_json(file: Path) -> dict[str, Any]:
    """Raises InputError where the file is missing or is not a JSON object."""
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{file.parent} has no {file.name}", "a model is a Hugging Face folder", "check the path") from None
    except OSError as error:
        raise InputError(f"{file} cannot be read", error.strerror or first_line(error), "check the folder") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not JSON", first_line(error), "fetch the file again") from None
    if not isinstance(content, dict):
        raise InputError(f"{file} is not a JSON object", f"it holds a {type(content).__name__}", "fetch the file again")
    return content


def processors_template(folder: Path) -> str | None:
    """The chat template of a folder's processor, where it is in a file of its own: the order is transformers'. None where it has none.

    Raises:
        InputError: the file is damaged.
    """
    if (file := folder / "chat_template.jinja").is_file():
        return file.read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json"):
        if (folder / name).is_file() and isinstance(text := read_json(folder / name).get("chat_template"), str):
            return text
    return None


def positions_of(config: Any) -> int | None:
    """Tokens of a sequence at most by a model's configuration, or None where the architecture has no limit."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def stored_dtype(folder: Path) -> torch.dtype:
    """The type that a model's weights are saved in: that of most numbers in its files; bfloat16 where those are quantised. Of an adapter:
    the type of its sum with the base."""
    if base := read_base(folder):
        return getattr(torch, base.dtype)
    count: Counter[str] = Counter()
    for header in weight_headers(folder).values():
        for entry in header.values():
            count[entry["dtype"]] += prod(entry["shape"])
    return _TYPES.get(count.most_common(1)[0][0], torch.bfloat16)


def first_line(error: BaseException) -> str:
    """What an error says, in a line; a library's own refusal keeps its type."""
    if isinstance(error, SafeworkError):
        return error.what
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
