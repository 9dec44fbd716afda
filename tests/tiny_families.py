"""Tiny random language models of the families that the documentation names, each made from its own configuration class."""

from __future__ import annotations

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

_SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 1024,
}  # fmt: skip
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 1024}
_MOE = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}  # fmt: skip
_LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "n_group": 2, "topk_group": 1,
    "n_shared_experts": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4,
}  # fmt: skip
_LINEAR = {
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip

DENSE = {
    "llama": _SHAPE,
    "mistral": _SHAPE | {"sliding_window": 16},
    "qwen2": _SHAPE,
    "qwen3": _SHAPE,
    "gemma": _SHAPE,
    "gemma2": _SHAPE | {"sliding_window": 16, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 5.0},
    "gemma3_text": _SHAPE | {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "cohere": _SHAPE | {"logit_scale": 0.3},
    "cohere2": _SHAPE | {"sliding_window": 16, "logit_scale": 0.3},
    "granite": _SHAPE | {"logits_scaling": 4.0},
    "phi": _SHAPE,
    "phi3": _SHAPE,
    "olmo2": _SHAPE,
    "glm4": _SHAPE,
    "smollm3": _SHAPE,
    "stablelm": _SHAPE,
    "starcoder2": _SHAPE,
    "nemotron": _SHAPE,
    "gpt2": _GPT,
    "gptj": _GPT | {"rotary_dim": 8},
    "gpt_neox": _SHAPE,
    "opt": _SHAPE | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 1024},
    "mamba": {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2},
}
MIXTURES = {
    "mixtral": _SHAPE | _MOE,
    "qwen2_moe": _SHAPE | _MOE,
    "qwen3_moe": _SHAPE | _MOE,
    "qwen3_next": _SHAPE | _MOE | _LINEAR,
    "olmoe": _SHAPE | _MOE,
    "deepseek_v2": _SHAPE | _MOE | _LATENT,
    "deepseek_v3": _SHAPE | _MOE | _LATENT,
    "gpt_oss": _SHAPE | _MOE | {"sliding_window": 16},
    "phimoe": _SHAPE | _MOE,
    "granitemoe": _SHAPE | _MOE | {"logits_scaling": 4.0},
    "glm4_moe": _SHAPE | _MOE | _LATENT,
    "ernie4_5_moe": _SHAPE | {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16},
}
FAMILIES = DENSE | MIXTURES
SLIDING = [name for name, shape in FAMILIES.items() if "sliding_window" in shape]


def tiny_of(name, tokenizer, *, scale: float = 3.0, **changes):
    """A random model of a family in float32, in eval mode; its weights are scaled up, away from the flat logits of a fresh model."""
    config = CONFIG_MAPPING[name](
        **FAMILIES[name] | {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id} | changes,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= scale
    return model
