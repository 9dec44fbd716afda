"""From an exchange to the token ids that a label verifier reads.

The reply is hostile input: it may hold "<|im_end|>", a forged assistant turn or "</response>". So the template is rendered and tokenized
without it, its text is tokenized on its own, and whatever in it looks like a special token or one of our tags is broken by a zero-width
space first. No token of a reply can be a control token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from safework_cli.core.errors import ConfigError
from safework_cli.data.images import TAG
from safework_cli.data.row import Image, Message
from safework_cli.data.text_safety import BREAK
from safework_cli.models.chat_template import encode_text, instructed
from safework_cli.models.rendering import render
from safework_cli.models.vision import Prompt, Vision, prompt_with_images
from safework_cli.verifiers.contract import Exchange
from safework_cli.verifiers.image_text import as_read
from safework_cli.verifiers.spec import QUERY, REFERENCE, RESPONSE, WARNING, LabelSpec
from safework_cli.verifiers.verdicts import template_for, unreadable, warning_of

MARKS = {QUERY: "\ue0f1query\ue0f1", REFERENCE: "\ue0f3reference\ue0f3", WARNING: "\ue0f4warning\ue0f4", RESPONSE: "\ue0f2response\ue0f2"}
GAP = "\n[…]\n"
MIN_CONTENT_TOKENS = 16
_TAG = re.compile(r"<(?=/?\s*(?:text_query|reference|response)\b)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """Token ids to judge from.

    Attributes:
        left_out: how many tokens of query and reply did not fit.
        vision: what the vision tower takes.
        opening: how many of the first tokens every prompt of the template has; 0 with images.
    """

    ids: list[int]
    left_out: int = 0
    vision: Vision | None = None
    opening: int = 0


def query_text(messages: Sequence[Message]) -> str:
    """What was asked: the user's message, or the whole dialogue with its speakers where there are several turns."""
    turns = [m for m in messages if m["role"] != "system"]
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in turns)


def broken_tags(text: str) -> str:
    """Untrusted text in which none of our tags is whole."""
    return _TAG.sub(f"<{BREAK}", text)


