"""An Inspect model provider over our artifacts: ``inspect eval TASK --model safework/NAME``.

NAME is whatever the store resolves to a model (``sft``, ``model/sft@v2``) or a folder (``safework/./folder``). Inspect asks for one
reply at a time; the requests that wait together are generated together, those of like length side by side, in one worker thread.
Each request draws by a seed of its own, from the sample and the epoch that it belongs to, so that what it is batched with and when it
came change no reply. A generation setting that the engine does not have is refused by name, never ignored.
Nothing touches the network: tokens are counted by the model's own tokenizer, where Inspect's default would fetch one.

Model arguments (``-M key=value``): ``batch_size``, ``dtype``, ``store``, ``trust_remote_code``.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inspect_ai.model import (
    ChatMessage,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from inspect_ai.solver._task_state import sample_state  # which sample and epoch a request belongs to; the public names do not say it
from inspect_ai.tool import ToolChoice, ToolInfo

from safework_cli.core.errors import ConfigError
from safework_cli.engines.protocol import Completion, Sampling
from safework_eval.inspect_log import output_of, to_messages
from safework_eval.requests import ReplyRequest, build_request, complete, record_of

if TYPE_CHECKING:
    from safework_cli.engines.protocol import TokenEngine

DEFAULT_MAX_TOKENS = 1024
QUIET_SECONDS = 0.02
"""A batch starts when no further request came for so long."""

DONE_HERE = frozenset({"max_tokens", "temperature", "top_p", "stop_seqs", "seed", "num_choices", "best_of", "logprobs"})
"""Generation settings that this provider carries out."""
DONE_BY_INSPECT = frozenset(
    {
        "system_message", "cache", "reasoning_history", "max_retries", "timeout", "attempt_timeout", "stream_idle_timeout",
        "max_connections", "adaptive_connections", "max_tool_output", "parallel_tool_calls", "internal_tools", "cache_prompt",
    }
)  # fmt: skip
"""Settings that Inspect carries out, or that concern connections and tools, which this provider does not have: they change no reply."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0.0,), "presence_penalty": (0.0,), "top_k": (0, -1), "top_logprobs": (0,), "prompt_logprobs": (0,),
    "logit_bias": ({},), "fallback_models": ([],), "fail_on_refusal": (False,), "batch": (False,), "extra_headers": ({},),
    "extra_body": ({},), "modalities": ([],),
}  # fmt: skip
"""Values with which a setting that the engine does not have asks for nothing."""


@dataclass(slots=True)
class Pending:
    """A request with the seeds of its completions, and the future of them."""

    request: ReplyRequest
    sampling: Sampling
    seeds: list[int]
    future: Future[list[Completion]] = field(default_factory=Future)


