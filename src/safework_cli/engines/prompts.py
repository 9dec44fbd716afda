"""A conversation as the token ids of a prompt, or why it cannot be used as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from safework_cli.data.row import Image, Message
from safework_cli.engines.protocol import Completion, Sampling, TokenEngine
from safework_cli.models.chat_template import encode_prompt
from safework_cli.models.rendering import TemplateError
from safework_cli.models.vision import Vision


class HasTokenizer(Protocol):
    """The part of a ``TokenEngine`` that encoding needs."""

    tokenizer: PreTrainedTokenizerBase
    processor: Any

    def longest_prompt(self, sampling: Sampling) -> float: ...


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as token ids.

    Attributes:
        prompt_ids: empty if the chat template refuses the conversation.
        problem: why the prompt cannot be used; None if it can.
        too_long: the problem is its length.
        vision: what its images are encoded to; None where it has none.
    """

    prompt_ids: list[int]
    problem: str | None = None
    too_long: bool = False
    vision: Vision | None = None

    def refusal(self) -> Completion:
        """The completion of a prompt that has a problem."""
        return Completion("", [], [], "too_long" if self.too_long else "refused", self.prompt_ids, error=self.problem)


def continued(
    prompts: Sequence[EncodedPrompt],
    begun: Sequence[Sequence[int]],
    engine: TokenEngine,
    sampling: Sampling,
    n: int,
    seeds: Sequence[Sequence[int]],
) -> list[list[Completion]]:
    """n continuations of each prompt and of what its reply has so far, with the prompt's images."""
    visions = [prompt.vision for prompt in prompts]
    with_images: dict[str, Any] = {"visions": visions} if any(visions) else {}
    asked = [prompt.prompt_ids + list(ids) for prompt, ids in zip(prompts, begun, strict=True)]
    return engine.generate_ids(asked, sampling, n, seeds=seeds, **with_images)


def encode_for(
    engine: HasTokenizer, messages: Sequence[Message], sampling: Sampling, images: Sequence[Image] = (), setting: str = "max_tokens"
) -> EncodedPrompt:
    """Encodes a prompt; one that the template refuses, or that leaves no room for ``max_tokens``, comes back with its problem.

    Args:
        setting: what the user calls ``max_tokens``.
    """
    try:
        prompt_ids, vision = encode_prompt(engine.tokenizer, messages, images, engine.processor if images else None)
    except TemplateError as error:
        return EncodedPrompt([], error.what)
    longest = engine.longest_prompt(sampling)
    if len(prompt_ids) <= longest:
        return EncodedPrompt(prompt_ids, vision=vision)
    limit = longest + sampling.max_tokens
    why = f"the prompt's tokens and {setting}={sampling.max_tokens} exceed the model's {limit:.0f} positions"  # alike for all: counted
    return EncodedPrompt(prompt_ids, why, too_long=True)
