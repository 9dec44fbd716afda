"""What stages ask of an engine, whatever writes the replies. Imports no torch.

``Engine`` continues conversations: transformers and OpenAI-compatible servers can. ``TokenEngine`` also works with token ids and
log-probabilities, which a server does not offer. A stage states which of the two it needs (``Stage.engine_protocol``).

Sampled token ids are kept in every completion; text is never re-encoded to recover them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from safework_cli.data.row import Image, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from safework_cli.models.vision import Vision

Conversation = Sequence[Message]
FinishReason = Literal["stop", "length", "refused", "too_long", "failed"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        max_tokens: completion tokens at most.
        temperature: 0 is greedy.
        top_p: nucleus mass in (0, 1].
        stop: strings that end a completion; the string itself is kept in the text.
        seed: what each completion's own seed is derived from, with its prompt and its number among the completions of that prompt
            (``completion_seeds``). The same seed and prompt give the same tokens whatever else is in the batch, up to rounding.
        logprobs_at: temperature of the log-probabilities that completions carry. 1 is the model's own; a policy that is trained
            as it samples needs its own temperature here.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    logprobs_at: float = 1.0


@dataclass(slots=True)
class Completion:
    """One sampled continuation, or why there is none: a problem with one prompt does not end a run.

    Attributes:
        text: ``<think>thought</think>answer`` without other special tokens; it begins with ``<think>`` if the prompt opened the thought.
        token_ids: as sampled, the stop token included; empty from a server.
        logprobs: log-probability of each sampled token at the temperature ``Sampling.logprobs_at``, nucleus or not, (T,).
        finish_reason: "stop" (stop token or string), "length"; or, with ``error``, "refused" (the chat template, or the server, does not
            take this conversation), "too_long" (the prompt leaves no room for ``max_tokens``), "failed" (a later attempt may succeed).
        prompt_ids: the prompt as the model saw it; empty from a server.
        error: why the completion is missing; None if it is not.
        usage: (prompt, completion) tokens as a server counts them, None for what it does not report; None where ``token_ids`` are known.
    """

    text: str
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason
    prompt_ids: list[int] = field(default_factory=list)
    error: str | None = None
    usage: tuple[int | None, int | None] | None = None

    @property
    def tokens(self) -> int | None:
        """How many tokens were generated; None if a server does not say."""
        return self.usage[1] if self.usage else len(self.token_ids)

    @property
    def prompt_tokens(self) -> int | None:
        """How many tokens the prompt has; None if a server does not say."""
        return self.usage[0] if self.usage else len(self.prompt_ids)


class Engine(Protocol):
    """Anything that continues conversations.

    A conversation whose last message is from the assistant is continued *inside* that message (prefill); otherwise the chat template
    begins a new assistant turn.
    """

    batch_size: int
    """Conversations that are worth passing in one call."""

    @property
    def name(self) -> str:
        """What computes the replies, for records: "transformers/bfloat16", "NAME at URL"."""
        ...

    @property
    def template_hash(self) -> str | None:
        """Of the chat template; None if a server applies its own."""
        ...

    def with_system(self, system: str, messages: Sequence[Message]) -> list[Message]:
        """The conversation under an instruction, in a form that the model's chat template takes."""
        ...

    def generate(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        n: int = 1,
        seeds: Sequence[Sequence[int]] | None = None,
        images: Sequence[Sequence[Image]] | None = None,
    ) -> list[list[Completion]]:
        """n completions of each conversation, in order; one that could not be had states its ``error``.

        Args:
            images: of each conversation, one for each of its ``<image>`` tags.
            seeds: of each completion's draws, n for each conversation, in place of those derived from ``sampling.seed``. A server takes
                one seed for all completions of a conversation: the first.
        """
        ...


class TokenEngine(Engine, Protocol):
    """An engine that works with token ids."""

    tokenizer: PreTrainedTokenizerBase
    processor: Any
    """Of a model that reads images; None where images are not to be read."""
    stop_ids: list[int]

    @property
    def template_hash(self) -> str:
        """Of the chat template."""
        ...

    def generate_ids(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        n: int = 1,
        visions: Sequence[Vision | None] | None = None,
        seeds: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Completion]]:
        """As ``generate``, for prompts of token ids. Raises InputError if a prompt leaves no room for ``max_tokens``."""
        ...

    def score(self, conversations: Sequence[Conversation], completions: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of each token of given completions, shape (T,) each."""
        ...

    def text_of(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> str:
        """The text of a reply to a prompt, with the thought's tags."""
        ...

    def longest_prompt(self, sampling: Sampling) -> float:
        """Tokens that a prompt may have so that ``max_tokens`` fit after it; infinite if the model has no limit."""
        ...


def derived_seed(*parts: object) -> int:
    """A seed in [0, 2^63) derived from the ``repr`` of the parts: numbers, strings and lists of them."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def completion_seeds(seed: int, prompts: Sequence[Sequence[int]], n: int = 1) -> list[list[int]]:
    """The seed of each completion, (prompts, n), if the caller gives none.

    It depends on the seed, the prompt's tokens and the completion's number among those of equal prompts, and on nothing else: neither
    the order of the prompts nor their division into batches changes it. Listing a prompt n times is the same as asking for n.
    """
    counts: Counter[tuple[int, ...]] = Counter()
    seeds = []
    for prompt in map(tuple, prompts):
        first = counts[prompt]
        counts[prompt] += n
        seeds.append([derived_seed(seed, prompt, number) for number in range(first, first + n)])
    return seeds