class Batcher:
    """Collects concurrent requests and generates them in batches, in one thread of its own.

    Args:
        generate: requests of one batch, their sampling and the seeds of each prompt's completions → the completions of each prompt.
        batch_size: sequences generated together.
    """

    def __init__(self, generate: Callable[[list[ReplyRequest], Sampling, list[list[int]]], list[list[Completion]]], batch_size: int):
        self._generate, self.batch_size = generate, batch_size
        self._queue: queue.SimpleQueue[Pending] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, request: Pending) -> Future[list[Completion]]:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="safework-generate", daemon=True)
            self._thread.start()
        self._queue.put(request)
        return request.future

    def _work(self) -> None:
        waiting: list[Pending] = []
        while True:
            if not waiting:
                waiting.append(self._queue.get())
            self._gather(waiting)
            waiting.sort(key=lambda r: (len(r.request.prompt_ids), r.request.prompt_ids))
            alike = [r for r in waiting if r.sampling == waiting[0].sampling and len(r.seeds) == len(waiting[0].seeds)]
            batch = alike[: max(1, self.batch_size // len(waiting[0].seeds))]
            chosen = {id(r) for r in batch}
            waiting = [r for r in waiting if id(r) not in chosen]
            self._run(batch)

    def _gather(self, waiting: list[Pending]) -> None:
        while True:
            try:
                waiting.append(self._queue.get(timeout=QUIET_SECONDS))
            except queue.Empty:
                return

    def _run(self, batch: list[Pending]) -> None:
        try:
            groups = self._generate([r.request for r in batch], batch[0].sampling, [r.seeds for r in batch])
        except BaseException as error:
            for request in batch:
                request.future.set_exception(error)
            return
        for request, group in zip(batch, groups, strict=True):
            request.future.set_result(group)


class SafeworkAPI(ModelAPI):
    """Replies of one of our models, or of any Hugging Face folder. Greedy unless a temperature is given.

    Args:
        model_name: a reference or a folder.
        batch_size: sequences generated together.
        dtype: "auto", "float32", "bfloat16" or "float16".
        trust_remote_code: run Python code that the model's folder brings along.
        store: the artifact store; ``SAFEWORK_STORE`` or ``./artifacts`` if it is not given.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),
        batch_size: int = 16,
        dtype: str = "auto",
        store: str | None = None,
        trust_remote_code: bool = False,
    ):
        super().__init__(model_name, base_url, api_key, [], config)
        self._dtype, self._store, self._trust = dtype, store, trust_remote_code
        self._engine: TokenEngine | None = None
        self._loading = threading.Lock()
        self._asked: Counter[int] = Counter()
        """How often each request was made: a sample that asks the same twice (an agent, a retry) gets another draw each time."""
        self.batcher = Batcher(lambda requests, sampling, seeds: complete(self.engine, requests, sampling, seeds), batch_size)

    @property
    def engine(self) -> TokenEngine:
        """The engine, loaded at first use. Raises InputError if the name is not a model."""
        with self._loading:
            if self._engine is None:
                from safework_cli.core.artifacts import default_store
                from safework_cli.engines.load import load_token_engine
                from safework_cli.engines.settings import EngineSettings

                folder: Path = default_store(self._store).resolve(self.model_name, ("model",)).path
                self._engine = load_token_engine(
                    EngineSettings(),
                    folder,
                    batch_size=self.batcher.batch_size,
                    dtype=self._dtype,  # type: ignore[arg-type] # Inspect passes text
                    trust_remote_code=self._trust,
                )
            return self._engine

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """The reply, or ``num_choices`` of them. A prompt that cannot be asked comes back with its error, never cut.

        Raises:
            ConfigError: tools, attachments, or a generation setting that this engine does not have.
        """
        if tools:
            raise ConfigError(
                "the safework provider calls no tools", "", "choose a task without tools, or serve the model at an endpoint that does"
            )
        refuse_unsupported(config)
        sampling = sampling_of(config)
        choices = config.num_choices or 1
        engine = self.engine if self._engine is not None else await asyncio.to_thread(lambda: self.engine)
        state = sample_state()
        request = build_request(engine, to_messages(input), sampling, None if state is None else (str(state.sample_id), state.epoch))
        if request.problem:
            return output_of(self.model_name, request.refusal())
        count = max(choices, config.best_of or 1)
        seeds = request.seeds(count, self._asked[request.seed])
        self._asked[request.seed] += count
        completions = await asyncio.wrap_future(self.batcher.submit(Pending(request, sampling, seeds)))
        if config.best_of:
            completions = sorted(completions, key=_likelihood, reverse=True)
        return self._output(engine, completions[:choices], sampling, logprobs=bool(config.logprobs))

    def _output(self, engine: TokenEngine, completions: list[Completion], sampling: Sampling, *, logprobs: bool) -> ModelOutput:
        outputs = []
        for completion in completions:
            reply = record_of(completion)
            reply.text = cut_at_stop(reply.text, sampling.stop)
            outputs.append(output_of(self.model_name, reply, _logprobs(engine, completion) if logprobs else None))
        output, prompt = outputs[0], completions[0].prompt_tokens or 0
        tokens = sum(completion.tokens or 0 for completion in completions)
        output.choices = [choice for each in outputs for choice in each.choices]
        output.usage = ModelUsage(input_tokens=prompt, output_tokens=tokens, total_tokens=prompt + tokens)
        return output

    async def count_tokens(self, input: str | list[ChatMessage], config: GenerateConfig | None = None) -> int:
        from safework_cli.models.chat_template import encode_prompt

        if isinstance(input, str):
            return await self.count_text_tokens(input)
        return len(encode_prompt(self.engine.tokenizer, to_messages(input)).ids)

    async def count_text_tokens(self, text: str) -> int:
        return len(self.engine.tokenizer(text, add_special_tokens=False)["input_ids"])

    def max_tokens(self) -> int | None:
        return DEFAULT_MAX_TOKENS

    def max_connections(self) -> int:
        """Enough requests in flight to fill the next batches with like lengths."""
        return 4 * self.batcher.batch_size

    def connection_key(self) -> str:
        return self.model_name


@modelapi(name="safework")
def safework() -> type[ModelAPI]:
    """Registers the provider: Inspect finds this function through the entry point."""
    return SafeworkAPI


def refuse_unsupported(config: GenerateConfig) -> None:
    """Raises ConfigError that names every generation setting which this engine does not have."""
    refused = []
    for name in type(config).model_fields:
        value = getattr(config, name)
        if value is None or name in DONE_HERE or name in DONE_BY_INSPECT or value in NEUTRAL.get(name, ()):
            continue
        refused.append(f"{name}={value!r}"[:80])
    if refused:
        raise ConfigError(
            f"the safework provider does not support {', '.join(refused)}",
            "a setting that is ignored would give the numbers of another experiment",
            f"leave it out (supported: {', '.join(sorted(DONE_HERE))}), or serve the model at an endpoint that has it",
        )


def sampling_of(config: GenerateConfig) -> Sampling:
    """Inspect's generation settings as ours; what is not said is greedy, without a nucleus.

    Raises:
        ConfigError: a value outside its range.
    """
    max_tokens = DEFAULT_MAX_TOKENS if config.max_tokens is None else config.max_tokens
    temperature, top_p = config.temperature or 0.0, 1.0 if config.top_p is None else config.top_p
    choices = config.num_choices or 1
    for name, value, fits, range_ in (
        ("max_tokens", max_tokens, max_tokens >= 1, "at least 1"),
        ("temperature", temperature, 0 <= temperature < math.inf, "at least 0 (0 is greedy)"),
        ("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1"),
        ("num_choices", choices, choices >= 1, "at least 1"),
        ("best_of", config.best_of, config.best_of is None or config.best_of >= choices, "at least num_choices"),
    ):
        if not fits:
            raise ConfigError(f"{name}={value} cannot be generated with", f"it must be {range_}", f"set {name}, or leave it out")
    return Sampling(max_tokens, temperature, top_p, stop=tuple(stop for stop in config.stop_seqs or () if stop), seed=config.seed or 0)


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop sequence: the reply does not include it, as with other providers."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]


def _likelihood(completion: Completion) -> float:
    """Mean log-probability of a token: what ``best_of`` goes by."""
    return sum(completion.logprobs) / len(completion.logprobs) if completion.logprobs else -math.inf


def _logprobs(engine: TokenEngine, completion: Completion) -> Logprobs:
    """The log-probability of each sampled token, the stop token included."""
    content = []
    for token_id, logprob in zip(completion.token_ids, completion.logprobs, strict=True):
        token = str(engine.tokenizer.decode([token_id]))
        content.append(Logprob(token=token, logprob=logprob, bytes=list(token.encode())))
    return Logprobs(content=content)
