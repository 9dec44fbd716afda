"""The settings of an engine: what writes the replies of a stage. Imports no torch."""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from safework_cli.core.settings import Attention, Settings, StageConfig, cosmetic
from safework_cli.core.stage import EngineProtocol


def plain_url(value: str) -> str:
    """The URL as it is. Raises ValueError if it is not one of a server, or could hold a key."""
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("url must begin with http:// or https://")
    if parts.username or parts.password or parts.query:
        raise ValueError("url must hold no key: name the variable that holds it in api_key_env")
    return value


def variable_name(value: str) -> str:
    """The name as it is. Raises ValueError if it is not the name of an environment variable."""
    if value and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ValueError("api_key_env is the name of a variable, not a key")
    return value


class EndpointSettings(Settings):
    """Where a model is served by an OpenAI-compatible server."""

    url: str
    """Base URL of the API, such as `http://127.0.0.1:8000/v1`."""
    model: str
    """The model's name there."""
    api_key_env: str = ""
    """Name of the environment variable that holds the key (never the key itself); empty if the server needs none."""
    # timeout_s and max_retries are part of a result's identity: they decide which requests fail, and a result with failed requests is
    # made again under larger values instead of being printed as "already done"
    timeout_s: float = Field(120.0, gt=0, le=86_400)
    """Seconds for one attempt at a request, until the last byte of its answer."""
    max_retries: int = Field(5, ge=0, le=1000)
    """Further attempts after timeouts, 429 and 5xx, with growing pauses."""
    concurrency: int = cosmetic(8, ge=1, le=4096)
    """Requests sent at the same time; seeds do not depend on it."""

    _plain = field_validator("url")(lambda value: plain_url(value))
    _name = field_validator("api_key_env")(lambda value: variable_name(value))


class VllmSettings(Settings):
    """How vLLM runs in this process; names are vLLM's own."""

    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """Share of each GPU's memory that weights and cache may take (on a CPU, of the machine's: 0.2 is plenty). In training lower, since
    the trainer needs the rest."""
    tensor_parallel_size: int = Field(1, ge=1, le=1024)
    """GPUs that share each layer."""
    max_model_len: int | None = Field(None, ge=16, le=10**8)
    """Tokens of prompt and reply together at most; what the model allows where null."""
    max_num_seqs: int | None = Field(None, ge=1, le=10**6)
    """Replies that are sampled at the same time at most; vLLM's own choice where null."""
    max_num_batched_tokens: int | None = Field(None, ge=16, le=10**8)
    """Tokens of one pass at most; vLLM's own choice where null."""
    enforce_eager: bool = False
    """No CUDA graphs: starts faster, generates slower."""


class ServerSettings(Settings):
    """A vLLM server that samples for a trainer and takes its weights over. Nothing here changes what is computed."""

    url: str = cosmetic()
    """Where it is, such as `http://127.0.0.1:8000`."""
    api_key_env: str = cosmetic("")
    """Name of the environment variable that holds the server's key (never the key itself); empty if it needs none."""
    transfer: Literal["folder", "nccl"] = cosmetic("folder")
    """How weights reach it. folder: by files in `folder` (any device). nccl: from GPU to GPU (CUDA on both sides, vLLM installed here,
    too)."""
    folder: str = cosmetic("")
    """Folder that both the trainer and the server see, for `transfer: folder`; the run's own folder where empty."""
    group_port: int = cosmetic(51216, ge=1, le=65_535)
    """Port of this machine at which the two meet, for `transfer: nccl`."""
    start_timeout_s: float = cosmetic(300.0, ge=0, le=86_400)
    """Seconds to wait for a server that does not answer yet when the run begins."""
    timeout_s: float = cosmetic(600.0, gt=0, le=86_400)
    """Seconds for one reply, or for one update of the weights; then the server counts as hanging, and the run ends resumable."""
    concurrency: int = cosmetic(256, ge=1, le=4096)
    """Replies that are asked for at the same time."""
    log: str = cosmetic("")
    """File that the server's output goes to: its last lines are shown when the server fails."""

    _plain = field_validator("url")(lambda value: plain_url(value))
    _name = field_validator("api_key_env")(lambda value: variable_name(value))


class EngineSettings(EndpointSettings):
    """Which engine writes the replies. The other keys belong to `kind: openai`."""

    kind: Literal["hf", "vllm", "openai"] = "hf"
    """hf: the input `model`, loaded here with transformers; vllm: the same with vLLM; openai: a model on an OpenAI-compatible server (vLLM,
    SGLang, llama.cpp, a provider), in place of the input `model`."""
    url: str = ""
    """Base URL of the server's API, such as `http://127.0.0.1:8000/v1`."""
    model: str = ""
    """The model's name on the server."""
    attn_implementation: Attention | None = None
    """kind hf: implementation of attention, by transformers' names; its own choice where null."""
    vllm: VllmSettings = VllmSettings()
    """Settings of `kind: vllm`."""

    @model_validator(mode="after")
    def _complete(self) -> EngineSettings:
        if self.kind == "openai" and not (self.url and self.model):
            raise ValueError("kind openai needs url and model: engine.kind=openai engine.url=http://HOST:PORT/v1 engine.model=NAME")
        if self.kind != "vllm" and "vllm" in self.model_fields_set and self.vllm.model_fields_set:
            raise ValueError(f"engine.vllm is given with engine.kind={self.kind}: add engine.kind=vllm, or leave it out")
        if self.kind != "hf" and self.attn_implementation:
            raise ValueError(f"engine.attn_implementation is given with engine.kind={self.kind}, which chooses by itself: leave it out")
        if self.kind != "openai" and (given := sorted(self.model_fields_set & set(EndpointSettings.model_fields))):
            raise ValueError(f"{given[0]} belongs to a served model: add engine.kind=openai, or leave out engine.{given[0]}")
        return self

    @property
    def protocol(self) -> EngineProtocol:
        """What this kind of engine can do: see ``engines.protocol``."""
        return "generate" if self.kind == "openai" else "tokens"

    @property
    def endpoint(self) -> EndpointSettings | None:
        """Where the model is served; None if it is loaded here."""
        return None if self.kind != "openai" else EndpointSettings(**self.model_dump(include=set(EndpointSettings.model_fields)))


class WithEngine(StageConfig):
    """Base of the settings of stages that have replies written."""

    engine: EngineSettings = Field(default_factory=EngineSettings)
    """What writes the replies: `{kind: hf}` is the input `model`; `{kind: openai, url: …, model: …}` is a model on a server."""
