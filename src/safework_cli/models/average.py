"""A weighted mean of the weights of several models, as a model of its own.

Between a model and the one that it was trained from, the mean trades what training added for what it lost (M. Wortsman et al. 2022,
arXiv 2109.01903 and 2203.05482). No model is loaded: the tensors are read, averaged and written shard by shard.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, field_validator

from safework_cli.core.artifacts.adapters import is_adapter
from safework_cli.core.artifacts.payload import weight_headers
from safework_cli.core.errors import ConfigError, InputError
from safework_cli.core.settings import StageConfig
from safework_cli.core.stage import Inputs, Outcome, Plan, Slot, Stage, WorkDir

if TYPE_CHECKING:
    import torch

    from safework_cli.core.artifacts import Artifact

SHARD_SIZE = "2GB"
"""Of the files that are written: the most that is held in memory, with one tensor of a source."""
SUM_TOLERANCE = 1e-6
FREE_SETTINGS = frozenset(
    {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id"}
)
"""Keys of config.json in which models of one architecture may differ. Special tokens are compared in the tokenizers."""
COPIED_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.py", "LICENSE*")
"""What is copied from the first model next to its weights."""


class AverageConfig(StageConfig):
    """Settings of ``safework models average``."""

    weights: list[Annotated[float, Field(gt=0, lt=1)]]
    """The weight of each model, in the order of the models; their sum is 1."""
    trust_remote_code: bool = False
    """Run Python code that the models' folders bring along."""

    @field_validator("weights")
    @classmethod
    def _sum_is_one(cls, value: list[float]) -> list[float]:
        if abs(math.fsum(value) - 1) > SUM_TOLERANCE:
            raise ValueError(f"the weights {' + '.join(f'{weight:g}' for weight in value)} sum to {math.fsum(value):g}, not to 1")
        return value


class AverageModels(Stage):
    """``safework models average``: models → model. Not an entry point: its command takes the models as words, like ``models pull``."""

    name = "models average"
    summary = "Average the weights of models of one architecture and tokenizer."
    Config = AverageConfig
    starts_over = True
    inputs: ClassVar[dict[str, Slot]] = {"models": Slot(("model",), "the models, by their number: models.1, models.2, …", many=True)}
    output = "model"

    def plan(self, config: AverageConfig, inputs: Inputs) -> Plan:
        models = ordered(inputs)
        plan = Plan(name=f"{models[0].name}-average")
        if len(models) != len(config.weights):
            plan.refuse(f"{len(models)} models and {len(config.weights)} weights", "each model has one weight")
            return plan
        same = [model.ref for model in models if [other.digest for other in models].count(model.digest) > 1]
        if same:
            plan.refuse(f"{' and '.join(same)} are the same model", "a model counts once", "give it once, with the sum of its weights")
        if adapters := [model.ref for model in models if is_adapter(model)]:
            plan.refuse(
                f"{' and '.join(adapters)} {'holds' if len(adapters) == 1 else 'hold'} an adapter",
                "the mean is of whole models' weights",
                f"safework models merge {adapters[0]}, then average what it makes",
                kind=InputError,
            )
            return plan
        plan.lines = [f"{weight:g} × {model.ref}" for model, weight in zip(models, config.weights, strict=True)]
        plan.disk_bytes = sum(entry.size for entry in models[0].manifest.files)
        return plan

    def run(self, config: AverageConfig, inputs: Inputs, work: WorkDir) -> Outcome:
        from safework_cli.models.card import write_average_card
        from safework_cli.models.load import load_tokenizer, template_hash

        models = ordered(inputs)
        refuse_different_architectures(models)
        with work.progress.phase("compare the tokenizers"):
            tokenizers = [load_tokenizer(model.path, trust_remote_code=config.trust_remote_code) for model in models]
            refuse_different_tokenizers(models, tokenizers)
        tied = tied_names(models[0].path, trust_remote_code=config.trust_remote_code)
        mixed = average_weights(models, config.weights, work, tied)
        for pattern in COPIED_FILES:
            for file in models[0].path.glob(pattern):
                if file.is_file() and file.name not in ("manifest.json", "model.safetensors.index.json"):
                    shutil.copy(file, work.output / file.name)
        write_average_card(work.output, models, config)
        return Outcome(
            metrics={"weights": {model.ref: weight for model, weight in zip(models, config.weights, strict=True)}},
            seeds={"weights": "no seed acts"},
            notes=[f"{mixed} tensors have different types in the models; they are saved in the type of {models[0].ref}"] * bool(mixed),
            chat_template_hash=template_hash(tokenizers[0]),
        )


