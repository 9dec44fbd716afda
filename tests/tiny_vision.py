"""Tiny random vision-language models of real architectures, with processors that need no torchvision."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path

import torch
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, AutoTokenizer

import tiny_processors
import vision_templates
from safework_cli.models.load import load_model, stop_token_ids

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 1024, "tie_word_embeddings": False,
}  # fmt: skip


def tokenizer_with(text_model: Path, *tokens: str):
    tokenizer = AutoTokenizer.from_pretrained(str(text_model))
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)}, replace_extra_special_tokens=False)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def llava(text_model: Path):
    """Model and processor: SigLIP (4 features an image) before Qwen2."""
    from transformers import (
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        Qwen2Config,
        SiglipImageProcessorPil,
        SiglipVisionConfig,
    )  # fmt: skip

    tokenizer = tokenizer_with(text_model, "<image>")
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14,
        vision_use_head=False,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=Qwen2Config(vocab_size=len(tokenizer), **TEXT), vision_feature_layer=-1,
        vision_feature_select_strategy="full", image_token_index=tokenizer.convert_tokens_to_ids("<image>"), image_seq_length=4,
    )  # fmt: skip
    processor = LlavaProcessor(
        image_processor=SiglipImageProcessorPil(size={"height": 28, "width": 28}), tokenizer=tokenizer, patch_size=14,
        vision_feature_select_strategy="full", image_token="<image>", num_additional_image_tokens=0, chat_template=TEMPLATE,  # noqa: S106
    )  # fmt: skip
    return _random(LlavaForConditionalGeneration, config, tokenizer), processor


def idefics3(text_model: Path):
    """Model and processor: images in tiles, as many as they need."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil, Idefics3Processor, LlamaConfig

    tokenizer = tokenizer_with(text_model, "<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>")
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 7,
    }  # fmt: skip
    config = Idefics3Config(
        vision_config=vision, text_config=LlamaConfig(vocab_size=len(tokenizer), **TEXT), scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), pad_token_id=tokenizer.pad_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    images = Idefics3ImageProcessorPil(size={"longest_edge": 56}, max_image_size={"longest_edge": 28}, do_image_splitting=True)
    processor = Idefics3Processor(image_processor=images, tokenizer=tokenizer, image_seq_len=4, chat_template=TEMPLATE)
    return _random(Idefics3ForConditionalGeneration, config, tokenizer), processor


