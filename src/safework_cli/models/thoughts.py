"""Token ids of a reply to its text, with the thought's tags: the one place that knows how a model family writes a thought.

Everything after this speaks one format, ``<think>thought</think>answer`` (``rows.parse_reply``). Families differ in three ways:
- the chat template opens the thought in the prompt, so the reply holds the closing tag only (DeepSeek-R1-Distill, Qwen3-Thinking);
- the tags are special tokens, which decoding would skip (verl-project/verl#1724);
- the tags are others (Magistral, Kimi, Seed-OSS, gpt-oss, Gemma 4).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from transformers import PreTrainedTokenizerBase

from safework_cli.data.reply import THINK_CLOSE, THINK_OPEN

TAIL_TOKENS = 24
"""Tokens of a prompt's end that are looked at: an opened thought is its last word, white space aside."""


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The tokenizer's special tokens as text, for ``text_safety.disarmed``."""
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def reader_of(tokenizer: PreTrainedTokenizerBase) -> ThoughtReader:
    """The reader of a tokenizer, made once for the tokens that it has: many rows ask for it."""
    return _reader(tokenizer, len(tokenizer))


@lru_cache(maxsize=8)
def _reader(tokenizer: PreTrainedTokenizerBase, tokens: int) -> ThoughtReader:
    return ThoughtReader(tokenizer)


@dataclass(frozen=True, slots=True)
class Marks:
    """How a family writes the beginning and the end of a thought, as regular expressions over text that keeps special tokens."""

    token: str
    """A token that only this family's tokenizers have."""
    opening: str
    closing: str
    noise: str = r"(?!)"
    """Control text of the family that is neither thought nor answer."""


_HARMONY_START = r"(?:<\|start\|>assistant)?(?: to=\S+)?"
FAMILIES = (
    Marks("[THINK]", r"\[THINK\]", r"\[/THINK\]"),  # Magistral
    Marks("◁think▷", "◁think▷", "◁/think▷"),  # Kimi
    Marks("<seed:think>", "<seed:think>", "</seed:think>"),  # Seed-OSS
    Marks("<|channel>", r"<\|channel>thought\n?", r"\n?<channel\|>"),  # Gemma 4
    Marks(
        "<|channel|>",  # gpt-oss
        _HARMONY_START + r"<\|channel\|>analysis<\|message\|>",
        r"<\|end\|>" + _HARMONY_START + r"<\|channel\|>final(?: <\|constrain\|>\w+)?<\|message\|>",
        r"^" + _HARMONY_START + r"<\|channel\|>final<\|message\|>",
    ),
)


class ThoughtReader:
    """Reads replies of one tokenizer.

    Attributes:
        families: those of ``FAMILIES`` whose tokens the tokenizer has.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        added = {token.content: (number, token.special) for number, token in tokenizer.added_tokens_decoder.items()}
        self.families = [marks for marks in FAMILIES if marks.token in added]
        tags = {added[tag][0] for tag in (THINK_OPEN, THINK_CLOSE) if tag in added}
        special = {number for number, is_special in added.values() if is_special}
        self._control = (special | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id, *tags}

    @cached_property
    def _family_control(self) -> set[int]:
        """Special tokens that no family's marks are made of: safe to drop before the marks are read."""
        words = "".join(m.opening + m.closing + m.noise for m in self.families).replace("\\", "")
        return {number for number in self._control if str(self._tokenizer.convert_ids_to_tokens(number)) not in words}

    @property
    def control_ids(self) -> set[int]:
        """Special tokens other than a thought's tags: what a reply's own text must never hold."""
        return self._control

    def opened(self, prompt_ids: Sequence[int]) -> bool:
        """Whether a prompt ends inside a thought that it has just opened."""
        tail = str(self._tokenizer.decode(list(prompt_ids[-TAIL_TOKENS:]), skip_special_tokens=False)).rstrip()
        return self._canonical(tail).endswith(THINK_OPEN)

    def text_of(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> str:
        """The text of a reply, or of as much of it as there is.

        Args:
            prompt_ids: what stands before it; where that opens a thought, the text begins with ``<think>``.
            token_ids: the whole reply from its first token: text that is put together from separately decoded parts would lose characters
                that lie across them.
        """
        dropped = self._family_control if self.families else self._control
        kept = [token for token in token_ids if token not in dropped]
        text = self._canonical(str(self._tokenizer.decode(kept, skip_special_tokens=False)))
        if self.families:
            left = [str(self._tokenizer.convert_ids_to_tokens(number)) for number in self._control - dropped]
            text = re.sub("|".join(map(re.escape, left)), "", text) if left else text
        return THINK_OPEN + text if self.opened(prompt_ids) else text

    def _canonical(self, text: str) -> str:
        for marks in self.families:
            text = re.sub(marks.noise, "", re.sub(marks.closing, THINK_CLOSE, re.sub(marks.opening, THINK_OPEN, text)))
        return text
