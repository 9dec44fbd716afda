"""The settings of an engine: what writes the replies of a stage. Imports no torch."""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from safework_cli.core.settings import Settings, StageConfig, cosmetic
from safework_cli.core.stage import EngineProtocol


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

    @field_validator("url")
    @classmethod
    def _plain(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("url must begin with http:// or https://")
        if parts.username or parts.password or parts.query:
            raise ValueError("url must hold no key: name the variable that holds it in api_key_env")
        return value

    @field_validator("api_key_env")
    @classmethod
    def _name(cls, value: str) -> str:
        if value and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
            raise ValueError("api_key_env is the name of a variable, not a key")
        return value


class VllmSettings(Settings):
    """How vLLM runs in this process; names are vLLM's own."""

    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """Share of each GPU's memory that weights and cache may take (on a CPU, of the machine's: 0.2 is plenty). In training lower, since
    the trainer needs the rest."""
    tensor_parallel_size: int = Field(1, ge=1, le=1024)
    """GPUs that share each layer."""
    max_model_len: int | None = Field(None, ge=16, le=10**8)
    """Tokens of prompt and reply together at most; what the model allows where null."""
    enforce_eager: bool = False
    """No CUDA graphs: starts faster, generates slower."""


class EngineSettings(EndpointSettings):
    """Which engine writes the replies. The other keys belong to `kind: openai`."""

    kind: Literal["hf", "vllm", "openai"] = "hf"
    """hf: the input `model`, loaded here with transformers; vllm: the same with vLLM; openai: a model on an OpenAI-compatible server (vLLM,
    SGLang, llama.cpp, a provider), in place of the input `model`."""
    url: str = ""
    """Base URL of the server's API, such as `http://127.0.0.1:8000/v1`."""
    model: str = ""
    """The model's name on the server."""
    vllm: VllmSettings = VllmSettings()
    """Settings of `kind: vllm`."""

    @model_validator(mode="after")
    def _complete(self) -> EngineSettings:
        if self.kind == "openai" and not (self.url and self.model):
            raise ValueError("kind openai needs url and model: engine.kind=openai engine.url=http://HOST:PORT/v1 engine.model=NAME")
        if self.kind != "vllm" and "vllm" in self.model_fields_set and self.vllm.model_fields_set:
            raise ValueError(f"engine.vllm is given with engine.kind={self.kind}: add engine.kind=vllm, or leave it out")
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
