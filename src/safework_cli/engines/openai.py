"""Models on an OpenAI-compatible server: vLLM, TGI, SGLang, llama.cpp, or a provider. Imports no torch.

The `openai` package speaks the protocol and retries timeouts, 429 (after its Retry-After) and 5xx. Considered: huggingface_hub's
InferenceClient, which falls back to the hub's own token and so could send it to another server, and does not retry; and litellm, which
adds a hundred providers. Completions carry no token ids: the server keeps them.
"""

from __future__ import annotations

import asyncio
import base64
import io
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from safework_cli.core.errors import ConfigError, InputError
from safework_cli.data.images import TAG, open_image
from safework_cli.data.reply import THINK_CLOSE, THINK_OPEN, make_reply
from safework_cli.data.row import Image, Message
from safework_cli.engines.protocol import Completion, Conversation, FinishReason, Sampling, derived_seed
from safework_cli.engines.settings import EndpointSettings, ServerSettings

Client = TypeVar("Client")
Result = TypeVar("Result")

FEWER_TOP_TOKENS = (5, 0)
"""How many of the most likely tokens are requested next if a server refuses a larger number."""
SEEDS = 2**31
"""Seeds are below it: some servers take no larger ones."""
PARSE_ATTEMPTS = 2
"""A response that is not valid JSON is requested once more: proxies cut bodies, and the client itself retries transport errors only."""
MAX_BODY = 32 * 2**20
"""Most bytes of a response: a server must not be able to fill the memory."""
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of a server, or why there is none.

    Attributes:
        text: the message's content; empty if there is an ``error``.
        finish_reason: "stop" or "length".
        usage: (prompt, completion) tokens as the server counts them; None for what it does not report for this answer.
        first: token → log-probability of the most likely first tokens, if they were requested and returned.
        thought: what a server with a reasoning parser returned separately, as ``reasoning_content`` or ``reasoning``.
    """

    text: str
    finish_reason: str = "stop"
    usage: tuple[int | None, int | None] = (0, 0)
    first: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    thought: str = ""

    @property
    def reply(self) -> str:
        """The reply in the one format, ``<think>thought</think>answer``. A content that closes a thought without opening it comes from a
        template that opened the thought in the prompt (DeepSeek-R1-Distill without a reasoning parser)."""
        if self.thought:
            cut = not self.text.strip() and self.finish_reason == "length"
            return THINK_OPEN + self.thought if cut else make_reply(self.thought, self.text)
        before, closed, _ = self.text.partition(THINK_CLOSE)
        return THINK_OPEN + self.text if closed and THINK_OPEN not in before else self.text


def key_of(settings: EndpointSettings | ServerSettings) -> str:
    """The key that ``api_key_env`` names; "none" where the server needs none. Raises ConfigError if the variable is not set."""
    if not settings.api_key_env:
        return "none"  # openai's client requires one
    key = os.environ.get(settings.api_key_env, "")
    if not key:
        what = f"the environment variable {settings.api_key_env} is not set"
        raise ConfigError(what, f"it must hold the key of {settings.url}", f"export {settings.api_key_env}=…")
    return key


def bounded_client(timeout_s: float) -> Any:
    """An HTTP client that limits the time of a complete answer (httpx limits the wait for each part only) and its size, and follows no
    redirect: prompts are sent only to the configured server. Raises httpx2.ReadTimeout where no complete answer came in time."""
    import httpx2  # the client that openai uses: it retries this one's timeouts
    import openai

    class Bounded(openai.DefaultAsyncHttpxClient):
        async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
            try:
                async with asyncio.timeout(timeout_s):
                    response = await super().send(request, **options | {"stream": True, "follow_redirects": False})
                    try:
                        return await _bounded(response)
                    finally:
                        await response.aclose()
            except TimeoutError:
                raise httpx2.ReadTimeout(f"no complete answer within {timeout_s:g} s", request=request) from None

    return Bounded(timeout=timeout_s)


def each_answer(
    connect: Callable[[], Client],
    close: Callable[[Client], Coroutine[Any, Any, Any]],
    jobs: Sequence[Callable[[Client], Coroutine[Any, Any, Result]]],
    concurrency: int,
) -> Iterator[Result]:
    """The results of requests, in order, as they arrive; so many are open at a time.

    Args:
        connect, close: the client that all of them share.
        jobs: each makes a request; the first error ends the others.
    """
    with asyncio.Runner() as runner:  # on Ctrl-C it cancels open requests; threads would have to finish
        loop = runner.get_loop()
        client, slots = connect(), asyncio.Semaphore(concurrency)

        async def one(job: Callable[[Client], Coroutine[Any, Any, Result]]) -> Result:
            async with slots:
                return await job(client)

        tasks = [loop.create_task(one(job)) for job in jobs]
        try:
            for task in tasks:
                yield loop.run_until_complete(task)
        finally:  # after a refusal the other requests fail too: gather retrieves their errors, or asyncio would report them
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            loop.run_until_complete(close(client))


def request_seeds(seed: int, conversations: Sequence[Conversation]) -> list[int]:
    """A seed for each conversation's request. A server draws n answers from streams of its own: vLLM from the seeds s … s + n − 1, so that
    consecutive seeds would give neighbouring prompts the same streams. It depends on the seed, the messages and the number among equal
    conversations, and on nothing else."""
    counts: Counter[tuple[tuple[str, str], ...]] = Counter()
    seeds = []
    for conversation in conversations:
        messages = tuple((message["role"], message["content"]) for message in conversation)
        seeds.append(derived_seed(seed, messages, counts[messages]) % SEEDS)
        counts[messages] += 1
    return seeds


class Endpoint:
    """A client of one served model.

    Raises:
        ConfigError: ``api_key_env`` names a variable that is not set.
    """

    def __init__(self, settings: EndpointSettings):
        self.settings, self._key = settings, key_of(settings)
        self._top: int | None = None

    def ask(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        n: int = 1,
        top: int = 0,
        seeds: Sequence[int] | None = None,
    ) -> Iterator[list[Answer]]:
        """n answers for each conversation, in order, as they arrive.

        Args:
            top: how many of the most likely first tokens to request.
            seeds: of each conversation's request, in place of ``request_seeds``.

        Raises:
            InputError: the server refuses the key or does not know the model: further requests would fail too.
        """
        seeds = request_seeds(sampling.seed, conversations) if seeds is None else seeds

        def job(conversation: Conversation, seed: int) -> Callable[[Any], Coroutine[Any, Any, list[Answer]]]:
            return lambda client: self._answers(client, conversation, sampling, n, top, seed)

        jobs = [job(conversation, seed) for conversation, seed in zip(conversations, seeds, strict=True)]
        yield from each_answer(self._client, lambda client: client.close(), jobs, self.settings.concurrency)

    def _client(self) -> Any:
        import openai

        settings = self.settings
        return openai.AsyncOpenAI(
            base_url=settings.url,
            api_key=self._key,
            organization="",
            project="",  # OPENAI_* variables describe other servers
            timeout=settings.timeout_s,
            max_retries=settings.max_retries,
            http_client=bounded_client(settings.timeout_s),
        )

    async def _answers(self, client: Any, conversation: Conversation, sampling: Sampling, n: int, top: int, seed: int) -> list[Answer]:
        """n answers; if a server returns fewer choices than requested, the others are requested again."""

        def again(attempt: int) -> int:
            return derived_seed(seed, attempt) % SEEDS if attempt else seed

        answers: list[Answer] = []
        for attempt in range(n):
            answers += await self._request(client, conversation, sampling, n - len(answers), top, again(attempt))
            if len(answers) == n:
                break
        return answers

    async def _request(self, client: Any, conversation: Conversation, sampling: Sampling, n: int, top: int, seed: int) -> list[Answer]:
        """Between one and n answers."""
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
                return _choices(await self._completed(client, request, top), n)
            except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
                raise InputError(
                    f"{self.settings.url} refuses to serve '{self.settings.model}' (HTTP {error.status_code})",
                    self._reason(error),
                    "check url, model and the key in api_key_env",
                ) from None
            except openai.APIConnectionError as error:  # timeouts as well; the client has retried
                return [Answer("", error=f"no answer from {self.settings.url}: {self._reason(error)}")] * n
            except openai.APIStatusError as error:
                return [Answer("", error=f"HTTP {error.status_code}: {self._reason(error)}")] * n
            except (openai.OpenAIError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
                why = f"the answer could not be read: {self._reason(error)}"
        return [Answer("", error=why)] * n

    async def _completed(self, client: Any, request: dict[str, Any], top: int) -> Any:
        """The response. If the server refuses so many of the most likely tokens, fewer are requested from then on."""
        import openai

        tries = [top, *(fewer for fewer in FEWER_TOP_TOKENS if fewer < top)] if self._top is None else [min(top, self._top)]
        for wanted in tries:
            logprobs = {"logprobs": True, "top_logprobs": wanted} if wanted else {}
            try:
                response = await client.chat.completions.create(**request, **logprobs)
            except (openai.BadRequestError, openai.UnprocessableEntityError):
                if wanted == tries[-1]:
                    raise
                continue
            if wanted < top and self._top is None:
                self._top = wanted
                offer = f"at most the {wanted} most likely tokens" if wanted else "no probabilities; the text is read instead"
                warnings.warn(f"{self.settings.url} returns {offer}", stacklevel=2)
            return response

    def _reason(self, error: BaseException) -> str:
        """The first line of an error, without the key or what looks like one."""
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        line = (line.replace(self._key, "…") if self.settings.api_key_env else line)[:200]
        return re.sub(r"\b(?:sk|hf|Bearer)[-_ ][\w-]{6,}", "…", line)


async def _bounded(response: Any) -> Any:
    """The response with its body. A redirect or a body that is too large becomes an error that is not retried."""
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


def _choices(response: Any, n: int) -> list[Answer]:
    """The answers of a response. Raises ValueError if there are none or more than n, or their indices are wrong."""
    choices = response.choices
    if not 1 <= len(choices) <= n:
        raise ValueError(f"{len(choices)} choices came for the {n} requested")
    answers: list[Answer | None] = [None] * len(choices)
    for choice in choices:
        place = choice.index
        if not isinstance(place, int) or not 0 <= place < len(choices) or answers[place] is not None:
            raise ValueError(f"a choice has the index {place!r}")
        answers[place] = _answer(choice, response)
    return [answer for answer in answers if answer is not None]


def _answer(choice: Any, response: Any) -> Answer:
    message = choice.message
    thought = next(
        (t for name in ("reasoning_content", "reasoning") if isinstance(t := getattr(message, name, None), str) and t.strip()), ""
    )
    text = message.content if message.content is not None or not thought else ""  # cut inside the thought: no content yet
    if choice.finish_reason not in ("stop", "length"):
        return Answer("", error=f"the server stopped for '{choice.finish_reason}'")
    if not isinstance(text, str):
        return Answer("", error="the answer holds no text")
    text, thought = (_SURROGATE.sub("\ufffd", part) for part in (text, thought))  # a file in UTF-8 cannot hold lone surrogates
    first: dict[str, float] = {}
    positions = getattr(choice.logprobs, "content", None) if choice.logprobs else None
    if positions:
        first = {entry.token: float(entry.logprob) for entry in (positions[0].top_logprobs or [positions[0]])}
    usage = getattr(response, "usage", None)
    # no prompt and no reply has 0 tokens: a server that says so does not count
    prompt = usage.prompt_tokens or None if usage else None
    generated = usage.completion_tokens or None if usage and len(response.choices) == 1 else None  # the sum over all choices
    tokens = (prompt, generated)
    return Answer(text, choice.finish_reason, tokens, first, thought=thought)


class OpenAIEngine:
    """An ``Engine`` over an OpenAI-compatible server; images are sent as the bytes that rows hold. A conversation that ends in an assistant
    message is sent as it is; whether the server continues inside that message depends on the server."""

    template_hash = None

    def __init__(self, settings: EndpointSettings):
        self.endpoint = Endpoint(settings)
        self.name = f"{settings.model} at {settings.url}"
        self.batch_size = settings.concurrency

    def with_system(self, system: str, messages: Sequence[Message]) -> list[Message]:
        """See ``Engine.with_system``."""
        return [Message(role="system", content=system), *messages] if system else list(messages)

    def generate(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        n: int = 1,
        seeds: Sequence[Sequence[int]] | None = None,
        images: Sequence[Sequence[Image]] | None = None,
    ) -> list[list[Completion]]:
        """See ``Engine.generate``. Raises InputError if the server refuses the key or does not know the model."""
        firsts = request_seeds(sampling.seed, conversations) if seeds is None else [own[0] % SEEDS for own in seeds]
        asked = conversations if images is None else list(map(with_images, conversations, images))
        return [[_completion(answer) for answer in answers] for answers in self.endpoint.ask(asked, sampling, n, seeds=firsts)]


def with_images(conversation: Conversation, images: Sequence[Image]) -> Conversation:
    """A conversation whose messages hold lists of parts where they have images, as servers take them.

    Raises:
        InputError: an image's bytes are not in its row.
    """
    left = list(images)
    sent: list[Any] = []
    for message in conversation:
        between = message["content"].split(TAG) if images else [message["content"]]
        parts: list[dict[str, Any]] = []
        for number, text in enumerate(between):
            if number:
                parts.append({"type": "image_url", "image_url": {"url": _data_url(left.pop(0))}})
            if text:
                parts.append({"type": "text", "text": text})
        sent.append({"role": message["role"], "content": parts if len(between) > 1 else message["content"]})
    return sent


def _data_url(image: Image) -> str:
    """An image as a model that is loaded here would see it."""
    content = io.BytesIO()
    open_image(image).save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _completion(answer: Answer) -> Completion:
    reason: FinishReason = "failed" if answer.error else ("length" if answer.finish_reason == "length" else "stop")
    return Completion(answer.reply, [], [], reason, error=answer.error, usage=answer.usage)
