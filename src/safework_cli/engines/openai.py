"""Models behind an OpenAI-compatible endpoint: vLLM's server, TGI, SGLang, llama.cpp, or a provider. Imports no torch.

The `openai` package speaks the protocol and retries what is worth it (timeouts, 429 with its Retry-After, 5xx). Weighed: huggingface_hub's
InferenceClient, which falls back to the hub's own token and so could send it to somebody's server, and does not retry; and litellm, which
brings a hundred providers. Token ids stay on the server: completions have none, and ``score`` is refused.
"""

from __future__ import annotations

import asyncio
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from safework_cli.core.errors import ConfigError, InputError
from safework_cli.core.settings import Settings
from safework_cli.data.reply import THINK_CLOSE, THINK_OPEN, make_reply
from safework_cli.engines.protocol import Completion, Conversation, Sampling

FEWER = (5, 0)
"""Likeliest tokens asked for, one after the other, of a server that gives no more."""
AGAIN = 1_000_003
"""Between the seeds of a first request and of the next one for the answers that are missing."""
PARSE_ATTEMPTS = 2
"""A reply that is not whole JSON is asked for once more: proxies cut bodies, and the client itself retries transport errors only."""
MAX_BODY = 32 * 2**20
"""Bytes of a response at most: a server must not be able to fill this machine's memory."""
_SURROGATE = re.compile("[\ud800-\udfff]")


