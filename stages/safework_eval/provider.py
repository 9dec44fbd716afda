"""An Inspect model provider over our artifacts: ``inspect eval TASK --model safework/NAME``.

NAME is whatever the store resolves to a model (``sft``, ``model/sft@v2``) or a folder (``safework/./folder``). Inspect asks for one
reply at a time; the requests that wait together are generated together, those of like length side by side, in one worker thread.
Nothing touches the network: tokens are counted by the model's own tokenizer, where Inspect's default would fetch one.

Model arguments (``-M key=value``): ``batch_size``, ``dtype``, ``store``.
"""

from __future__ import annotations

import asyncio
import hashlib
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    StopReason,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from safework_cli.errors import ConfigError
from safework_cli.lm.engine import Completion, Sampling
from safework_cli.rows import THINK_CLOSE, THINK_OPEN, Message

if TYPE_CHECKING:
    from safework_cli.lm.hf import HFEngine

DEFAULT_MAX_TOKENS = 1024
QUIET_SECONDS = 0.02
"""A batch starts when no further request came for so long."""
STRAGGLER_SECONDS = 10.0
"""The same where it is known how many requests are to come: one that never comes must not hang the run."""


@dataclass(slots=True)
class Request:
    """One reply to be generated, and the future of it."""

    prompt_ids: list[int]
    sampling: Sampling
    future: Future[Completion] = field(default_factory=Future)


class Batcher:
    """Collects concurrent requests and generates them in batches, in one thread of its own.

    Args:
        generate: prompts of one batch and their sampling → completions.
        batch_size: sequences generated together.
    """

    def __init__(self, generate: Callable[[list[list[int]], Sampling], list[Completion]], batch_size: int):
        self._generate, self.batch_size = generate, batch_size
        self.expected = 0
        """Requests that are known to come: the first batch waits for them, so that what is batched with what never depends on timing."""
        self.before_batch: Callable[[], None] = lambda: None
        """Called before each batch; what it raises reaches every request that waits."""
        self.failure: BaseException | None = None
        """The first error of a batch, as it was raised."""
        self._queue: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, request: Request) -> Future[Completion]:
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
            batch = [r for r in waiting if r.sampling == waiting[0].sampling][: self.batch_size]
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
            sampling = replace(batch[0].sampling, seed=batch_seed(batch[0].sampling.seed, [r.prompt_ids for r in batch]))
            completions = self._generate([r.prompt_ids for r in batch], sampling)
        except BaseException as error:
            self.failure = self.failure or error
            for request in batch:
                request.future.set_exception(error)
            return
        for request, completion in zip(batch, completions, strict=True):
            request.future.set_result(completion)


def batch_seed(seed: int, prompts: Sequence[Sequence[int]]) -> int:
    """The seed of one batch, from the run's seed and the batch's content: batches differ, and a resumed run draws the same again."""
    text = repr((seed, [list(p) for p in prompts]))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


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
        self._engine: HFEngine | None = None
        self._loading = threading.Lock()
        self.batcher = Batcher(self._generate_batch, batch_size)

    def attach(self, engine: HFEngine) -> None:
        """Uses an engine that is loaded already."""
        self._engine = engine
        self.batcher.batch_size = engine.batch_size

    def detach(self) -> None:
        """Lets go of the model's memory."""
        self._engine = None

    @property
    def engine(self) -> HFEngine:
        """The engine, loaded at first use. Raises InputError where the name is no model."""
        with self._loading:
            if self._engine is None:
                from safework_cli.artifacts import default_store
                from safework_cli.lm.hf import HFEngine
                from safework_cli.lm.models import load_model, load_tokenizer

                folder: Path = default_store(self._store).resolve(self.model_name, ("model",)).path
                model = load_model(folder, dtype=self._dtype, trust_remote_code=self._trust)  # type: ignore[arg-type]
                tokenizer = load_tokenizer(folder, trust_remote_code=self._trust)
                self._engine = HFEngine(model, tokenizer, self.batcher.batch_size)
            return self._engine

    def _generate_batch(self, prompts: list[list[int]], sampling: Sampling) -> list[Completion]:
        return [completions[0] for completions in self.engine.generate_ids(prompts, sampling)]

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """One reply. A prompt that leaves no room for it comes back with stop reason "model_length" and its error, never cut."""
        if tools:
            raise ConfigError(
                "the safework provider calls no tools", "", "choose a task without tools, or serve the model behind an endpoint that does"
            )
        if (config.num_choices or 1) > 1:
            raise ConfigError("the safework provider gives one choice a request", "", "use epochs for several replies")
        engine = self.engine if self._engine is not None else await asyncio.to_thread(lambda: self.engine)
        sampling = sampling_of(config)
        prompt_ids = prompt_token_ids(engine, input)
        if problem := length_problem(engine, len(prompt_ids), sampling.max_tokens):
            return reply_output(self.model_name, "", "model_length", len(prompt_ids), 0, problem)
        completion = await asyncio.wrap_future(self.batcher.submit(Request(prompt_ids, sampling)))
        reason: StopReason = "stop" if completion.finish_reason == "stop" else "max_tokens"
        return reply_output(self.model_name, completion.text, reason, len(prompt_ids), len(completion.token_ids))

    async def count_tokens(self, input: str | list[ChatMessage], config: GenerateConfig | None = None) -> int:
        return await self.count_text_tokens(input) if isinstance(input, str) else len(prompt_token_ids(self.engine, input))

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


def sampling_of(config: GenerateConfig) -> Sampling:
    """Inspect's generation settings as ours; what is not said is greedy, without a nucleus, seed 0."""
    return Sampling(
        max_tokens=config.max_tokens or DEFAULT_MAX_TOKENS,
        temperature=config.temperature or 0.0,
        top_p=1.0 if config.top_p is None else config.top_p,
        stop=tuple(config.stop_seqs or ()),
        seed=config.seed or 0,
    )


def reply_output(model: str, text: str, reason: StopReason, prompt_tokens: int, tokens: int, error: str | None = None) -> ModelOutput:
    """The output of one reply. Inspect takes the thought out of the message; ``metadata["reply"]`` keeps the text as generated."""
    return ModelOutput(
        model=model,
        choices=[ChatCompletionChoice(message=ChatMessageAssistant(content=text, model=model, source="generate"), stop_reason=reason)],
        usage=ModelUsage(input_tokens=prompt_tokens, output_tokens=tokens, total_tokens=prompt_tokens + tokens),
        metadata={"reply": text, "finish_reason": "length" if reason == "max_tokens" else reason},
        error=error,
    )


def prompt_token_ids(engine: HFEngine, messages: Sequence[ChatMessage]) -> list[int]:
    from safework_cli.lm.chat import encode_prompt

    return encode_prompt(engine.tokenizer, to_messages(messages))


def length_problem(engine: HFEngine, prompt_tokens: int, max_tokens: int) -> str | None:
    """Why a prompt cannot be answered within the model's positions, or None."""
    limit = getattr(engine.model.config, "max_position_embeddings", None)
    if limit is None or prompt_tokens + max_tokens <= limit:
        return None
    return f"a prompt of {prompt_tokens} tokens and max_tokens={max_tokens} exceed the model's {limit} positions"


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
