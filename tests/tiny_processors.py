"""Folders of vision-language models without weights: configuration, tokenizer and processor files, laid out as their makers publish them.

The processors are small (tiles and images of a few dozen pixels), the classes and the names in the files are the real ones. None of the
files is written by a processor's ``save_pretrained``, which for some families needs torchvision.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

PARTS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ 'IMAGE' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""A template that reads lists of parts; IMAGE is replaced by the family's placeholder."""
_CLIP = {"do_normalize": True, "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
_SIGLIP = {"do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_QWEN = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
_IDEFICS = ["<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>"]
_ROWS = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
_PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]


def _qwen(patch: int) -> dict[str, Any]:
    return {
        "image_processor_type": "Qwen2VLImageProcessor", "patch_size": patch, "merge_size": 2, "temporal_patch_size": 2,
        "min_pixels": (2 * patch) ** 2, "max_pixels": (20 * patch) ** 2, "resample": 3, **_CLIP,
    }  # fmt: skip


FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2_vl": {
        "tokens": _QWEN, "image": "<|image_pad|>", "around": ("<|vision_start|>", "<|vision_end|>"), "patch": 14,
        "preprocessor_config.json": _qwen(14) | {"processor_class": "Qwen2VLProcessor"},
        "legacy_template": True,
    },
    "qwen2_5_vl": {
        "tokens": _QWEN, "image": "<|image_pad|>", "around": ("<|vision_start|>", "<|vision_end|>"), "patch": 14,
        "preprocessor_config.json": _qwen(14) | {"processor_class": "Qwen2_5_VLProcessor"},
        "legacy_template": True,
    },
    "qwen3_vl": {
        "tokens": _QWEN, "image": "<|image_pad|>", "around": ("<|vision_start|>", "<|vision_end|>"), "patch": 16,
        "preprocessor_config.json": _qwen(16) | {
            "processor_class": "Qwen3VLProcessor", "image_processor_type": "Qwen2VLImageProcessorFast", **_SIGLIP,
        },
        "video_preprocessor_config.json": {"video_processor_type": "Qwen3VLVideoProcessor", "processor_class": "Qwen3VLProcessor"},
    },
    "internvl": {
        "tokens": ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"], "image": "<IMG_CONTEXT>",
        "named": {
            "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>",
        },
        "preprocessor_config.json": {
            "image_processor_type": "GotOcr2ImageProcessorFast", "size": {"height": 28, "width": 28}, "crop_to_patches": False,
            "min_patches": 1, "max_patches": 6, "processor_class": "InternVLProcessor", "resample": 3, **_CLIP,
        },
        "processor_config.json": {"image_seq_length": 4, "processor_class": "InternVLProcessor"},
        "video_preprocessor_config.json": {"video_processor_type": "InternVLVideoProcessor"},
    },
    "llava": {
        "tokens": ["<image>"], "image": "<image>",
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56},
            "do_center_crop": True, "resample": 3, "processor_class": "LlavaProcessor", **_CLIP,
        },
        "processor_config.json": {
            "image_token": "<image>", "patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1,
            "processor_class": "LlavaProcessor",
        },
        "legacy_template": True,
    },
    "llava_next": {
        "tokens": ["<image>"], "image": "<image>",
        "preprocessor_config.json": {
            "image_processor_type": "LlavaNextImageProcessor", "size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28},
            "do_center_crop": True, "image_grid_pinpoints": _PINPOINTS, "resample": 3, "processor_class": "LlavaNextProcessor", **_CLIP,
        },
        "processor_config.json": {
            "image_token": "<image>", "patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1,
            "processor_class": "LlavaNextProcessor",
        },
    },
    "llava_onevision": {
        "tokens": ["<image>", "<video>"], "image": "<image>",
        "preprocessor_config.json": {
            "image_processor_type": "LlavaOnevisionImageProcessor", "size": {"height": 28, "width": 28},
            "image_grid_pinpoints": _PINPOINTS, "resample": 3, "processor_class": "LlavaOnevisionProcessor", **_SIGLIP,
        },
        "processor_config.json": {
            "image_token": "<image>", "video_token": "<video>", "num_image_tokens": 4, "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_9", "processor_class": "LlavaOnevisionProcessor",
        },
    },
    "idefics3": {
        "tokens": _IDEFICS + _ROWS, "image": "<image>",
        "preprocessor_config.json": {
            "image_processor_type": "Idefics3ImageProcessor", "size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 28},
            "do_image_splitting": True, "do_pad": True, "resample": 1, "processor_class": "Idefics3Processor", **_SIGLIP,
        },
        "processor_config.json": {"image_seq_len": 4, "processor_class": "Idefics3Processor"},
    },
    "smolvlm": {
        "tokens": [*_IDEFICS, "<video>"], "image": "<image>",  # its rows and columns are several tokens each here
        "preprocessor_config.json": {
            "image_processor_type": "SmolVLMImageProcessor", "size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 28},
            "do_image_splitting": True, "do_pad": True, "resample": 1, "processor_class": "SmolVLMProcessor", **_SIGLIP,
        },
        "processor_config.json": {"image_seq_len": 4, "processor_class": "SmolVLMProcessor"},
    },
    "gemma3": {
        "tokens": ["<start_of_image>", "<end_of_image>", "<image_soft_token>"], "image": "<start_of_image>",
        "repeated": "<image_soft_token>",
        "named": {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"},
        "preprocessor_config.json": {
            "image_processor_type": "Gemma3ImageProcessor", "size": {"height": 56, "width": 56}, "resample": 2, "do_pan_and_scan": None,
            "processor_class": "Gemma3Processor", **_SIGLIP,
        },
        "processor_config.json": {"image_seq_length": 4, "processor_class": "Gemma3Processor"},
    },
    "mistral3": {
        "tokens": ["[IMG]", "[IMG_BREAK]", "[IMG_END]"], "image": "[IMG]",
        "preprocessor_config.json": {
            "image_processor_type": "PixtralImageProcessor", "size": {"longest_edge": 140}, "patch_size": {"height": 14, "width": 14},
            "processor_class": "PixtralProcessor", **_CLIP,
        },
        "processor_config.json": {
            "image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]", "patch_size": 14,
            "spatial_merge_size": 2, "processor_class": "PixtralProcessor",
        },
    },
}  # fmt: skip


def create(name: str, text_model: Path, folder: Path) -> Path:
    """Writes the folder of a family; ``text_model`` gives the tokenizer."""
    family = FAMILIES[name]
    tokenizer = AutoTokenizer.from_pretrained(str(text_model))
    tokenizer.add_special_tokens({"additional_special_tokens": family["tokens"]}, replace_extra_special_tokens=False)
    tokenizer.save_pretrained(str(folder))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    own = folder / "chat_template.jinja"  # in the file of its own, a tokenizer's template would be the processor's, too
    settings["chat_template"] = own.read_text()
    own.unlink()
    if "named" in family:
        settings["extra_special_tokens"] = family["named"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    repeated = tokenizer.convert_tokens_to_ids(family.get("repeated", family["image"]))
    config = {
        "model_type": name, "image_token_id": repeated, "image_token_index": repeated,
        "vision_config": {"patch_size": family["patch"]} if "patch" in family else {"patch_size": 14},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    for file in ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"):
        if file in family:
            (folder / file).write_text(json.dumps(family[file], indent=2))
    before, after = family.get("around", ("", ""))
    template = PARTS.replace("IMAGE", before + family["image"] + after)
    if family.get("legacy_template"):
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    else:
        (folder / "chat_template.jinja").write_text(template)
    return folder
