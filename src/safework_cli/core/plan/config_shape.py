"""Sizes of a model by its config.json alone, where its weights are elsewhere: those of Llama-like decoders; of vision towers, about."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_GATED = ("silu", "swiglu")
"""Activations of towers whose MLP has a gate, such as Qwen2.5-VL's; Pixtral's has one too, whatever its activation."""


@dataclass(frozen=True, slots=True)
class Widths:
    """Of a decoder layer. ``feed_forward`` is that of the experts that a token takes, and of the shared one; ``expert`` of one of the
    ``experts`` (0: it has none)."""

    hidden: int
    feed_forward: int
    query: int
    key: int
    experts: int
    experts_taken: int
    expert: int

    @classmethod
    def of(cls, written: Mapping[str, Any], hidden: int) -> Widths:
        """
        Args:
            written: what config.json says of the language model.
            hidden: where config.json does not say.
        """
        hidden = first(written, hidden, "hidden_size", "n_embd", "d_model")
        heads = first(written, 1, "num_attention_heads", "n_head")
        width = first(written, hidden // max(1, heads), "head_dim")
        taken = first(written, 1, "num_experts_per_tok", "moe_topk")
        inner = first(written, 4 * hidden, "intermediate_size", "n_inner", "ffn_dim")
        experts = first(written, 0, "num_experts", "num_local_experts", "n_routed_experts")
        expert = first(written, inner, "moe_intermediate_size") if experts else 0
        if experts:
            inner = taken * expert + first(written, 0, "shared_expert_intermediate_size")
        return cls(hidden, inner, heads * width, width * first(written, heads, "num_key_value_heads"), experts, taken, expert)

    @property
    def active(self) -> int:
        """Numbers of a layer that a token passes: four projections of the attention, three of a gated MLP, two norms."""
        return 2 * self.hidden * (self.query + self.key) + 3 * self.hidden * self.feed_forward + 2 * self.hidden

    @property
    def layer(self) -> int:
        """All numbers of a layer: with the experts that a token does not take, and the router."""
        other = max(0, self.experts - self.experts_taken)
        return self.active + 3 * self.hidden * self.expert * other + self.hidden * self.experts


def config_of(folder: Path) -> Mapping[str, Any]:
    """What config.json says; nothing where it cannot be read: the run says why."""
    return json_of(folder / "config.json")


def json_of(file: Path) -> dict[str, Any]:
    """What a file of settings says; nothing where it cannot be read."""
    try:
        written = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return written if isinstance(written, dict) else {}


def language_of(written: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that is about the language model."""
    text = written.get("text_config", written)
    return text if isinstance(text, dict) else {}


@dataclass(frozen=True, slots=True)
class Tower:
    """A vision tower.

    Attributes:
        layers: of it; layer: numbers of one.
        hidden, feed_forward: widths.
        patch, image_size: pixels of a side; 0 where images have any size.
        inputs: numbers of a patch.
        side: patches in each direction that become one token.
        numbers: all of them, and those of what leads from it to the language model, about.
    """

    layers: int
    layer: int
    hidden: int
    feed_forward: int
    patch: int
    image_size: int
    inputs: int
    side: int
    numbers: int

    @classmethod
    def of(cls, written: Mapping[str, Any], hidden: int) -> Tower | None:
        """None where the model has none.

        Args:
            written: the whole config.json.
            hidden: of the language model.
        """
        tower = written.get("vision_config")
        if not isinstance(tower, dict):
            return None
        width = first(tower, 0, "embed_dim", "hidden_size")
        ratio = tower.get("mlp_ratio")
        inner = first(tower, round(width * (ratio if isinstance(ratio, int | float) else 4)), "intermediate_size")
        gated = tower.get("hidden_act") in _GATED or tower.get("model_type") == "pixtral"
        layer = 4 * width * width + (3 if gated else 2) * width * inner
        patch, size = first(tower, 14, "patch_size", "spatial_patch_size"), first(tower, 0, "image_size")
        inputs = first(tower, 3, "num_channels", "in_channels", "in_chans") * first(tower, 1, "temporal_patch_size") * patch * patch
        layers, side = first(tower, 0, "num_hidden_layers", "depth"), _side(written, tower)
        numbers = layers * layer + (inputs + (size // patch) ** 2) * width + _joined(written, tower, side * side * width, hidden)
        return cls(layers, layer, width, inner, patch, size, inputs, side, numbers)


def _side(written: Mapping[str, Any], tower: Mapping[str, Any]) -> int:
    """Neighbouring patches in each direction whose features come into the language model as one."""
    share = written.get("downsample_ratio")
    if isinstance(share, float) and share > 0:
        return round(1 / share)
    return first({**tower, **written}, 1, "spatial_merge_size", "scale_factor")


def _joined(written: Mapping[str, Any], tower: Mapping[str, Any], wide: int, hidden: int) -> int:
    """Numbers of the two layers between the tower and the language model: in Qwen's models the first layer keeps the width of the features
    that come in, in the others it has the language model's."""
    if str(written.get("model_type", "")).startswith("qwen"):
        further = tower.get("deepstack_visual_indexes")
        return (wide * wide + wide * hidden) * (1 + (len(further) if isinstance(further, list) else 0))
    return wide * hidden + hidden * hidden


def first(written: Mapping[str, Any], default: int, *names: str) -> int:
    """The first of some settings that is a number, or a list that begins with one."""
    for name in names:
        value = written.get(name)
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return default
