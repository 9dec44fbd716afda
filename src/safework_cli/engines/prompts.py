"""A conversation as the token ids of a prompt, or why it cannot be used as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from safework_cli.data.row import Message
from safework_cli.engines.protocol import Completion, Sampling
from safework_cli.models.chat_template import TemplateError, encode_prompt


class HasTokenizer(Protocol):
    """The part of a ``TokenEngine`` that encoding needs."""

    tokenizer: PreTrainedTokenizerBase

    def longest_prompt(self, sampling: Sampling) -> float: ...


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as token ids.

    Attributes:
        prompt_ids: empty if the chat template refuses the conversation.
        problem: why the prompt cannot be used; None if it can.
        too_long: the problem is its length.
    """

    prompt_ids: list[int]
    problem: str | None = None
    too_long: bool = False

    def refusal(self) -> Completion:
        """The completion of a prompt that has a problem."""
        return Completion("", [], [], "too_long" if self.too_long else "refused", self.prompt_ids, error=self.problem)


def encode_for(engine: HasTokenizer, messages: Sequence[Message], sampling: Sampling) -> EncodedPrompt:
    """Encodes a prompt; one that the template refuses, or that leaves no room for ``max_tokens``, comes back with its problem."""
    try:
        prompt_ids = encode_prompt(engine.tokenizer, messages)
    except TemplateError as error:
        return EncodedPrompt([], error.what)
    longest = engine.longest_prompt(sampling)
    if len(prompt_ids) <= longest:
        return EncodedPrompt(prompt_ids)
    limit = longest + sampling.max_tokens
    why = f"a prompt of {len(prompt_ids)} tokens and max_tokens={sampling.max_tokens} exceed the model's {limit:.0f} positions"
    return EncodedPrompt(prompt_ids, why, too_long=True)
