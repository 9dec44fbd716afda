"""The only place where an engine is made: from settings, or around a model that is being trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safework_cli.core.errors import ConfigError
from safework_cli.engines.protocol import Engine, TokenEngine
from safework_cli.engines.settings import EngineSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def load_engine(
    settings: EngineSettings,
    folder: Path | None,
    *,
    batch_size: int = 32,
    dtype: Dtype = "auto",
    trust_remote_code: bool = False,
    images: bool = False,
) -> Engine:
    """The engine that the settings describe. Imports torch only if the model is loaded here.

    Args:
        folder: of the input `model`; None if the model is served.
        batch_size: sequences generated together by a model that is loaded here.
        dtype: of its weights; "auto" is the fast one of this machine.
        images: conversations may have images: a model that is loaded here needs its processor.

    Raises:
        ConfigError: no model is given, or the variable that ``api_key_env`` names is not set.
        InputError: the folder does not hold a usable model.
    """
    if endpoint := settings.endpoint:
        from safework_cli.engines.openai import OpenAIEngine

        return OpenAIEngine(endpoint)
    if folder is None:
        raise ConfigError("engine.kind=hf needs a model", "", "model=REF, or engine.kind=openai engine.url=… engine.model=…")
    return load_token_engine(settings, folder, batch_size=batch_size, dtype=dtype, trust_remote_code=trust_remote_code, images=images)


def load_token_engine(
    settings: EngineSettings,
    folder: Path,
    *,
    batch_size: int = 32,
    dtype: Dtype = "auto",
    trust_remote_code: bool = False,
    images: bool = False,
) -> TokenEngine:
    """The engine of a stage with ``engine_protocol = "tokens"``: arguments and errors as ``load_engine``.

    Raises:
        ConfigError: this kind of engine offers no token ids; the plan has refused it before.
    """
    if settings.protocol != "tokens":
        raise ConfigError(f"engine.kind={settings.kind} gives no token ids or log-probabilities", "", "engine.kind=hf model=REF")
    if settings.kind == "vllm":
        from safework_cli.engines.vllm.engine import load_vllm

        return load_vllm(folder, settings.vllm, dtype=dtype, trust_remote_code=trust_remote_code, images=images)
    from safework_cli.models.load import load_model, load_tokenizer
    from safework_cli.models.processors import load_processor

    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    processor = load_processor(folder, trust_remote_code=trust_remote_code) if images else None
    attention = settings.attn_implementation
    model = load_model(folder, dtype=dtype, trust_remote_code=trust_remote_code, attn_implementation=attention)
    return engine_over(model, tokenizer, batch_size, processor=processor)


def engine_over(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int = 32,
    *,
    share_prompts: bool = True,
    bf16: bool = False,
    processor: Any = None,
) -> TokenEngine:
    """An engine around a model in memory, such as one that is being trained: its mode is restored after each call.

    Args:
        batch_size, share_prompts, bf16, processor: see ``HFEngine``.
    """
    from safework_cli.engines.hf.engine import HFEngine

    return HFEngine(model, tokenizer, batch_size, share_prompts=share_prompts, bf16=bf16, processor=processor)
