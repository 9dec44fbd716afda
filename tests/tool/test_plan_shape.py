"""The size of a model by its configuration alone, against transformers' own model on no device, and what such a folder is good for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from safework_cli.core.config import read_recipe
from safework_cli.core.plan.shape import ModelShape

BASES = {  # parameters, as their authors' files hold
    "qwen2.5-vl-7b": 8_292_166_656, "qwen2.5-vl-72b": 73_410_777_344, "internvl3-78b": 78_408_318_464, "deepseek-r1-70b": 70_553_706_496,
}  # fmt: skip
TEXT = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 3000,
}
TOWER = {
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "image_size": 336,
    "patch_size": 14,
}
QWEN_TOWER = {"depth": 6, "num_heads": 6, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
CONFIGS = {
    "llama": TEXT,
    "mixtral": TEXT | {"num_local_experts": 6, "num_experts_per_tok": 2},
    "qwen3_moe": TEXT | {"head_dim": 64, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 640},
    "qwen2_vl": {"text_config": TEXT, "vision_config": QWEN_TOWER | {"embed_dim": 384, "hidden_size": 512, "mlp_ratio": 4}},
    "qwen2_5_vl": {
        "text_config": TEXT,
        "vision_config": QWEN_TOWER | {"hidden_size": 384, "intermediate_size": 1000, "out_hidden_size": 512, "hidden_act": "silu"},
    },
    "internvl": {
        "text_config": TEXT | {"model_type": "qwen2"},
        "vision_config": TOWER | {"image_size": [336, 336], "patch_size": [14, 14]},
        "downsample_ratio": 0.5,
    },
    "llava": {"text_config": TEXT | {"model_type": "llama"}, "vision_config": TOWER | {"model_type": "clip_vision_model"}},
    "mistral3": {
        "text_config": TEXT | {"model_type": "mistral", "head_dim": 64},
        "vision_config": TOWER | {"model_type": "pixtral", "head_dim": 64},
        "spatial_merge_size": 2,
    },
}  # fmt: skip


def counted(settings: dict) -> int:
    """Numbers of the model that transformers makes of a configuration, on no device."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    kind = AutoModelForImageTextToText if "vision_config" in settings else AutoModelForCausalLM
    with torch.device("meta"):
        return kind.from_config(AutoConfig.for_model(**settings)).num_parameters()


def by_config(folder: Path, settings: dict) -> ModelShape:
    (folder / "config.json").write_text(json.dumps(settings))
    return ModelShape.of(folder)


@pytest.mark.parametrize("family", CONFIGS)
def test_the_formula_counts_what_transformers_makes(family, tmp_path):
    settings = CONFIGS[family] | {"model_type": family, "tie_word_embeddings": False}
    assert by_config(tmp_path, settings).parameters == pytest.approx(counted(settings), rel=0.01)


def test_of_a_mixture_of_experts_a_token_passes_a_part(tmp_path):
    shape = by_config(tmp_path, CONFIGS["qwen3_moe"] | {"model_type": "qwen3_moe"})
    assert shape.layer - shape.active == 3 * 512 * 640 * 6 + 512 * 8
    assert shape.feed_forward == 2 * 640


@pytest.mark.parametrize("base", BASES)
def test_the_shapes_of_the_recipes_are_the_published_models(base, tmp_path):
    settings = dict(read_recipe(Path(f"safework-r1/{base}/shape.yaml")).values)
    shape = by_config(tmp_path, settings)
    assert shape.parameters == pytest.approx(BASES[base], rel=2e-4) and shape.stored == 2 and not shape.tied
    if base != "internvl3-78b":  # whose tower has 45 layers with norms of queries and keys, which take a while
        assert counted(settings) == BASES[base]


def test_a_folder_without_weights_can_be_planned_with_and_not_run(cli, toy_data, tmp_path):
    folder = tmp_path / "seven"
    folder.mkdir()
    values = read_recipe(Path("safework-r1/qwen2.5-vl-7b/shape.yaml")).values
    (folder / "config.json").write_text(json.dumps(values))
    words = ["sft", f"model={folder}", f"data={toy_data.ref}:cot", "launch.device=h100"]
    planned = json.loads(cli(*words, "launch.strategy=fsdp", "launch.processes=8", "--dry-run", "--json").stdout)
    assert not planned["refusals"] and any("has no weights: the plan is made of its config.json" in line for line in planned["plan"])
    assert planned["estimates"]["memory"]["weights"] > 4 * BASES["qwen2.5-vl-7b"] / 8 and planned["estimates"]["gpu_hours"] > 0
    refused = cli(*words, "launch.check_memory=false")
    assert refused.returncode == 3 and "has no weights" in refused.stderr and "safework models pull" in refused.stderr
    assert "Traceback" not in refused.stderr
