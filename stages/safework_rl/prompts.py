"""The token ids of a run's prompts. Text is encoded once and kept; images are encoded when their step comes, by threads, while the step
before it runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedTokenizerBase

from safework_cli.data.row import Message, Row
from safework_cli.environments.search.grammar import episode_prompt
from safework_cli.models.chat_template import encode_prompt, prompt_tokens
from safework_cli.models.encodings import Encodings, tensor_bytes
from safework_cli.models.vision import Prompt


class Prompts:
    """Encodes the prompts of a run's rows: ``prompts(row)``.

    Args:
        processor: of a model with a vision tower.
        episodes: prompts begin with the instructions of search episodes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, processor: Any, *, episodes: bool = False):
        self._tokenizer, self._processor, self._episodes = tokenizer, processor, episodes
        self._texts: dict[str, Prompt] = {}
        self._with_images: Encodings[Row, Prompt] = Encodings(self._encode, tensor_bytes, lambda row: row.id)

    def __call__(self, row: Row) -> Prompt:
        """Token ids, and the input of the vision tower. Raises TemplateError for a prompt that cannot be encoded."""
        if row.images:
            return self._with_images(row)
        if row.id not in self._texts:
            self._texts[row.id] = self._encode(row)
        return self._texts[row.id]

    def length(self, row: Row) -> int:
        """Token ids of a prompt; its images are not decoded. Raises TemplateError as far as the files' headers show it."""
        return prompt_tokens(self._tokenizer, self._asked(row), row.images, self._processor) if row.images else len(self(row).ids)

    def ahead(self, rows: Iterable[Row]) -> None:
        """Begins to encode the images of rows whose prompts come next; returns at once."""
        self._with_images.ahead(row for row in rows if row.images)

    def _asked(self, row: Row) -> list[Message]:
        return episode_prompt(row.prompt) if self._episodes else row.prompt

    def _encode(self, row: Row) -> Prompt:
        return encode_prompt(self._tokenizer, self._asked(row), row.images, self._processor)
