"""Loading models and tokenizers, with the checks that later surprises come from."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.initialization import no_init_weights
from transformers.integrations import deepspeed

from safework_cli.core.artifacts.bases import base_folder
from safework_cli.core.artifacts.payload import weight_headers
from safework_cli.core.errors import ConfigError, InputError, SafeworkError
from safework_cli.core.heap import keep_freed_memory
from safework_cli.core.system_errors import is_out_of_memory
from safework_cli.models.adapters import Adapter, with_adapter, write_adapter
from safework_cli.models.folder import first_line, has_vision, processors_template, read_config, read_json, stored_dtype
from safework_cli.models.rendering import TEMPLATE_DATE, shows_date
from safework_cli.models.weights import listed, not_finite, refuse_not_finite, refuse_other_than_saved, refuse_unfit
from safework_cli.training.config import SaveDtype

_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_OF_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Place = Literal["device", "host", "empty"]
"""Where weights are read to: the device; the host's memory, from where a trainer divides them among processes; or nowhere, in those of the
processes that get their parts from another."""


def pick_device() -> torch.device:
    """The current GPU, which is that of this process where there are several (``training.group``); the CPU without one."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def pick_dtype(dtype: Dtype) -> torch.dtype:
    """ "auto" is bfloat16 where the hardware multiplies in it (CUDA, AVX512-BF16, AMX), float32 elsewhere."""
    if dtype != "auto":
        return getattr(torch, dtype)
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def saved_dtype(choice: SaveDtype, source: Path) -> torch.dtype:
    """The type to save a model in that was trained from the one in the folder ``source``."""
    return stored_dtype(source) if choice == "source" else getattr(torch, choice)