def ordered(inputs: Inputs) -> list[Artifact]:
    """The models in the order in which they were given."""
    models = inputs.many("models")
    if unknown := [key for key in models if not re.fullmatch(r"[1-9]\d{0,3}", key)]:
        raise ConfigError(f"models.{unknown[0]} is not numbered", "the models are models.1, models.2, … in the order of the weights")
    return [models[key] for key in sorted(models, key=int)]


def weighted_references(words: Sequence[str]) -> tuple[list[str], list[float]]:
    """References and weights of ``MODEL[:weight]`` words; without any weight, all weights are equal.

    Raises:
        ConfigError: there are fewer than two words, some have a weight and some have none, or a weight is not a number.
    """
    if len(words) < 2:
        raise ConfigError("an average needs at least two models", "", "safework models average FIRST:0.5 SECOND:0.5")
    pairs = [_reference_and_weight(word) for word in words]
    without = [reference for reference, weight in pairs if weight is None]
    if not without:
        return [reference for reference, _ in pairs], [weight for _, weight in pairs if weight is not None]
    if len(without) < len(pairs):
        raise ConfigError(f"{without[0]} has no weight, and other models have one", "", "give every model a weight, or none of them")
    return without, [1 / len(pairs)] * len(pairs)


def _reference_and_weight(word: str) -> tuple[str, float | None]:
    reference, colon, text = word.rpartition(":")
    if not colon or (reference == "hf" and "/" in text):
        return word, None
    try:
        return reference, float(text)
    except ValueError:
        raise ConfigError(f"'{text}' in '{word}' is not a weight", "a weight is a number, and the weights sum to 1", "MODEL:0.3") from None


def refuse_different_architectures(models: Sequence[Artifact]) -> None:
    """Raises InputError where the configurations of the models describe different networks."""
    from safework_cli.models.folder import read_json

    first = read_json(models[0].path / "config.json")
    for model in models[1:]:
        other = read_json(model.path / "config.json")
        keys = sorted(key for key in (first.keys() | other.keys()) - FREE_SETTINGS if first.get(key) != other.get(key))
        if keys:
            shown = "; ".join(f"{key} is {first.get(key)!r} and {other.get(key)!r}"[:200] for key in keys[:3])
            raise InputError(
                f"{models[0].ref} and {model.ref} have different architectures",
                shown + (f"; and {len(keys) - 3} more" if len(keys) > 3 else ""),
                "average models that were trained from one model",
            )


def refuse_different_tokenizers(models: Sequence[Artifact], tokenizers: Sequence[Any]) -> None:
    """Raises InputError where two tokenizers split text differently, or write chats by different templates."""
    from safework_cli.models.load import template_hash

    first = tokenizers[0]
    for model, other in zip(models[1:], tokenizers[1:], strict=True):
        differs = ""
        if first.get_vocab() != other.get_vocab():
            differs = "different tokens"
        elif _algorithm(first) != _algorithm(other):
            differs = "different rules for splitting text"
        elif (first.eos_token_id, first.bos_token_id) != (other.eos_token_id, other.bos_token_id):
            differs = "different tokens for the start or the end of a text"
        elif template_hash(first) != template_hash(other):
            differs = "different chat templates"
        if differs:
            raise InputError(
                f"{models[0].ref} and {model.ref} have {differs}",
                "their weights belong to different inputs",
                "average models that were trained from one model with one template",
            )


def _algorithm(tokenizer: Any) -> str:
    """How a tokenizer splits text, without padding and truncation, which saving can leave in it."""
    import json

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return type(tokenizer).__name__
    state = json.loads(backend.to_str())
    return json.dumps({key: value for key, value in state.items() if key not in ("padding", "truncation")}, sort_keys=True)


