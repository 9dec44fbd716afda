"""An Inspect model provider over our artifacts: ``inspect eval TASK --model safework/NAME``.

NAME is whatever the store resolves to a model (``sft``, ``model/sft@v2``) or a folder (``safework/./folder``). Inspect asks for one
reply at a time; the requests that wait together are generated together, those of like length side by side, in one worker thread.
Each request draws by a seed of its own, from the sample and the epoch that it belongs to, so that what it is batched with and when it
came change no reply. A generation setting that the engine does not have is refused by name, never ignored.
Nothing touches the network: tokens are counted by the model's own tokenizer, where Inspect's default would fetch one.

Model arguments (``-M key=value``): ``batch_size``, ``dtype``, ``store``.
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
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    StopReason,
    modelapi,
)
from inspect_ai.solver._task_state import sample_state  # which sample and epoch a request belongs to; the public names do not say it
from inspect_ai.tool import ToolChoice, ToolInfo

from safework_cli.core.errors import ConfigError
from safework_cli.data.reply import THINK_CLOSE, THINK_OPEN
from safework_cli.data.row import Message
from safework_cli.engines.protocol import Completion, Sampling, derived_seed

if TYPE_CHECKING:
    from safework_cli.engines.protocol import TokenEngine

DEFAULT_MAX_TOKENS = 1024
QUIET_SECONDS = 0.02
"""A batch starts when no further request came for so long."""
STRAGGLER_SECONDS = 10.0
"""The same where it is known how many requests are to come: one that never comes must not hang the run."""

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
class Request:
    """The completions of one prompt to be generated, one for each seed, and the future of them."""

    prompt_ids: list[int]
    sampling: Sampling
    seeds: list[int]
    future: Future[list[Completion]] = field(default_factory=Future)


class Batcher:
    """Collects concurrent requests and generates them in batches, in one thread of its own.

    Args:
        generate: prompts of one batch, their sampling and the seeds of each prompt's completions → the completions of each prompt.
        batch_size: sequences generated together.
    """

    def __init__(self, generate: Callable[[list[list[int]], Sampling, list[list[int]]], list[list[Completion]]], batch_size: int):
        self._generate, self.batch_size = generate, batch_size
        self.expected = 0
        """Requests that are known to come: the first batch waits for them, so that like lengths are batched together, and always the same
        (what is batched with what changes the rounding of the logits)."""
        self.before_batch: Callable[[], None] = lambda: None
        """Called before each batch; what it raises reaches every request that waits."""
        self.failure: BaseException | None = None
        """The first error of a batch, as it was raised."""
        self._queue: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, request: Request) -> Future[list[Completion]]:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="safework-generate", daemon=True)
            self._thread.start()
        self._queue.put(request)
        return request.future

    def _work(self) -> None:
        waiting: list[Request] = []
        while True:
            if not waiting:
                waiting.append(self._queue.get())
            self._gather(waiting)
            waiting.sort(key=lambda r: (len(r.prompt_ids), r.prompt_ids))
            alike = [r for r in waiting if r.sampling == waiting[0].sampling and len(r.seeds) == len(waiting[0].seeds)]
            batch = alike[: max(1, self.batch_size // len(waiting[0].seeds))]
            chosen = {id(r) for r in batch}
            waiting = [r for r in waiting if id(r) not in chosen]
            self._run(batch)

    def _gather(self, waiting: list[Request]) -> None:
        while True:
            patience = STRAGGLER_SECONDS if len(waiting) < self.expected else QUIET_SECONDS
            try:
                waiting.append(self._queue.get(timeout=patience))
            except queue.Empty:
                self.expected = 0  # it held for the first batch; those that follow take what is there
                return

    def _run(self, batch: list[Request]) -> None:
        try:
            self.before_batch()
            groups = self._generate([r.prompt_ids for r in batch], batch[0].sampling, [r.seeds for r in batch])
        except BaseException as error:
            self.failure = self.failure or error
            for request in batch:
                request.future.set_exception(error)
            return
        for request, group in zip(batch, groups, strict=True):
            request.future.set_result(group)


class Seeds:
    """The seeds of requests: from the run's seed, the sample and its epoch, the prompt, and how often the same was asked before.

    A task that asks twice in one sample (an agent, a retry), or a caller outside any task that asks the same again, gets another draw
    each time; a second run of the same draws the same.
    """

    def __init__(self) -> None:
        self._asked: Counter[int] = Counter()

    def next(self, seed: int, sample: tuple[str, int] | None, prompt_ids: Sequence[int], count: int) -> list[int]:
        """``count`` seeds, one for each completion.

        Args:
            sample: its id and epoch, or None outside a task.
        """
        key = derived_seed(seed, sample, list(prompt_ids))
        first = self._asked[key]
        self._asked[key] += count
        return [derived_seed(key, number) for number in range(first, first + count)]


class SafeworkAPI(ModelAPI):
    """Replies of one of our models, or of any Hugging Face folder. Greedy unless a temperature is given.

    Args:
        model_name: a reference or a folder.
        batch_size: sequences generated together.
        dtype: "auto", "float32", "bfloat16" or "float16".
        trust_remote_code: run Python code that the model's folder brings along.
        store: the artifact store; ``SAFEWORK_STORE`` or ``./artifacts`` where it is not given.
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
        self._seeds = Seeds()
        self.batcher = Batcher(self._generate_batch, batch_size)

    def attach(self, engine: TokenEngine) -> None:
        """Uses an engine that is loaded already."""
        self._engine = engine
        self.batcher.batch_size = engine.batch_size

    def detach(self) -> None:
        """Lets go of the model's memory."""
        self._engine = None

    @property
    def engine(self) -> TokenEngine:
        """The engine, loaded at first use. Raises InputError where the name is no model."""
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

    def _generate_batch(self, prompts: list[list[int]], sampling: Sampling, seeds: list[list[int]]) -> list[list[Completion]]:
        return self.engine.generate_ids(prompts, sampling, len(seeds[0]), seeds=seeds)

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """The reply, or ``num_choices`` of them. A prompt that cannot be asked comes back with its error, never cut.

        Raises:
            ConfigError: tools, attachments, or a generation setting that this engine does not have.
        """
        if tools:
            raise ConfigError(
                "the safework provider calls no tools", "", "choose a task without tools, or serve the model behind an endpoint that does"
            )
        refuse_unsupported(config)
        sampling = sampling_of(config)
        choices = config.num_choices or 1
        engine = self.engine if self._engine is not None else await asyncio.to_thread(lambda: self.engine)
        from safework_cli.engines.prompts import encode_for

        asked = encode_for(engine, to_messages(input), sampling)
        if asked.problem:
            reason: StopReason = "model_length" if asked.too_long else "unknown"
            return reply_output(self.model_name, "", reason, len(asked.prompt_ids), 0, asked.problem)
        state = sample_state()
        sample = None if state is None else (str(state.sample_id), state.epoch)
        seeds = self._seeds.next(config.seed or 0, sample, asked.prompt_ids, max(choices, config.best_of or 1))
        completions = await asyncio.wrap_future(self.batcher.submit(Request(asked.prompt_ids, sampling, seeds)))
        if config.best_of:
            completions = sorted(completions, key=_likelihood, reverse=True)
        return self._output(engine, asked.prompt_ids, completions[:choices], sampling, logprobs=bool(config.logprobs))

    def _output(
        self, engine: TokenEngine, prompt_ids: list[int], completions: list[Completion], sampling: Sampling, *, logprobs: bool
    ) -> ModelOutput:
        outputs = [
            reply_output(
                self.model_name,
                cut_at_stop(completion.text, sampling.stop),
                "stop" if completion.finish_reason == "stop" else "max_tokens",
                len(prompt_ids),
                len(completion.token_ids),
                logprobs=_logprobs(engine, completion) if logprobs else None,
            )
            for completion in completions
        ]
        output, tokens = outputs[0], sum(len(completion.token_ids) for completion in completions)
        output.choices = [choice for each in outputs for choice in each.choices]
        output.usage = ModelUsage(input_tokens=len(prompt_ids), output_tokens=tokens, total_tokens=len(prompt_ids) + tokens)
        return output

    async def count_tokens(self, input: str | list[ChatMessage], config: GenerateConfig | None = None) -> int:
        from safework_cli.models.chat_template import encode_prompt

        return (
            await self.count_text_tokens(input) if isinstance(input, str) else len(encode_prompt(self.engine.tokenizer, to_messages(input)))
        )

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
            f"leave it out (supported: {', '.join(sorted(DONE_HERE))}), or serve the model behind an endpoint that has it",
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
    return Sampling(max_tokens, temperature, top_p, stop=tuple(stop for stop in config.stop_seqs or () if stop))


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop sequence: what ends a reply is no part of it, as at other providers."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]


