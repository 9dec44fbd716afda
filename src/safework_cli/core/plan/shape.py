"""The shape of a model, from its config.json and the headers of its weights: no weight is read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from safework_cli.core.artifacts.adapters import read_base
from safework_cli.core.artifacts.bases import base_folder
from safework_cli.core.artifacts.payload import weight_headers

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_VISION = re.compile(r"(?:^|\.)(?:visual|vision_tower|vision_model)\.")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|embed_in)\.weight$")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out)\.weight$")
_EXPERT = re.compile(r"\.experts?\.")
_NORM = re.compile(r"norm\w*\.weight$|ln_\d\.weight$")
_BYTES = {"F64": 8, "F32": 4, "I32": 4, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1}


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes that memory and time depend on. Counts are numbers, not bytes.

    Attributes:
        parameters: all of the files' numbers; a tied output embedding is saved once.
        layers: decoder layers.
        layer: numbers of one of them, on average; active: those that a token passes through (fewer in a mixture of experts).
        embedding: of the input embedding; head: of the output embedding, which is the same one where ``tied``.
        hidden, feed_forward, query, key: widths of the residual stream, of the inner layer of the MLP (of all experts that a token takes),
            of all query heads and of all key heads.
        vocabulary: logits of a position.
        norms: of the residual stream's width, in a layer; head_norms: queries and keys are normalised too.
        stored: bytes of a number in the files.
    """

    parameters: int
    layers: int
    layer: int
    active: int
    embedding: int
    head: int
    tied: bool
    hidden: int
    feed_forward: int
    query: int
    key: int
    vocabulary: int
    stored: float
    norms: int = 2
    head_norms: bool = False

    @classmethod
    def of(cls, folder: Path) -> ModelShape:
        """The shape of the model in a folder; of an adapter, that of its base.

        Raises:
            InputError: it has no safetensors, or damaged ones.
        """
        adapter = read_base(folder)
        if adapter is not None and (base := base_folder(folder)) is not None:
            return replace(cls.of(base), stored=4.0 if adapter.dtype == "float32" else 2.0)
        headers = [entry for header in weight_headers(folder).values() for entry in header.items()]
        shapes = {name: entry["shape"] for name, entry in headers}
        sizes = {name: prod(shape) for name, shape in shapes.items()}
        stored = sum(_BYTES.get(entry["dtype"], 2) * sizes[name] for name, entry in headers) / max(1, sum(sizes.values()))
        written = _written(folder)
        table = next((shapes[name] for name in shapes if _EMBEDDING.search(name)), None)
        if table is None and written:
            return cls._by_config(written, stored)
        table = table or [0, 0]
        in_layers = {name: size for name, size in sizes.items() if _LAYER.search(name) and not _VISION.search(name)}
        numbers = {int(match[1]) for name in in_layers if (match := _LAYER.search(name))}
        layers = len(numbers) or _first(written, 1, "num_hidden_layers", "n_layer", "num_layers")
        widths = _Widths.of(written, table[-1])
        head = next((sizes[name] for name in sizes if _HEAD.search(name)), 0)
        experts, taken = _first(written, 0, "num_experts", "num_local_experts", "n_routed_experts"), widths.experts_taken
        routed = sum(size for name, size in in_layers.items() if _EXPERT.search(name) and "shared" not in name)
        layer = sum(in_layers.values()) // layers
        normed = [name for name in in_layers if _NORM.search(name) and shapes[name] == [widths.hidden]]
        return cls(
            parameters=sum(sizes.values()),
            layers=layers,
            layer=layer,
            active=layer - (round(routed * (1 - taken / experts)) // layers if experts else 0),
            embedding=prod(table),
            head=head or prod(table),
            tied=not head,
            hidden=widths.hidden,
            feed_forward=widths.feed_forward,
            query=widths.query,
            key=widths.key,
            vocabulary=_first(written, table[0], "vocab_size"),
            stored=stored,
            norms=round(len(normed) / layers) or 2,
            head_norms=any("q_norm." in name for name in in_layers),
        )

    @classmethod
    def _by_config(cls, written: Mapping[str, Any], stored: float) -> ModelShape:
        """The shape of a Llama-like model whose weights are elsewhere, as those of an adapter's base are."""
        widths = _Widths.of(written, 1)
        layers, vocabulary = _first(written, 1, "num_hidden_layers", "n_layer", "num_layers"), _first(written, 0, "vocab_size")
        hidden, embedding, tied = widths.hidden, vocabulary * widths.hidden, bool(written.get("tie_word_embeddings"))
        layer = 2 * hidden * (widths.query + widths.key) + 3 * hidden * widths.feed_forward + 2 * hidden
        return cls(
            parameters=layers * layer + hidden + embedding * (1 if tied else 2),
            layers=layers,
            layer=layer,
            active=layer,
            embedding=embedding,
            head=embedding,
            tied=tied,
            hidden=hidden,
            feed_forward=widths.feed_forward,
            query=widths.query,
            key=widths.key,
            vocabulary=vocabulary,
            stored=stored,
        )


@dataclass(frozen=True, slots=True)
class _Widths:
    """What config.json says of a layer's widths, as in ``ModelShape``."""

    hidden: int
    feed_forward: int
    query: int
    key: int
    experts_taken: int

    @classmethod
    def of(cls, written: Mapping[str, Any], hidden: int) -> _Widths:
        """
        Args:
            hidden: where config.json does not say.
        """
        hidden = _first(written, hidden, "hidden_size", "n_embd", "d_model")
        heads = _first(written, 1, "num_attention_heads", "n_head")
        width = _first(written, hidden // max(1, heads), "head_dim")
        taken = _first(written, 1, "num_experts_per_tok", "moe_topk")
        inner = _first(written, 4 * hidden, "intermediate_size", "n_inner", "ffn_dim")
        if _first(written, 0, "num_experts", "num_local_experts", "n_routed_experts"):
            inner = taken * _first(written, inner, "moe_intermediate_size") + _first(written, 0, "shared_expert_intermediate_size")
        return cls(hidden, inner, heads * width, width * _first(written, heads, "num_key_value_heads"), taken)


def _written(folder: Path) -> Mapping[str, Any]:
    """What config.json says of the language model; nothing where it cannot be read: the run says why."""
    try:
        written = json.loads((folder / "config.json").read_bytes())
        text = written.get("text_config", written)
    except (OSError, ValueError, AttributeError):
        return {}
    return text if isinstance(text, dict) else {}


def _first(written: Mapping[str, Any], default: int, *names: str) -> int:
    """The first of some settings that is a number."""
    return next((int(written[name]) for name in names if isinstance(written.get(name), int)), default)