def qwen2_5_vl(text_model: Path):
    """Only the model: its processor needs torchvision. Images have three positions a token (M-RoPE)."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = tokenizer_with(text_model, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    start, end, image, video = tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"])
    text = TEXT | {"vocab_size": len(tokenizer), "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}}
    vision = {
        "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 32, "depth": 2, "num_heads": 2, "patch_size": 4,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 16, "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        vision_config=vision, text_config=text, image_token_id=image, video_token_id=video, vision_start_token_id=start,
        vision_end_token_id=end, tie_word_embeddings=False,
    )  # fmt: skip
    return _random(Qwen2_5_VLForConditionalGeneration, config, tokenizer), tokenizer


def _random(kind, config, tokenizer):
    torch.manual_seed(4)
    model = kind(config).float()
    for parameter in model.parameters():
        parameter.data *= 2  # far from the uniform attention and flat logits of a fresh model
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


# ------------------------------------------------------------ whole folders: weights, processor files and template of each family

_QWEN_TEXT = TEXT | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}}
_CLIP = {"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_SIGLIP = _CLIP | {"model_type": "siglip_vision_model", "vision_use_head": False}
_LLAMA, _QWEN2 = TEXT | {"model_type": "llama"}, TEXT | {"model_type": "qwen2"}
_PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
_TILED = _CLIP | {"image_size": 28, "patch_size": 7}
_CONFIGS = {
    "qwen2_vl": {
        "text_config": _QWEN_TEXT,
        "vision_config": {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14},
    },
    "qwen2_5_vl": {
        "text_config": _QWEN_TEXT,
        "vision_config": {
            "depth": 2, "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "patch_size": 14,
            "window_size": 56, "fullatt_block_indexes": [1],
        },
    },
    "qwen3_vl": {
        "text_config": TEXT | {
            "head_dim": 8, "rope_parameters": _QWEN_TEXT["rope_parameters"] | {"mrope_section": [2, 1, 1], "mrope_interleaved": True}
        },
        "vision_config": {
            "depth": 3, "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "patch_size": 16,
            "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
        },
    },
    "internvl": {
        "text_config": _QWEN2, "image_seq_length": 4,
        "vision_config": {
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": [28, 28],
            "patch_size": [7, 7],
        },
    },
    "llava": {"text_config": _LLAMA, "vision_config": _CLIP | {"image_size": 56, "patch_size": 14}, "image_seq_length": 16},
    "llava_next": {
        "text_config": _LLAMA, "vision_config": _CLIP | {"image_size": 28, "patch_size": 14}, "image_grid_pinpoints": _PINPOINTS,
    },
    "llava_onevision": {
        "text_config": _QWEN2, "vision_config": _SIGLIP | {"image_size": 28, "patch_size": 14}, "image_grid_pinpoints": _PINPOINTS,
        "vision_feature_select_strategy": "full",
    },
    "idefics3": {"text_config": _LLAMA, "vision_config": {k: v for k, v in _TILED.items() if k != "model_type"}, "scale_factor": 2},
    "smolvlm": {"text_config": _LLAMA, "vision_config": {k: v for k, v in _TILED.items() if k != "model_type"}, "scale_factor": 2},
    "gemma3": {
        "text_config": TEXT | {
            "model_type": "gemma3_text", "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 64,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "vision_config": _SIGLIP | {"image_size": 56, "patch_size": 14}, "mm_tokens_per_image": 4,
    },
    "mistral3": {
        "text_config": TEXT | {"model_type": "mistral", "head_dim": 8, "sliding_window": None},
        "vision_config": {
            "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 140, "patch_size": 14, "head_dim": 8,
        },
        "spatial_merge_size": 2,
    },
}  # fmt: skip
FAMILIES = tuple(_CONFIGS)


def _wide(settings: dict) -> dict:
    """The settings with attention heads that are wide enough for vLLM's kernels: 64."""
    text = settings["text_config"] | {"hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2}
    vision = dict(settings["vision_config"])
    if "rope_parameters" in text:
        text["rope_parameters"] = text["rope_parameters"] | {"mrope_section": [8, 12, 12]}
    if "out_hidden_size" in vision:
        vision["out_hidden_size"] = 128
    return settings | {"text_config": text, "vision_config": vision}


def create(family: str, text_model: Path, folder: Path, *, wide: bool = False) -> Path:
    """Writes the folder of a family: random weights, and its processor's files and template.

    Args:
        wide: heads that vLLM can compute with; for Qwen2.5-VL and InternVL.
    """
    from safework_cli.models.load import save_model

    tiny_processors.create(family, text_model, folder)
    tokenizer = vision_templates.family_tokenizer(text_model, family)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in vision_templates.TOKENS[family]}
    image = {"internvl": "<IMG_CONTEXT>", "gemma3": "<image_soft_token>", "mistral3": "[IMG]"}.get(
        family, "<|image_pad|>" if family.startswith("qwen") else "<image>"
    )
    settings = _wide(_CONFIGS[family]) if wide else dict(_CONFIGS[family])
    settings["text_config"] = settings["text_config"] | {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    settings |= {"image_token_id": ids[image], "image_token_index": ids[image], "tie_word_embeddings": False}
    settings |= {
        name: ids[token]
        for name, token in (
            ("vision_start_token_id", "<|vision_start|>"), ("vision_end_token_id", "<|vision_end|>"), ("video_token_id", "<|video_pad|>"),
            ("video_token_index", "<video>"), ("boi_token_index", "<start_of_image>"), ("eoi_token_index", "<end_of_image>"),
        )
        if token in ids
    }  # fmt: skip
    kind = CONFIG_MAPPING[family]
    takes = {field.name for field in fields(kind)}
    config = kind(**{name: value for name, value in settings.items() if name in takes})
    torch.manual_seed(4)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():  # Gemma 3's projector, through which no image would be seen
            torch.nn.init.normal_(parameter, std=0.1)
        parameter.data *= 2  # far from the uniform attention and flat logits of a fresh model
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    (folder / "chat_template.json").unlink(missing_ok=True)
    save_model(model, tokenizer, folder)
    written = json.loads((folder / "tokenizer_config.json").read_text())
    if family in vision_templates.NAMED:
        written["extra_special_tokens"] = vision_templates.NAMED[family]
    (folder / "tokenizer_config.json").write_text(json.dumps(written))
    return folder


def stops_soon(folder: Path, out: Path) -> Path:
    """A copy that ends a turn at about every other position, which a random model almost never does."""
    shutil.copytree(folder, out)
    model, tokenizer = load_model(out, dtype="float32"), AutoTokenizer.from_pretrained(str(out))
    with torch.no_grad():
        model.get_output_embeddings().weight[stop_token_ids(tokenizer, model)] *= 100
    model.save_pretrained(out)
    return out