def cut_middle(ids: list[int], limit: int, gap: list[int]) -> list[int]:
    """At most ``limit`` ids: head and tail in equal parts with ``gap`` between, because refusals open a reply and harm may close it."""
    if len(ids) <= limit:
        return ids
    room = max(limit - len(gap), 0)
    head = room - room // 2
    return ids[:head] + gap[: limit - room] + ids[len(ids) - room // 2 :]


class _Form:
    """A rendered template: fixed token ids with the places between them that an exchange fills."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system: str, template: str):
        self.tokenizer, self.system, self.user = tokenizer, system, template
        for place, mark in MARKS.items():
            self.user = self.user.replace(place, mark)
        text = _render(tokenizer, system, self.user)
        pieces = re.split(f"({'|'.join(map(re.escape, MARKS.values()))})", text)
        names = {mark: place for place, mark in MARKS.items()}
        self.places = [names[mark] for mark in pieces[1::2]]
        if sorted(self.places) != sorted(place for place in MARKS if place in template):
            raise ConfigError("the chat template does not keep the user's message", "a judge would not see what it judges")
        self.fixed = [encode_text(tokenizer, part) for part in pieces[::2]]
        self.fixed_tokens = sum(map(len, self.fixed))

    def opening_with(self, images: Sequence[Image], processor: Any) -> Prompt:
        """The beginning of the prompt up to the first place, with images first in the user's message.

        Raises:
            InputError: the chat template has no place for images, or the processor refuses one.
        """
        first = min((self.user.find(mark), mark) for mark in MARKS.values() if mark in self.user)[1]
        text = _render(self.tokenizer, self.system, f"{TAG}" * len(images) + self.user, images=True)
        return prompt_with_images(processor, text[: text.index(first)], images)

    def filled(self, contents: dict[str, list[int]], opening: list[int] | None = None) -> list[int]:
        """The complete prompt; ``opening`` replaces the text before the first place if it contains images."""
        ids = list(self.fixed[0] if opening is None else opening)
        for place, after in zip(self.places, self.fixed[1:], strict=True):
            ids += contents[place] + after
        return ids


class PromptWriter:
    """Writes judge prompts of one verifier. Images of the query come first in the user's message.

    Args:
        processor: of a vision-language backbone; without it an exchange with images cannot be judged.

    Raises:
        ConfigError: the chat template loses the user's message, or ``max_length`` leaves no room for a reply.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, spec: LabelSpec, processor: Any = None):
        self.tokenizer, self.spec, self.max_length, self.processor = tokenizer, spec, spec.max_length, processor
        special = sorted({t.content for t in tokenizer.added_tokens_decoder.values() if t.content.strip()}, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special))) if special else None
        self._plain = _Form(tokenizer, spec.system, spec.template)
        self._strict = _Form(tokenizer, spec.system, spec.strict_template) if spec.strict_template else None
        self._gap = encode_text(tokenizer, GAP)
        longest = max(form.fixed_tokens for form in (self._plain, self._strict) if form)
        if self.max_length - longest < MIN_CONTENT_TOKENS:
            raise ConfigError(
                f"max_length {self.max_length} leaves {max(self.max_length - longest, 0)} tokens for query and reply",
                f"the instruction already takes {longest}",
                f"max_length={longest + 256}, or instruction=short",
            )

    def unreadable(self, exchange: Exchange) -> str | None:
        """Why the exchange cannot be judged, or None."""
        return unreadable(self.spec, exchange, has_vision=self.processor is not None)

    def write(self, exchange: Exchange) -> JudgePrompt:
        """The prompt of one exchange; its final answer is judged, never its thought.

        Raises:
            InputError: see ``_Form.opening_with``.
        """
        exchange = as_read(self.spec, exchange, has_vision=self.processor is not None)
        form = self._form(exchange)
        opening, vision = form.opening_with(exchange.images, self.processor) if exchange.images else Prompt(form.fixed[0])
        texts = {
            QUERY: query_text(exchange.messages),
            REFERENCE: exchange.answer or "",
            WARNING: warning_of(exchange),
            RESPONSE: exchange.final,
        }
        if exchange.images:
            texts[QUERY] = texts[QUERY].replace(TAG, "").strip()
        contents = {place: self.content_ids(texts[place]) for place in form.places}
        whole = sum(map(len, contents.values()))
        room = max(self.max_length - form.fixed_tokens - len(opening) + len(form.fixed[0]), MIN_CONTENT_TOKENS)
        # The reply is judged: the others are truncated first, each to a third of the remaining length.
        for place in (QUERY, REFERENCE, WARNING):
            if place in contents and (over := sum(map(len, contents.values())) - room) > 0:
                contents[place] = cut_middle(contents[place], max(room // 3, len(contents[place]) - over), self._gap)
        over = sum(map(len, contents.values())) - room
        if over > 0:
            contents[RESPONSE] = cut_middle(contents[RESPONSE], len(contents[RESPONSE]) - over, self._gap)
        shared = 0 if exchange.images else len(opening)
        return JudgePrompt(form.filled(contents, opening), whole - sum(map(len, contents.values())), vision, shared)

    def _form(self, exchange: Exchange) -> _Form:
        """The strict reading where an attack is known to hide what is asked."""
        return self._strict if self._strict and template_for(self.spec, exchange) is self.spec.strict_template else self._plain

    def content_ids(self, text: str) -> list[int]:
        """Token ids of untrusted text; never those of special tokens."""
        text = broken_tags(text)
        if self._special is not None:
            text = self._special.sub(lambda match: match[0][0] + BREAK + match[0][1:], text)
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def _render(tokenizer: PreTrainedTokenizerBase, system: str, user: str, *, images: bool = False) -> str:
    asked = instructed(tokenizer, system, [Message(role="user", content=user)])
    return render(tokenizer, asked, generation_prompt=True, images=images)


def code_token_ids(tokenizer: PreTrainedTokenizerBase, spec: LabelSpec) -> list[int]:
    """The token that stands for each label: the first of its code, as sampled right after the generation prompt.

    Raises:
        ConfigError: a code has no token of its own, or two codes begin with the same one, so that no reading could tell their labels apart.
    """
    label_of: dict[int, str] = {}
    for label, ids in zip(spec.labels, _code_ids(tokenizer, spec), strict=True):
        if ids[0] in label_of:
            raise ConfigError(
                f"labels '{label_of[ids[0]]}' and '{label}' begin with the same token {tokenizer.convert_ids_to_tokens(ids[0])!r}",
                "probabilities are read from the first token, which cannot tell them apart",
                "choose codes such as A, B, C, or code_reading: whole for a judge that writes its labels out",
            )
        label_of[ids[0]] = label
    return list(label_of)


def code_sequences(tokenizer: PreTrainedTokenizerBase, spec: LabelSpec) -> list[list[int]]:
    """The tokens of each code with the end of the turn: no sequence is the beginning of another.

    Raises:
        ConfigError: a code has no tokens, two have the same ones, or the tokenizer has no token that ends a turn.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            "the tokenizer has no end-of-turn token", "where a label ends could not be read", "set eos_token, or code_reading: first"
        )
    sequences = _code_ids(tokenizer, spec)
    for place, ids in enumerate(sequences):
        if ids in sequences[:place]:
            other = spec.labels[sequences.index(ids)]
            raise ConfigError(f"labels '{other}' and '{spec.labels[place]}' are written with the same tokens", "", "choose other codes")
    return [[*ids, tokenizer.eos_token_id] for ids in sequences]


def _code_ids(tokenizer: PreTrainedTokenizerBase, spec: LabelSpec) -> list[list[int]]:
    sequences = [encode_text(tokenizer, code) for code in spec.codes]
    for label, code, ids in zip(spec.labels, spec.codes, sequences, strict=True):
        if not ids or ids[0] == tokenizer.unk_token_id:
            raise ConfigError(f"the tokenizer has no token for the code '{code}' of label '{label}'", "", "choose another code")
    return sequences