def cast_weights(model: Any, dtype: torch.dtype) -> Any:
    """Casts the weights, as saving and loading them would. ``Module.to`` rounds the rotary frequencies as well, which loading does not;
    nor does loading round what an architecture keeps in float32 (the router of some mixtures of experts)."""
    whole = [re.escape(name).replace(r"\*", ".*") for name in getattr(model, "_get_dtype_plan", lambda _: ())(dtype)]
    kept = re.compile("|".join(whole)) if whole else None
    for name, weight in model.named_parameters():
        weight.data = weight.data.to(torch.float32 if kept and kept.search(name) else dtype)
    return model


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Loads a tokenizer that has a chat template and a stop token; pads with the stop token where it has no padding token.

    Raises:
        InputError: the folder has no tokenizer or a damaged one, no chat template, no end-of-sequence token, or more tokens than the
            model has embeddings for.
    """
    folder = Path(folder)
    config = read_config(folder, trust_remote_code=trust_remote_code)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except SafeworkError:
        raise
    except Exception as error:
        raise InputError(
            f"no tokenizer can be loaded from {folder}",
            first_line(error),
            "is this a Hugging Face model folder, with tokenizer.json and tokenizer_config.json?",
        ) from error
    if has_vision(config):  # a model has one template: its processor's, where the tokenizer has another one for text
        tokenizer.chat_template = processors_template(folder) or tokenizer.chat_template
    if not tokenizer.chat_template:
        raise InputError(
            f"the model in {folder} has no chat template",
            "every stage writes prompts with the model's template; a guessed one would train and judge a different model",
            "take the instruct variant, or save a chat_template.jinja next to tokenizer_config.json",
        )
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"the tokenizer in {folder} has no eos_token",
            "without it no reply can end",
            "set eos_token in tokenizer_config.json",
        )
    if not isinstance(tokenizer.model_max_length, (int, float)):
        what = f"model_max_length in {folder / 'tokenizer_config.json'} is {tokenizer.model_max_length!r}"
        raise InputError(what, "it is a number of tokens", "correct the file")
    rows, last = getattr(config.get_text_config(), "vocab_size", None), max(tokenizer.get_vocab().values(), default=0)
    if isinstance(rows, int) and last >= rows:
        raise InputError(
            f"the tokenizer in {folder} has tokens that the model has no embedding for",
            f"its last token is {last}, and the model has {rows} embeddings (vocab_size): such a token cannot be looked up",
            "model.resize_token_embeddings(len(tokenizer)), and save both; or take the tokenizer that belongs to the model",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # harmless: every mask is made from lengths, never from token ids
    return tokenizer


def load_model(
    folder: Path,
    *,
    dtype: Dtype = "auto",
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    place: Place = "device",
) -> PreTrainedModel:
    """Loads a causal language model, with or without a vision tower, from safetensors, in eval mode. On a GPU each tensor goes there as it
    is read: the host never holds the model. Of an adapter: its base with the adapter added, as the merged model would be loaded.

    Args:
        attn_implementation: transformers' name of it; its own choice where None.
        place: with "empty" the model has memory for its weights that nothing has been written to, and that takes none until then.

    Raises:
        ConfigError: the implementation of attention is not installed, or the architecture does not support it.
        InputError: damaged files, weights that do not fit the configuration or are not finite, quantised weights, an architecture
            that transformers does not know, or an adapter without its base.
    """
    folder = Path(folder)
    if (base := base_folder(folder)) is not None:
        whole = partial(load_model, base, trust_remote_code=trust_remote_code, attn_implementation=attn_implementation, place=place)
        return whole(dtype=dtype) if place == "empty" else _load_adapted(whole, base, folder, pick_dtype(dtype))
    config = read_config(folder, trust_remote_code=trust_remote_code)
    weight_headers(folder)
    settings = read_generation_config(folder)
    kind = AutoModelForImageTextToText if has_vision(config) else AutoModelForCausalLM
    device = pick_device() if place == "device" else torch.device("cpu")
    options: dict[str, Any] = {"dtype": pick_dtype(dtype), "trust_remote_code": trust_remote_code}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    info: dict[str, Any] | None = None
    model: Any
    try:
        if place == "empty":
            with no_init_weights():
                model = kind.from_config(config, **options)
            model.tie_weights()
            model.generation_config = settings or model.generation_config
        else:
            with _whole_weights():
                loaded: Any = kind.from_pretrained(
                    str(folder),
                    use_safetensors=True,
                    generation_config=settings,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # they are refused below, by name
                    device_map=None if device.type == "cpu" else {"": device},
                    **options,
                )
                model, info = loaded
    except SafeworkError:
        raise
    except Exception as error:  # whatever a library makes of a folder that somebody else filled
        if is_out_of_memory(error):
            raise
        if attn_implementation is not None and _is_of_attention(error):
            raise ConfigError(
                f"attn_implementation={attn_implementation} cannot be used with the model in {folder}",
                first_line(error),
                "install what it needs, or leave attn_implementation out",
            ) from error
        raise InputError(
            f"no causal language model can be loaded from {folder}", first_line(error), "compare its files with the original model's"
        ) from error
    if info is not None:
        refuse_unfit(folder, info)
    if getattr(model, "is_quantized", False):
        raise InputError(
            f"the weights in {folder} are quantised", "quantised weights cannot be trained or saved", "take the unquantised model"
        )
    text = model.config.get_text_config()
    if getattr(text, "output_router_logits", False):  # in every pass they break generation; trainers turn them on themselves
        text.output_router_logits = False
    for name in model.config._get_generation_parameters():  # where earlier releases kept them; config.json cannot be saved with them
        setattr(model.config, name, None)
    vars(model).pop("hf_device_map", None)  # a trainer would take a model on one device for one that is spread over several
    if device.type == "cpu":
        keep_freed_memory()
    if place != "empty":
        refuse_not_finite(folder, model)
    return model.eval()


def _is_of_attention(error: Exception) -> bool:
    """Whether transformers refused the implementation of attention, and not the folder."""
    return isinstance(error, ImportError) or "attention" in str(error).lower() or "attn_implementation" in str(error)


def _load_adapted(whole: Callable[..., PreTrainedModel], base: Path, folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Base and adapter, rounded to the type that the merged model would be saved in, then cast.

    Args:
        whole: loads the base in a type.
    """
    stored, saved = stored_dtype(base), stored_dtype(folder)
    exact = str(stored if stored == saved else torch.float32).removeprefix("torch.")
    model = with_adapter(whole(dtype=exact), folder)
    if settings := read_generation_config(folder):
        model.generation_config = settings
    cast_weights(cast_weights(model, saved), dtype)
    refuse_not_finite(folder, model)
    return model.eval()


