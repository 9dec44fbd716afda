"""What engines with token ids share: how a conversation becomes a prompt, how long it may be, and the text of a reply."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from safework_cli.core.errors import InputError
from safework_cli.data.row import Image, Message
from safework_cli.engines.prompts import encode_for
from safework_cli.engines.protocol import Completion, Conversation, Sampling
from safework_cli.models.chat_template import instructed, missing_generation_prompt
from safework_cli.models.load import stop_token_ids, template_hash
from safework_cli.models.thoughts import ThoughtReader


class OverTokens(ABC):
    """The part of a ``TokenEngine`` that does not depend on what computes the replies.

    Args:
        settings: the model, or its generation configuration: the tokens that end its turns.
        batch_size: conversations that are worth passing in one call.
        processor: of the model, where images are to be read.

    Raises:
        InputError: the chat template has no generation prompt.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        settings: PreTrainedModel | GenerationConfig | None,
        batch_size: int,
        processor: Any = None,
    ):
        self.tokenizer, self.batch_size, self.processor = tokenizer, batch_size, processor
        self.stop_ids = stop_token_ids(tokenizer, settings)
        self._reader = ThoughtReader(tokenizer)
        if missing := missing_generation_prompt(tokenizer):
            raise InputError(
                f"the model's chat template has no generation prompt: it ignores add_generation_prompt and never writes {missing!r}",
                "the model would continue the user's message, or open a turn of its own",
                "add the generation prompt to chat_template.jinja",
            )

    @property
    @abstractmethod
    def positions(self) -> int | None:
        """Of the model, for prompt and reply together; None where it has no limit."""

    @property
    def template_hash(self) -> str:
        """See ``Engine.template_hash``."""
        return template_hash(self.tokenizer)

    def with_system(self, system: str, messages: Sequence[Message]) -> list[Message]:
        """See ``Engine.with_system``."""
        return instructed(self.tokenizer, system, messages)

    def generate(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        n: int = 1,
        seeds: Sequence[Sequence[int]] | None = None,
        images: Sequence[Sequence[Image]] | None = None,
    ) -> list[list[Completion]]:
        """See ``Engine.generate``."""
        own_images: Sequence[Sequence[Image]] = images or [()] * len(conversations)
        prompts = [encode_for(self, asked, sampling, own) for asked, own in zip(conversations, own_images, strict=True)]
        places = [place for place, prompt in enumerate(prompts) if prompt.problem is None]
        own_seeds = None if seeds is None else [seeds[place] for place in places]
        visions: dict[str, Any] = {"visions": [prompts[i].vision for i in places]} if images else {}
        drawn = self.generate_ids([prompts[i].prompt_ids for i in places], sampling, n, seeds=own_seeds, **visions)
        made = dict(zip(places, drawn, strict=True))
        return [made[place] if place in made else [prompt.refusal() for _ in range(n)] for place, prompt in enumerate(prompts)]

    @abstractmethod
    def generate_ids(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        n: int = 1,
        visions: Sequence[Any] | None = None,
        seeds: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Completion]]:
        """See ``TokenEngine.generate_ids``."""

    @abstractmethod
    def score(self, conversations: Sequence[Conversation], completions: Sequence[Sequence[int]]) -> list[list[float]]:
        """See ``TokenEngine.score``."""

    def text_of(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> str:
        """The text of a reply to a prompt, with the thought's tags (``models.thoughts``). Join the ids of parts, never their texts."""
        return self._reader.text_of(prompt_ids, token_ids)

    def longest_prompt(self, sampling: Sampling) -> float:
        """See ``TokenEngine.longest_prompt``."""
        return math.inf if self.positions is None else self.positions - sampling.max_tokens

    def _check_lengths(self, prompts: Sequence[list[int]], sampling: Sampling) -> None:
        longest = max(map(len, prompts), default=0)
        if longest > (most := self.longest_prompt(sampling)):
            raise InputError(
                f"a prompt of {longest} tokens and max_tokens={sampling.max_tokens} exceed the model's {self.positions} positions",
                f"at most {most:g} tokens of a prompt leave room",
                "lower max_tokens, or drop over-long prompts in the data build",
            )
