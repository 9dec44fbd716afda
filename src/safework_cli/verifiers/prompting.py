"""From an exchange to the token ids that a label verifier reads.

The reply is hostile input: it may hold "<|im_end|>", a forged assistant turn or "</response>". So the template is rendered and tokenized
without it, its text is tokenized on its own, and whatever in it looks like a special token or one of our tags is broken by a zero-width
space first. No token of a reply can be a control token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from safework_cli.errors import ConfigError
from safework_cli.lm.chat import encode_text, render
from safework_cli.rows import Message
from safework_cli.verifiers.contract import Exchange
from safework_cli.verifiers.spec import QUERY, RESPONSE, LabelSpec

BREAK = "\u200b"  # zero-width space: the text still reads the same
MARKS = {QUERY: "\ue0f1query\ue0f1", RESPONSE: "\ue0f2response\ue0f2"}
GAP = "\n[…]\n"
MIN_CONTENT_TOKENS = 16
_TAG = re.compile(r"<(?=/?\s*(?:text_query|response)\b)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """Token ids to judge from, and how many tokens of query and reply had to be left out."""

    ids: list[int]
    left_out: int


def query_text(messages: Sequence[Message]) -> str:
    """What was asked: the user's message, or the whole dialogue with its speakers where there are several turns."""
    turns = [m for m in messages if m["role"] != "system"]
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in turns)


def cut_middle(ids: list[int], limit: int, gap: list[int]) -> list[int]:
    """At most ``limit`` ids: head and tail in equal parts with ``gap`` between, because refusals open a reply and harm may close it."""
    if len(ids) <= limit:
        return ids
    room = max(limit - len(gap), 0)
    head = room - room // 2
    return ids[:head] + gap[: limit - room] + ids[len(ids) - room // 2 :]


class PromptWriter:
    """Writes judge prompts of one verifier.

    Raises:
        ConfigError: the chat template loses the user's message, or ``max_length`` leaves no room for a reply.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, spec: LabelSpec):
        self.tokenizer, self.max_length = tokenizer, spec.max_length
        special = sorted({t.content for t in tokenizer.added_tokens_decoder.values() if t.content.strip()}, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special))) if special else None
        user = spec.template.replace(QUERY, MARKS[QUERY]).replace(RESPONSE, MARKS[RESPONSE])
        text = _render(tokenizer, spec.system, user)
        parts = re.split("|".join(map(re.escape, MARKS.values())), text)
        if len(parts) != 3:
            raise ConfigError("the chat template does not keep the user's message", "a judge would not see what it judges")
        self._before, self._between, self._after = (encode_text(tokenizer, part) for part in parts)
        self._gap = encode_text(tokenizer, GAP)
        self.static_tokens = len(self._before) + len(self._between) + len(self._after)
        self.room = self.max_length - self.static_tokens
        if self.room < MIN_CONTENT_TOKENS:
            raise ConfigError(
                f"max_length {self.max_length} leaves {max(self.room, 0)} tokens for query and reply",
                f"the instruction alone takes {self.static_tokens}",
                f"max_length={self.static_tokens + 256}, or instruction=short",
            )

    def write(self, exchange: Exchange) -> JudgePrompt:
        """The prompt of one exchange; its final answer is judged, never its thought."""
        query = self.content_ids(query_text(exchange.messages))
        reply = self.content_ids(exchange.final)
        kept_query, kept_reply = query, reply
        if len(query) + len(reply) > self.room:  # the reply is what is judged: the query gives way first, down to a third of the room
            kept_query = cut_middle(query, max(self.room // 3, self.room - len(reply)), self._gap)
            kept_reply = cut_middle(reply, self.room - len(kept_query), self._gap)
        left_out = len(query) + len(reply) - len(kept_query) - len(kept_reply)
        return JudgePrompt(self._before + kept_query + self._between + kept_reply + self._after, left_out)

    def content_ids(self, text: str) -> list[int]:
        """Token ids of untrusted text; none of them is a special token."""
        text = _TAG.sub(f"<{BREAK}", text)
        if self._special is not None:
            text = self._special.sub(lambda match: match[0][0] + BREAK + match[0][1:], text)
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def _render(tokenizer: PreTrainedTokenizerBase, system: str, user: str) -> str:
    """The template's text; where the template knows no system role (Gemma's raises), the system message opens the user's."""
    asked = Message(role="user", content=user)
    if not system:
        return render(tokenizer, [asked], generation_prompt=True)
    try:
        return render(tokenizer, [Message(role="system", content=system), asked], generation_prompt=True)
    except TemplateError:
        return render(tokenizer, [Message(role="user", content=f"{system}\n\n{user}")], generation_prompt=True)


def code_token_ids(tokenizer: PreTrainedTokenizerBase, spec: LabelSpec) -> list[int]:
    """The token that stands for each label: the first of its code, as sampled right after the generation prompt.

    Raises:
        ConfigError: a code has no token of its own, or two codes begin with the same one, so that no reading could tell their labels apart.
    """
    seen: dict[int, str] = {}
    for label, code in zip(spec.labels, spec.codes, strict=True):
        ids = encode_text(tokenizer, code)
        if not ids or ids[0] == tokenizer.unk_token_id:
            raise ConfigError(f"the tokenizer has no token for the code '{code}' of label '{label}'", "", "choose another code")
        if ids[0] in seen:
            raise ConfigError(
                f"labels '{seen[ids[0]]}' and '{label}' begin with the same token {tokenizer.convert_ids_to_tokens(ids[0])!r}",
                "probabilities are read from the first token, which cannot tell them apart",
                "choose codes such as A, B, C",
            )
        seen[ids[0]] = label
    return list(seen)
