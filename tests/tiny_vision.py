"""Tiny random vision-language models of real architectures, with processors that need no torchvision."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer

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