@contextmanager
def _whole_weights() -> Iterator[None]:
    """Once a trainer has ZeRO-3, from_pretrained divides whatever it loads among the processes: judges, and what one of them loads, too."""
    active = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = active


def read_generation_config(folder: Path) -> GenerationConfig | None:
    """A model's generation configuration as it can be saved again, or None where the folder has none.

    transformers refuses to save an invalid one, after all the training. Settings that do not act (a temperature without ``do_sample``)
    are taken out, with a warning; where that does not make it valid, all but the special tokens are.

    Raises:
        InputError: the file is damaged, or a special token in it is not a number.
    """
    file = folder / "generation_config.json"
    if not file.exists():
        return None
    given = read_json(file)
    tokens = {name: given[name] for name in _TOKENS if given.get(name) is not None}
    for name, value in tokens.items():
        if not all(type(token) is int and token >= 0 for token in (value if isinstance(value, list) else [value])):
            raise InputError(f"{name} in {file} is {value!r}", "it must be the number of a token", "correct the file")
    shorter = {key: value for key, value in given.items() if key not in _OF_SAMPLING}
    why = ""
    for settings in (given, tokens) if given.get("do_sample") else (given, shorter, tokens):
        try:
            generation = GenerationConfig.from_dict(settings)
            generation.validate(strict=True)
        except (ValueError, TypeError) as error:
            why = why or first_line(error)
            continue
        if why:
            warnings.warn(f"{file} is invalid and was repaired for this run: {why}", stacklevel=3)
        return generation
    raise InputError(f"{file} cannot be used", why, "correct the file")


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of the chat template, and of the date that it prints: part of a model's identity, compared between training and evaluation."""
    template = tokenizer.chat_template
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    if shows_date(tokenizer):
        text += f"\n{TEMPLATE_DATE}"
    return hashlib.sha256(text.encode()).hexdigest()


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, settings: PreTrainedModel | GenerationConfig | None = None) -> list[int]:
    """The tokens that end a turn: the tokenizer's eos and those of the model's generation config."""
    stops = {tokenizer.eos_token_id}
    configured = getattr(getattr(settings, "generation_config", settings), "eos_token_id", None)
    if configured is not None:
        stops.update(configured if isinstance(configured, list) else [configured])
    return sorted(stops)


def template_of(folder: Path, *, trust_remote_code: bool = False) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """A model's tokenizer and the tokens that end its turns, without its weights."""
    settings = read_generation_config(folder)
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    return tokenizer, stop_token_ids(tokenizer, settings)


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    adapter: Adapter | None = None,
) -> None:
    """Writes a Hugging Face folder with safetensors and checks it by reopening the headers.

    Args:
        tokenizer: or the processor, for a vision-language model.
        dtype: that the weights are cast to, in memory too: what is sampled or measured afterwards is the model as it is saved.
        adapter: that the weights hold, merged: it is written in their place, and the folder is one of a store's later.

    Raises:
        SafeworkError: the weights are not finite, or what was saved is less than what the model holds.
    """
    if dtype is not None:
        cast_weights(model, dtype)
    if bad := not_finite(model):
        raise SafeworkError(
            f"{len(bad)} tensors to save hold NaN or infinite numbers: {listed(bad)}",
            f"training diverged, or they are too large for {str(model.dtype).removeprefix('torch.')}",
            "lower learning_rate; or save_dtype=float32",
        )
    if adapter is not None:
        write_adapter(adapter, model, folder)
        tokenizer.save_pretrained(str(folder))
        return
    model.save_pretrained(str(folder), safe_serialization=True)
    tokenizer.save_pretrained(str(folder))
    refuse_other_than_saved(model, folder)
