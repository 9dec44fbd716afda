"""A prompt on its way to an engine: its token ids, or why this one cannot be asked. One prompt's problem ends no run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from safework_cli.data.row import Message
from safework_cli.engines.protocol import Sampling
from safework_cli.models.chat_template import TemplateError, encode_prompt


class Asking(Protocol):
    """An engine with a tokenizer and a longest prompt, such as ``HFEngine``."""

    tokenizer: PreTrainedTokenizerBase

    def longest_prompt(self, sampling: Sampling) -> float: ...


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt as token ids.

    Attributes:
        prompt_ids: empty where the chat template refuses the conversation.
        problem: why it cannot be asked; None where it can.
        too_long: the problem is its length.
    """

    prompt_ids: list[int]
    problem: str | None = None
    too_long: bool = False


def ask_for(engine: Asking, messages: Sequence[Message], sampling: Sampling) -> Asked:
    """Encodes a prompt, and says where the template refuses it or it leaves no room for a whole reply."""
    try:
        prompt_ids = encode_prompt(engine.tokenizer, messages)
    except TemplateError as error:
        return Asked([], error.what)
    most = engine.longest_prompt(sampling)
    if len(prompt_ids) <= most:
        return Asked(prompt_ids)
    limit = most + sampling.max_tokens
    why = f"a prompt of {len(prompt_ids)} tokens and max_tokens={sampling.max_tokens} exceed the model's {limit:.0f} positions"
    return Asked(prompt_ids, why, too_long=True)