class EndpointSettings(Settings):
    """Where a model is served."""

    url: str
    """Base URL of the API, such as `http://127.0.0.1:8000/v1`."""
    model: str
    """The model's name there."""
    api_key_env: str = ""
    """Name of the environment variable that holds the key (never the key itself); empty where the endpoint wants none."""
    timeout_s: float = Field(120.0, gt=0, le=86_400)
    """Seconds for one attempt at a request, its whole answer included."""
    max_retries: int = Field(5, ge=0, le=1000)
    """Further attempts after timeouts, 429 and 5xx, with growing pauses."""
    concurrency: int = Field(8, ge=1, le=4096)
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
        text: the message's content; empty where ``error`` says why.
        final: asking again would bring the same ``error``.
        thought: what a server with a reasoning parser returned beside it, as ``reasoning_content`` or ``reasoning``.
        finish_reason: "stop" or "length".
        tokens: how many were generated, as the server counts; 0 where it does not say.
        first: token → log-probability of the most likely first tokens, where they were asked for and told.
    """

    text: str
    finish_reason: str = "stop"
    tokens: int = 0
    first: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    thought: str = ""
    final: bool = False

    @property
    def reply(self) -> str:
        """The reply in the one format, ``<think>thought</think>answer``. A content that closes a thought without opening it comes from a
        template that opened it in the prompt (DeepSeek-R1-Distill without a reasoning parser)."""
        if self.thought:
            cut = not self.text.strip() and self.finish_reason == "length"
            return THINK_OPEN + self.thought if cut else make_reply(self.thought, self.text)
        before, closed, _ = self.text.partition(THINK_CLOSE)
        return THINK_OPEN + self.text if closed and THINK_OPEN not in before else self.text


class Endpoint:
    """Asks a served model.

    Raises:
        ConfigError: ``api_key_env`` names a variable that is not set.
    """

    def __init__(self, settings: EndpointSettings):
        key = "none"  # the client insists on one
        if settings.api_key_env:
            key = os.environ.get(settings.api_key_env, "")
            if not key:
                what = f"the environment variable {settings.api_key_env} is not set"
                raise ConfigError(what, f"it is to hold the key of {settings.url}", f"export {settings.api_key_env}=…")
        self.settings, self._key = settings, key
        self._top: int | None = None

    def ask(self, conversations: Sequence[Conversation], sampling: Sampling, n: int = 1, top: int = 0) -> Iterator[list[Said]]:
        """n answers for each conversation, in order, as they arrive.

        Args:
            top: how many of the likeliest first tokens to ask for.

        Raises:
            InputError: the server refuses the key or knows no such model: nothing would come of asking on.
        """
        with asyncio.Runner() as runner:  # on Ctrl-C it cancels what is under way, where threads would be waited for
            loop = runner.get_loop()
            client, room = self._client(), asyncio.Semaphore(self.settings.concurrency)

            async def one(number: int, conversation: Conversation) -> list[Said]:
                async with room:
                    return await self._several(client, conversation, sampling, n, top, number)

            tasks = [loop.create_task(one(number, conversation)) for number, conversation in enumerate(conversations)]
            try:
                for task in tasks:
                    yield loop.run_until_complete(task)
            finally:  # the others of a refused request are refused too: their errors are retrieved, not reported as lost by asyncio
                for task in tasks:
                    task.cancel()
                loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
                loop.run_until_complete(client.close())

    def _client(self) -> Any:
        import httpx2  # what openai is built on: it retries this one's timeouts
        import openai

        settings = self.settings

        class Bounded(openai.DefaultAsyncHttpxClient):
            """Bounds the whole answer in time (the client bounds the wait for each piece only) and in size, and follows no redirect:
            prompts go to the server that was named, and to no other."""

            async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
                try:
                    async with asyncio.timeout(settings.timeout_s):
                        response = await super().send(request, **options | {"stream": True, "follow_redirects": False})
                        try:
                            return await _bounded(response)
                        finally:
                            await response.aclose()
                except TimeoutError:
                    raise httpx2.ReadTimeout(f"no whole answer within {settings.timeout_s:g} s", request=request) from None

        return openai.AsyncOpenAI(
            base_url=settings.url,
            api_key=self._key,
            organization="",
            project="",  # what stands in OPENAI_* variables belongs to other servers
            timeout=settings.timeout_s,
            max_retries=settings.max_retries,
            http_client=Bounded(),
        )

    async def _several(self, client: Any, conversation: Conversation, sampling: Sampling, n: int, top: int, number: int) -> list[Said]:
        """n answers; a server that gives fewer choices than asked for is asked for the others."""
        found: list[Said] = []
        for attempt in range(n):
            found += await self._some(client, conversation, sampling, n - len(found), top, sampling.seed + number + attempt * AGAIN)
            if len(found) == n:
                break
        return found

    async def _some(self, client: Any, conversation: Conversation, sampling: Sampling, n: int, top: int, seed: int) -> list[Said]:
        """n answers at most, and at least one."""
        import openai

        request: dict[str, Any] = {
            "model": self.settings.model,
            "messages": [{"role": m["role"], "content": m["content"]} for m in conversation],
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "n": n,
            "seed": seed,
        }
        if sampling.stop:
            request["stop"] = list(sampling.stop)
        why = ""
        for _ in range(PARSE_ATTEMPTS):
            try:
                return _answers(await self._completed(client, request, top), n)
            except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
                raise InputError(
                    f"{self.settings.url} refuses to serve '{self.settings.model}' (HTTP {error.status_code})",
                    self._reason(error),
                    "check url, model and the key in api_key_env",
                ) from None
            except openai.APIConnectionError as error:  # timeouts as well; the client has retried
                return [Said("", error=f"no answer from {self.settings.url}: {self._reason(error)}")] * n
            except openai.APIStatusError as error:
                return [Said("", error=f"HTTP {error.status_code}: {self._reason(error)}")] * n
            except (openai.OpenAIError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
                why = f"the answer could not be read: {self._reason(error)}"
        return [Said("", error=why)] * n

    async def _completed(self, client: Any, request: dict[str, Any], top: int) -> Any:
        """The response. A server that gives fewer of the likeliest tokens is asked for fewer, now and from then on."""
        import openai

        tries = [top, *(fewer for fewer in FEWER if fewer < top)] if self._top is None else [min(top, self._top)]
        for wanted in tries:
            told = {"logprobs": True, "top_logprobs": wanted} if wanted else {}
            try:
                response = await client.chat.completions.create(**request, **told)
            except (openai.BadRequestError, openai.UnprocessableEntityError):
                if wanted == tries[-1]:
                    raise
                continue
            if wanted < top and self._top is None:
                self._top = wanted
                told_now = f"tells the {wanted} likeliest tokens at most" if wanted else "tells no probabilities; the text is read"
                warnings.warn(f"{self.settings.url} {told_now}", stacklevel=2)
            return response

    def _reason(self, error: BaseException) -> str:
        """The first line of a fault, without the key or what looks like one."""
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        line = (line.replace(self._key, "…") if self.settings.api_key_env else line)[:200]
        return re.sub(r"\b(?:sk|hf|Bearer)[-_ ][\w-]{6,}", "…", line)


async def _bounded(response: Any) -> Any:
    """The response, read; one that is too large or a redirect becomes an error that is not worth another attempt."""
    import httpx2

    def refused(status: int, why: str) -> Any:
        return httpx2.Response(status, json={"error": {"message": why}}, request=response.request)

    if response.is_redirect:
        return refused(421, f"it redirects to {response.headers.get('location', '?')[:120]}; name that address in url")
    body, size = [], 0
    async for chunk in response.aiter_bytes():
        body.append(chunk)
        if (size := size + len(chunk)) > MAX_BODY:
            return refused(413, f"its answer is larger than {MAX_BODY // 2**20} MiB")
    headers = [
        (name, value) for name, value in response.headers.multi_items() if name.lower() not in ("content-encoding", "content-length")
    ]
    return httpx2.Response(response.status_code, headers=headers, content=b"".join(body), request=response.request)


def _answers(response: Any, n: int) -> list[Said]:
    """The choices of a response. Raises ValueError where there are none or more than n, or they are no text."""
    choices = response.choices
    if not 1 <= len(choices) <= n:
        raise ValueError(f"{len(choices)} choices came for the {n} asked for")
    found: list[Said | None] = [None] * len(choices)
    for choice in choices:
        place = choice.index
        if not isinstance(place, int) or not 0 <= place < len(choices) or found[place] is not None:
            raise ValueError(f"a choice has the index {place!r}")
        found[place] = _said(choice, response)
    return [said for said in found if said is not None]


def _said(choice: Any, response: Any) -> Said:
    message = choice.message
    thought = next(
        (t for name in ("reasoning_content", "reasoning") if isinstance(t := getattr(message, name, None), str) and t.strip()), ""
    )
    text = message.content if message.content is not None or not thought else ""  # cut inside the thought: there is no content yet
    if choice.finish_reason not in ("stop", "length"):
        return Said("", error=f"the server stopped for '{choice.finish_reason}'")
    if not isinstance(text, str):
        return Said("", error="the answer holds no text")
    text, thought = (_SURROGATE.sub("\ufffd", part) for part in (text, thought))  # no file could hold a lone one
    first: dict[str, float] = {}
    told = getattr(choice.logprobs, "content", None) if choice.logprobs else None
    if told:
        first = {entry.token: float(entry.logprob) for entry in (told[0].top_logprobs or [told[0]])}
    usage = getattr(response, "usage", None)
    tokens = usage.completion_tokens if usage and len(response.choices) == 1 else 0
    return Said(text, choice.finish_reason, tokens or 0, first, thought=thought)


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
    return Completion(said.reply, [], [], "length" if said.finish_reason == "length" else "stop")
