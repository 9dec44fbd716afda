"""The shape of a model, from its config.json and the headers of its weights: no weight is read."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from safework_cli.core.artifacts.adapters import read_base
from safework_cli.core.artifacts.bases import base_folder
from safework_cli.core.artifacts.payload import has_weights, weight_headers
from safework_cli.core.plan.config_shape import Tower, Widths, config_of, first, language_of

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
            InputError: it has neither safetensors nor a configuration that says how large the model is, or damaged weights.
        """
        adapter = read_base(folder)
        if adapter is not None and (base := base_folder(folder)) is not None:
            return replace(cls.of(base), stored=4.0 if adapter.dtype == "float32" else 2.0)
        if not has_weights(folder) and (by_config := cls._by_config(folder)):
            return by_config
        headers = [entry for header in weight_headers(folder).values() for entry in header.items()]
        shapes = {name: entry["shape"] for name, entry in headers}
        sizes = {name: prod(shape) for name, shape in shapes.items()}
        stored = sum(_BYTES.get(entry["dtype"], 2) * sizes[name] for name, entry in headers) / max(1, sum(sizes.values()))
        written = language_of(config_of(folder))
        table = next((shapes[name] for name in shapes if _EMBEDDING.search(name)), None)
        if table is None and (by_config := cls._by_config(folder, stored)):
            return by_config
        table = table or [0, 0]
        in_layers = {name: size for name, size in sizes.items() if _LAYER.search(name) and not _VISION.search(name)}
        numbers = {int(match[1]) for name in in_layers if (match := _LAYER.search(name))}
        layers = len(numbers) or first(written, 1, "num_hidden_layers", "n_layer", "num_layers")
        widths = Widths.of(written, table[-1])
        head = next((sizes[name] for name in sizes if _HEAD.search(name)), 0)
        experts, taken = widths.experts, widths.experts_taken
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
            vocabulary=first(written, table[0], "vocab_size"),
            stored=stored,
            norms=round(len(normed) / layers) or 2,
            head_norms=any("q_norm." in name for name in in_layers),
        )

    @classmethod
    def _by_config(cls, folder: Path, stored: float | None = None) -> ModelShape | None:
        """The shape of a model whose weights are elsewhere, as those of an adapter's base are: of a Llama-like decoder, and about that of
        its vision tower. None where its configuration does not say how large it is."""
        whole = config_of(folder)
        written = language_of(whole)
        widths, layers = Widths.of(written, 1), first(written, 0, "num_hidden_layers", "n_layer", "num_layers")
        hidden, vocabulary = widths.hidden, first(written, 0, "vocab_size")
        tower = Tower.of(whole, hidden)
        if not (layers and vocabulary):
            return None
        embedding, tied = vocabulary * hidden, bool(written.get("tie_word_embeddings", whole.get("tie_word_embeddings")))
        dtype = str(whole.get("torch_dtype") or whole.get("dtype") or written.get("torch_dtype") or written.get("dtype"))
        return cls(
            parameters=layers * widths.layer + hidden + embedding * (1 if tied else 2) + (tower.numbers if tower else 0),
            layers=layers,
            layer=widths.layer,
            active=widths.active,
            embedding=embedding,
            head=embedding,
            tied=tied,
            hidden=hidden,
            feed_forward=widths.feed_forward,
            query=widths.query,
            key=widths.key,
            vocabulary=vocabulary,
            stored=stored or (4.0 if dtype == "float32" else 2.0),
        )
