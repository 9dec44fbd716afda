"""From a conversation to what an engine is asked: one builder for ``safework eval`` and for Inspect's provider.

Each reply draws with a seed of its own, derived from the run's seed, the sample and its epoch, and the prompt: neither the other prompts of
its batch nor the time at which it is asked for change it (up to the rounding of a batch).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from safework_cli.data.row import Image, Message
from safework_cli.engines.protocol import Completion, Engine, Sampling, TokenEngine, derived_seed
from safework_eval.samples import RecordedReply

if TYPE_CHECKING:
    from typing import TypeGuard

Key = TypeVar("Key", bound=Hashable)
SampleId = tuple[str, int]
"""(id, epoch)"""


def has_token_ids(engine: Engine) -> TypeGuard[TokenEngine]:
    """Whether the engine works with token ids; a server does not."""
    return hasattr(engine, "generate_ids")


@dataclass(frozen=True, slots=True)
class ReplyRequest:
    """A prompt that an engine is asked.

    Attributes:
        messages: the conversation.
        prompt_ids: its token ids; empty for a server, and if the chat template refuses the conversation.
        seed: from which the seeds of its completions are derived.
        problem: why it cannot be asked; None if it can.
        too_long: the problem is its length.
        images: of the conversation; they are encoded again when it is asked, so that those of a whole suite are never in memory.
    """

    messages: list[Message]
    prompt_ids: list[int]
    seed: int
    problem: str | None = None
    too_long: bool = False
    images: Sequence[Image] = field(default=())

    def seeds(self, n: int = 1, first: int = 0) -> list[int]:
        """The seeds of n completions, beginning with completion number ``first``."""
        return [derived_seed(self.seed, number) for number in range(first, first + n)]

    def refusal(self) -> RecordedReply:
        """The record of a prompt that cannot be asked."""
        return RecordedReply("", 0, len(self.prompt_ids), "model_length" if self.too_long else "unknown", self.problem)


def build_request(
    engine: Engine,
    messages: Sequence[Message],
    sampling: Sampling,
    sample: SampleId | None,
    images: Sequence[Image] = (),
    setting: str = "max_tokens",
) -> ReplyRequest:
    """What an engine is asked for one reply.

    Args:
        sampling: ``max_tokens`` limits the prompt's length, ``seed`` is the run's.
        sample: id and epoch; None for a request outside any task.
        setting: what the user calls ``max_tokens``, for the message about a prompt that leaves no room for it.
    """
    if not has_token_ids(engine):
        text = [[message["role"], message["content"]] for message in messages]
        return ReplyRequest(list(messages), [], derived_seed(sampling.seed, sample, text), images=images)
    from safework_cli.engines.prompts import encode_for

    prompt = encode_for(engine, messages, sampling, images, setting)
    seed = derived_seed(sampling.seed, sample, list(prompt.prompt_ids))
    return ReplyRequest(list(messages), list(prompt.prompt_ids), seed, prompt.problem, prompt.too_long, images)


def batches_of(requests: Mapping[Key, ReplyRequest], batch_size: int) -> list[list[Key]]:
    """The keys of all requests that can be asked, in whole batches of similar lengths. The same requests give the same batches."""
    order = [key for key, request in requests.items() if request.problem is None]
    order.sort(key=lambda key: (len(requests[key].prompt_ids), requests[key].prompt_ids))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def complete(
    engine: Engine, requests: Sequence[ReplyRequest], sampling: Sampling, seeds: Sequence[Sequence[int]]
) -> list[list[Completion]]:
    """The completions of each request, one for each of its seeds; all requests have equally many."""
    images = [request.images for request in requests]
    with_images: dict[str, Any] = {"images": images} if any(images) else {}
    return engine.generate([request.messages for request in requests], sampling, len(seeds[0]), seeds=seeds, **with_images)


def record_of(completion: Completion) -> RecordedReply:
    """A completion as the evaluation keeps it."""
    reason = {"too_long": "model_length", "refused": "unknown"}.get(completion.finish_reason, completion.finish_reason)
    return RecordedReply(completion.text, completion.tokens, completion.prompt_tokens, reason, completion.error)
