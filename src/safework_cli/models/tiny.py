"""Tiny random models of real architectures, for tests and for trying recipes: a whole ladder in minutes, nothing downloaded.

A vision-language one has Qwen2.5-VL's architecture and its real chat template. With some millions of weights and tokens that are learned
from its data it is large enough to learn something from scratch (``recipes/images/``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from safework_cli.models.templates import named_template
from safework_cli.models.tiny_sizes import TinySizes

Architecture = Literal["llama", "qwen2", "qwen2.5-vl"]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
OF_IMAGES = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
WINDOW = 6
"""Patches of a window's side in the vision tower; Qwen2.5-VL has 8."""
MOST_PATCHES = 64
"""Patches of an image's side, above which it is reduced."""
_CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}


def create_tiny_model(
    folder: Path,
    *,
    architecture: Architecture = "llama",
    seed: int = 0,
    sizes: TinySizes = TinySizes(),
    texts: Sequence[str] | None = None,
) -> None:
    """Saves a random model with its tokenizer and a ChatML template.

    Args:
        texts: from which ``sizes.vocabulary`` tokens are learned; without them there is one token per byte.
    """
    from safework_cli.models.load import save_model

    with_images = architecture == "qwen2.5-vl"
    if texts is not None and with_images:
        texts = [*texts, *_around(named_template("qwen2_5_vl")) * len(texts)]  # each prompt has its system message
    tokenizer = tiny_tokenizer(texts, sizes.vocabulary, OF_IMAGES if with_images else ())
    config = _vision_config(tokenizer, sizes) if with_images else _text_config(architecture, tokenizer, sizes)
    model = _random(config, seed)
    folder.mkdir(parents=True, exist_ok=True)
    if with_images:
        tokenizer.chat_template = named_template("qwen2_5_vl")
        model.generation_config.eos_token_id, model.generation_config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    save_model(model, tokenizer, folder)
    if with_images:
        patch = 2 * sizes.patch_size  # of a token
        images = {
            "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor", "patch_size": sizes.patch_size,
            "merge_size": 2, "temporal_patch_size": 2, "min_pixels": patch**2, "max_pixels": (MOST_PATCHES * sizes.patch_size) ** 2,
            "resample": 3, "do_normalize": True, **_CLIP,
        }  # fmt: skip
        (folder / "preprocessor_config.json").write_text(json.dumps(images, indent=2) + "\n", encoding="utf-8")


def _around(template: str) -> list[str]:
    """What a chat template writes around a question, without special tokens."""
    asked = [{"role": "user", "content": ""}]
    text = tiny_tokenizer(None, None).apply_chat_template(asked, chat_template=template, tokenize=False, add_generation_prompt=True)
    return [piece for piece in re.split(r"<\|\w+\|>", str(text)) if piece.strip()]


def tiny_tokenizer(texts: Sequence[str] | None, vocabulary: int | None, more: Sequence[str] = ()) -> Any:
    """A byte-level tokenizer: byte pairs learned from texts, or one token per byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if texts is not None and vocabulary is not None:
        tokenizer.train_from_iterator(
            texts, trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False), length=len(texts)
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",  # noqa: S106 - a token of text
        pad_token="<|endoftext|>",  # noqa: S106
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
    )
    fast.add_special_tokens({"additional_special_tokens": [*SPECIAL, *more]})
    fast.chat_template = CHATML
    return fast


def _language(tokenizer: Any, sizes: TinySizes) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer), "hidden_size": sizes.hidden_size, "intermediate_size": 2 * sizes.hidden_size,
        "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads, "num_key_value_heads": sizes.heads // 2,
        "max_position_embeddings": 4096, "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip


def _text_config(architecture: Architecture, tokenizer: Any, sizes: TinySizes) -> Any:
    from transformers import LlamaConfig, Qwen2Config

    return {"llama": LlamaConfig, "qwen2": Qwen2Config}[architecture](**_language(tokenizer, sizes))


def _vision_config(tokenizer: Any, sizes: TinySizes) -> Any:
    """Weights are drawn with a deviation of 1 / √width, which keeps the size of what passes a layer: the usual 0.02 is that of a width of
    2,500, and a tower of width 128 then learned colours but hardly shapes."""
    from transformers import Qwen2_5_VLConfig

    half = sizes.hidden_size // sizes.heads // 2  # frequencies of a head: a quarter for time, the others for height and width
    section = [half // 4, 3 * half // 8, 3 * half // 8]
    rope = {"rope_type": "default", "mrope_section": section, "rope_theta": 10_000.0}
    tower = {
        "hidden_size": sizes.vision_hidden_size, "out_hidden_size": sizes.hidden_size, "intermediate_size": 2 * sizes.vision_hidden_size,
        "depth": sizes.vision_layers, "num_heads": 4, "patch_size": sizes.patch_size, "spatial_merge_size": 2, "temporal_patch_size": 2,
        "window_size": WINDOW * sizes.patch_size, "fullatt_block_indexes": list(range(1, sizes.vision_layers, 2)),
        "initializer_range": sizes.vision_hidden_size**-0.5,
    }  # fmt: skip
    language = _language(tokenizer, sizes) | {"rope_parameters": rope, "initializer_range": sizes.hidden_size**-0.5}
    start, _, image, video = tokenizer.convert_tokens_to_ids(OF_IMAGES)
    return Qwen2_5_VLConfig(
        vision_config=tower, text_config=language, image_token_id=image,
        video_token_id=video, vision_start_token_id=start, vision_end_token_id=tokenizer.convert_tokens_to_ids(OF_IMAGES[1]),
        tie_word_embeddings=True,
    )  # fmt: skip


def _random(config: Any, seed: int) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    kind = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind.from_config(config, dtype=torch.float32)
