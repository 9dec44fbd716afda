"""The generation contract: one interface over transformers, and later vLLM and OpenAI-compatible endpoints. Imports no torch.

Sampled token ids are kept in every completion; text is never re-encoded to recover them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from safework_cli.data.row import Message

Conversation = Sequence[Message]
FinishReason = Literal["stop", "length"]


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
        logprobs_at: temperature at which log-probabilities are told. 1 is the model's own; a policy that is trained as it samples
            wants its own temperature here.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    logprobs_at: float = 1.0


@dataclass(slots=True)
class Completion:
    """One sampled continuation.

    Attributes:
        text: ``<think>thought</think>answer`` without other special tokens; it begins with ``<think>`` where the prompt opened the thought.
        token_ids: as sampled, the stop token included.
        logprobs: log-probability of each sampled token at the temperature ``Sampling.logprobs_at``, nucleus or not, (T,).
        finish_reason: "stop" (stop token or string) or "length".
        prompt_ids: the prompt as the model saw it.
    """

    text: str
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason
    prompt_ids: list[int] = field(default_factory=list)


class Engine(Protocol):
    """Anything that continues conversations.

    A conversation whose last message is from the assistant is continued *inside* that message (prefill); otherwise a new assistant
    turn is begun by the chat template.
    """

    def generate(self, conversations: Sequence[Conversation], sampling: Sampling, n: int = 1) -> list[list[Completion]]:
        """Returns n completions for each conversation, in order."""
        ...

    def score(self, conversations: Sequence[Conversation], completions: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of each token of given completions, shape (T,) each."""
        ...


def derived_seed(*parts: object) -> int:
    """A seed in [0, 2^63) for what the parts say: numbers, strings and lists of them, told apart by their ``repr``."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def completion_seeds(seed: int, prompts: Sequence[Sequence[int]], n: int = 1) -> list[list[int]]:
    """The seed of each completion, (prompts, n), where the caller gives none.

    It depends on the seed, the prompt's tokens and the completion's number among those of equal prompts, and on nothing else: neither
    the order of the prompts nor how they are cut into batches changes it. Listing a prompt n times is the same as asking for n.
    """
    seen: Counter[tuple[int, ...]] = Counter()
    seeds = []
    for prompt in map(tuple, prompts):
        first = seen[prompt]
        seen[prompt] += n
        seeds.append([derived_seed(seed, prompt, number) for number in range(first, first + n)])
    return seeds