def tied_names(folder: Path, *, trust_remote_code: bool = False) -> dict[str, str]:
    """Tensor → the one that it is tied to, by the architecture: a file may hold both, and they are one."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    from safework_cli.models.folder import has_vision, read_config

    config = read_config(folder, trust_remote_code=trust_remote_code)
    kind = AutoModelForImageTextToText if has_vision(config) else AutoModelForCausalLM
    with torch.device("meta"):
        model = kind.from_config(config, trust_remote_code=trust_remote_code)
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


def average_weights(models: Sequence[Artifact], weights: Sequence[float], work: WorkDir, tied: Mapping[str, str]) -> int:
    """Writes the mean of the models' tensors as safetensors into ``work.output``.

    Each tensor is computed in float32 and saved in the type that it has in the first model.

    Args:
        tied: tensors that are not written where the tensor that they are tied to is there.

    Returns:
        How many tensors do not have the same type in all models.

    Raises:
        InputError: tensors that only some of the models have, of different shapes, or with numbers that are not finite.
    """
    import json

    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    places = [_places(model.path, tied) for model in models]
    _refuse_different_tensors(models, places)
    meta = {name: _empty(name, place) for name, place in places[0].items()}
    shards = split_torch_state_dict_into_shards(meta, max_shard_size=SHARD_SIZE, filename_pattern="model{suffix}.safetensors")
    with work.progress.phase("average", len(meta)) as phase:
        for file, names in shards.filename_to_tensors.items():
            tensors = {}
            for name in names:
                work.stop.check()
                tensors[name] = _mean(name, models, places, weights)
                phase.advance(1)
            save_file(tensors, work.output / file, metadata={"format": "pt"})
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (work.output / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return sum(len({place[name][1]["dtype"] for place in places}) > 1 for name in meta)


Places = dict[str, tuple[Path, dict[str, Any]]]
"""Tensor → its file and its entry in the file's header."""


def _places(folder: Path, tied: Mapping[str, str]) -> Places:
    held = {name: (file, entry) for file, header in weight_headers(folder).items() for name, entry in header.items()}
    return {name: place for name, place in held.items() if tied.get(name) not in held}


def _refuse_different_tensors(models: Sequence[Artifact], places: Sequence[Places]) -> None:
    from safework_cli.models.weights import listed

    for model, other in zip(models[1:], places[1:], strict=True):
        if single := places[0].keys() ^ other.keys():
            raise InputError(
                f"{len(single)} tensors are in only one of {models[0].ref} and {model.ref}: {listed(single)}",
                "a mean needs each tensor of every model",
                "average models that were saved from one architecture",
            )
        if reshaped := [name for name, (_, entry) in places[0].items() if entry["shape"] != other[name][1]["shape"]]:
            shapes = places[0][reshaped[0]][1]["shape"], other[reshaped[0]][1]["shape"]
            raise InputError(
                f"{len(reshaped)} tensors of {models[0].ref} and {model.ref} have different shapes: {listed(reshaped)}",
                f"{reshaped[0]} is {shapes[0]} and {shapes[1]}",
                "average models that were trained from one model",
            )


def _empty(name: str, place: tuple[Path, dict[str, Any]]) -> torch.Tensor:
    """A tensor of the same type and shape without numbers, for sharing tensors among files."""
    import torch
    from safetensors import safe_open

    file, entry = place
    with safe_open(file, framework="pt") as opened:
        tensor = opened.get_slice(name)[:0] if entry["shape"] else opened.get_tensor(name)
    return torch.empty(entry["shape"], dtype=tensor.dtype, device="meta")


def _mean(name: str, models: Sequence[Artifact], places: Sequence[Places], weights: Sequence[float]) -> torch.Tensor:
    """The weighted mean of one tensor. Tensors of whole numbers (buffers) must be equal, and are copied."""
    import torch
    from safetensors import safe_open

    total: torch.Tensor | None = None
    first: torch.Tensor | None = None
    for model, place, weight in zip(models, places, weights, strict=True):
        with safe_open(place[name][0], framework="pt") as opened:
            tensor = opened.get_tensor(name)
        first = tensor if first is None else first
        if not tensor.is_floating_point():
            if not torch.equal(tensor, first):
                raise InputError(f"{name} differs between {models[0].ref} and {model.ref}", "it holds whole numbers, which have no mean")
            continue
        if not torch.isfinite(tensor).all():
            raise InputError(
                f"{name} of {model.ref} holds NaN or infinite numbers", "a mean with them has them too", "use an earlier checkpoint"
            )
        part = tensor.to(torch.float32) * weight
        total = part if total is None else total.add_(part)
    assert first is not None
    if total is None:
        return first
    mean = total.to(first.dtype)
    if not torch.isfinite(mean).all():
        raise InputError(
            f"the mean of {name} is too large for {str(first.dtype).removeprefix('torch.')}",
            f"{models[0].ref} has that type, and the mean is saved in it",
            "name a model with another type first",
        )
    return mean.contiguous()
