"""Models behind an OpenAI-compatible endpoint: vLLM's server, TGI, SGLang, llama.cpp, or a provider. Imports no torch.

The `openai` package speaks the protocol and retries what is worth it (timeouts, 429 with its Retry-After, 5xx). Weighed: huggingface_hub's
InferenceClient, which falls back to the hub's own token and so could send it to somebody's server, and does not retry; and litellm, which
brings a hundred providers. Token ids stay on the server: completions have none, and ``score`` is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from safework_cli.errors import ConfigError, InputError
from safework_cli.lm.engine import Completion, Conversation, Sampling
from safework_cli.stage import Settings

PARSE_ATTEMPTS = 2
"""A reply that is not whole JSON is asked for once more: proxies cut bodies, and the client itself retries transport faults alone."""


class EndpointSettings(Settings):
    """Where a model is served."""

    url: str
    """Base URL of the API, such as `http://127.0.0.1:8000/v1`."""
    model: str
    """The model's name there."""
    api_key_env: str = ""
    """Name of the environment variable that holds the key (never the key itself); empty where the endpoint wants none."""
    timeout_s: float = Field(120.0, gt=0)
    """Seconds for one request."""
    max_retries: int = Field(5, ge=0)
    """Further attempts after timeouts, 429 and 5xx, with growing pauses."""
    concurrency: int = Field(8, ge=1)
    """Requests under way at once."""

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


@dataclass(frozen=True, slots=True)
class Said:
    """One answer of an endpoint, or why there is none.

    Attributes:
        text: the answer; empty where ``error`` says why.
        finish_reason: "stop" or "length".
        tokens: how many were generated, as the server counts; 0 where it does not say.
        first: token → log-probability of the most likely first tokens, where they were asked for and told.
    """

    text: str
    finish_reason: str = "stop"
    tokens: int = 0
    first: dict[str, float] = field(default_factory=dict)
    error: str | None = None


class Endpoint:
    """Asks a served model.

    Raises:
        ConfigError: ``api_key_env`` names a variable that is not set.
    """

    def __init__(self, settings: EndpointSettings):
        from openai import OpenAI

        key = "none"  # the client insists on one
        if settings.api_key_env:
            key = os.environ.get(settings.api_key_env, "")
            if not key:
                what = f"the environment variable {settings.api_key_env} is not set"
                raise ConfigError(what, f"it is to hold the key of {settings.url}", f"export {settings.api_key_env}=…")
        self.settings = settings
        self._client = OpenAI(
            base_url=settings.url,
            api_key=key,
            organization="",
            project="",  # what stands in OPENAI_* variables belongs to other servers
            timeout=settings.timeout_s,
            max_retries=settings.max_retries,
        )

    def ask(self, conversations: Sequence[Conversation], sampling: Sampling, n: int = 1, top: int = 0) -> Iterator[list[Said]]:
        """n answers for each conversation, in order, as they arrive.

        Args:
            top: how many of the likeliest first tokens to ask for.

        Raises:
            InputError: the server refuses the key or knows no such model: nothing would come of asking on.
        """
        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            futures = [pool.submit(self._one, c, sampling, n, top, number) for number, c in enumerate(conversations)]
            try:
                for future in futures:
                    yield future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True, wait=False)
                raise

    def _one(self, conversation: Conversation, sampling: Sampling, n: int, top: int, number: int) -> list[Said]:
        import openai

        request: dict[str, Any] = {
            "model": self.settings.model,
            "messages": [{"role": m["role"], "content": m["content"]} for m in conversation],
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "n": n,
            "seed": sampling.seed + number,
        }
        if sampling.stop:
            request["stop"] = list(sampling.stop)
        if top:
            request |= {"logprobs": True, "top_logprobs": top}
        why = ""
        for _ in range(PARSE_ATTEMPTS):
            try:
                return _answers(self._client.chat.completions.create(**request), n)
            except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
                raise InputError(
                    f"{self.settings.url} refuses to serve '{self.settings.model}' (HTTP {error.status_code})",
                    _reason(error),
                    "check url, model and the key in api_key_env",
                ) from None
            except openai.APIConnectionError as error:  # timeouts as well; the client has retried
                return [Said("", error=f"no answer from {self.settings.url}: {_reason(error)}")] * n
            except openai.APIStatusError as error:
                return [Said("", error=f"HTTP {error.status_code}: {_reason(error)}")] * n
            except (openai.OpenAIError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
                why = f"the answer could not be read: {_reason(error)}"
        return [Said("", error=why)] * n


def _answers(response: Any, n: int) -> list[Said]:
    """The choices of a response. Raises ValueError where there are not n of them, or they are no text."""
    choices = response.choices
    if len(choices) != n:
        raise ValueError(f"{len(choices)} choices came for the {n} asked for")
    found: list[Said | None] = [None] * n
    for choice in choices:
        place = choice.index
        if not isinstance(place, int) or not 0 <= place < n or found[place] is not None:
            raise ValueError(f"a choice has the index {place!r}")
        found[place] = _said(choice, response)
    return [said for said in found if said is not None]


def _said(choice: Any, response: Any) -> Said:
    text = choice.message.content
    if choice.finish_reason not in ("stop", "length"):
        return Said("", error=f"the server stopped for '{choice.finish_reason}'")
    if not isinstance(text, str):
        return Said("", error="the answer holds no text")
    first: dict[str, float] = {}
    told = getattr(choice.logprobs, "content", None) if choice.logprobs else None
    if told:
        first = {entry.token: float(entry.logprob) for entry in (told[0].top_logprobs or [told[0]])}
    usage = getattr(response, "usage", None)
    tokens = usage.completion_tokens if usage and len(response.choices) == 1 else 0
    return Said(text, choice.finish_reason, tokens or 0, first)


def _reason(error: BaseException) -> str:
    """The first line of a fault, without what may be a key."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return re.sub(r"\b(?:sk|hf|Bearer)[-_ ][\w-]{6,}", "…", line)


class EndpointEngine:
    """An ``Engine`` over an endpoint: text alone. A conversation that ends in an assistant message is sent as it stands; whether the server
    goes on inside it is the server's affair."""

    def __init__(self, settings: EndpointSettings):
        self.endpoint = Endpoint(settings)

    def generate(self, conversations: Sequence[Conversation], sampling: Sampling, n: int = 1) -> list[list[Completion]]:
        """See ``Engine.generate``; without token ids. Raises InputError where an answer could not be had."""
        return [[_completion(said) for said in answers] for answers in self.endpoint.ask(conversations, sampling, n)]

    def score(self, conversations: Sequence[Conversation], completions: Sequence[Sequence[int]]) -> list[list[float]]:
        raise ConfigError("an endpoint tells no log-probability of a given text", "", "use a model of your own for this")


def _completion(said: Said) -> Completion:
    if said.error:
        raise InputError("the endpoint gave no answer", said.error, "run the same command again")
    return Completion(said.text, [], [], "length" if said.finish_reason == "length" else "stop")