def reply_output(
    model: str,
    text: str,
    reason: StopReason,
    prompt_tokens: int,
    tokens: int,
    error: str | None = None,
    logprobs: Logprobs | None = None,
) -> ModelOutput:
    """The output of one reply. Inspect takes the thought out of the message; ``metadata["reply"]`` keeps the text as generated."""
    message = ChatMessageAssistant(content=text, model=model, source="generate")
    return ModelOutput(
        model=model,
        choices=[ChatCompletionChoice(message=message, stop_reason=reason, logprobs=logprobs)],
        usage=ModelUsage(input_tokens=prompt_tokens, output_tokens=tokens, total_tokens=prompt_tokens + tokens),
        metadata={"reply": text, "finish_reason": "length" if reason == "max_tokens" else reason},
        error=error,
    )


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


def to_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """Inspect's messages as ours; a thought that Inspect took out of an earlier reply goes back to where it was."""
    return [Message(role=message.role, content=_text_of(message.content)) for message in messages]


def _text_of(content: str | list[Any]) -> str:
    if isinstance(content, str):
        return content
    parts = []
    for part in content:
        if isinstance(part, ContentReasoning):
            parts.append(f"{THINK_OPEN}{part.reasoning}{THINK_CLOSE}")
        elif isinstance(part, ContentText):
            parts.append(part.text)
        else:
            raise ConfigError(f"the safework provider reads text alone, not {part.type}", "", "choose a task without attachments")
    return "".join(parts)
