"""What the benchmarks of sampling and training share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    # sizes of the published config.json files
    "qwen2.5-0.5b": {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "vocab_size": 151_936, "max_position_embeddings": 32_768, "rope_theta": 1_000_000.0, "tie_word_embeddings": True,
    },
    "qwen2.5-7b": {
        "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
        "vocab_size": 152_064, "max_position_embeddings": 32_768, "rope_theta": 1_000_000.0, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""Qwen2 models that ``--model`` makes with random weights, for machines that have no real ones."""


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options of a group: model, lengths, size, number type."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes = " or ".join(SHAPES)
    made.add_argument("--model", default="smollm2", help=f"a reference in the store, a folder, or, with random weights, {shapes}")
    made.add_argument("--prompt", type=int, default=384, help="prompt tokens")
    made.add_argument("--completion", type=int, default=64, help="completion tokens")
    made.add_argument("--group", type=int, default=8, help="completions of the group")
    made.add_argument("--dtype", default="float32", choices=["bfloat16", "float32"])
    made.add_argument("--json", action="store_true")
    return made


def model_folder(name: str) -> Path:
    """The folder of a model, named as a folder or as a reference."""
    from safework_cli.core.artifacts import default_store

    return Path(name) if Path(name).is_dir() else default_store(None).resolve(name, ("model",)).path


def model_and_tokenizer(name: str, dtype: str) -> tuple[Any, Any]:
    """A model on the device that training uses, and its tokenizer; of a shape: random weights, and the tokenizer of the tiny models."""
    from safework_cli.models.load import load_model, load_tokenizer

    if name not in SHAPES:
        folder = model_folder(name)
        return load_model(folder, dtype=dtype), load_tokenizer(folder)
    import tempfile

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from safework_cli.models.tiny import create_tiny_model

    with tempfile.TemporaryDirectory() as folder:
        create_tiny_model(Path(folder))
        tokenizer = load_tokenizer(Path(folder))
    config = AutoConfig.for_model("qwen2", **SHAPES[name], eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)), tokenizer


SMALL_VISION: dict[str, Any] = {
    # the language model has SmolLM2-135M's sizes, the tower those of ViT-S
    "text_config": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "vocab_size": 49_152, "max_position_embeddings": 8192, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 1e5},
    },
    "vision_config": {
        "depth": 12, "hidden_size": 384, "out_hidden_size": 576, "intermediate_size": 1024, "num_heads": 6, "patch_size": 14,
        "window_size": 112, "fullatt_block_indexes": [2, 5, 8, 11],
    },
}  # fmt: skip


def vision_model_and_processor(pixels: int, dtype: str) -> tuple[Any, Any]:
    """A Qwen2.5-VL with random weights on the device that training uses, and its processor.

    Args:
        pixels: of an image at most.
    """
    import sys
    import tempfile

    import torch
    from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig

    from safework_cli.models.pixels import PixelBounds
    from safework_cli.models.processors import load_processor
    from safework_cli.models.tiny import create_tiny_model

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    import tiny_processors
    import vision_templates

    with tempfile.TemporaryDirectory() as folder:
        create_tiny_model(Path(folder) / "text")
        tiny_processors.create("qwen2_5_vl", Path(folder) / "text", Path(folder) / "vision")
        processor = load_processor(Path(folder) / "vision", pixels=PixelBounds(max_pixels=pixels))
        processor.tokenizer = vision_templates.family_tokenizer(Path(folder) / "text", "qwen2_5_vl")
        processor.chat_template = processor.tokenizer.chat_template
    ids = processor.tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"])
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ends = {f"{end}_token_id": getattr(processor.tokenizer, f"{end}_token_id") for end in ("eos", "pad")}
    sizes = SMALL_VISION | {"text_config": SMALL_VISION["text_config"] | ends | {"bos_token_id": None}}
    config = Qwen2_5_VLConfig(**sizes, **dict(zip(names, ids, strict=True)), tie_word_embeddings=True)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, dtype)), processor


def device() -> str:
    """What the figures are of."""
    import torch

    from safework_cli.core.plan.device import this_cpu

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{this_cpu().name}{' with bfloat16 units' if this_cpu().bf16 else ''}, {torch.get_num_threads()} threads"
