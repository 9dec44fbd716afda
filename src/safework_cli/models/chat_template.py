"""Conversations to token ids, in one place, so that training, generation and judging see the same tokens.

What a model says is never read from the template's rendering of it: many templates drop or rearrange a thought (DeepSeek-R1-Distill,
Qwen3). An assistant turn is what generation would have sampled: the tokens after the generation prompt, and the template's end of turn.
Later turns are appended to it, as a search episode or an agent's loop appends them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from safework_cli.core.errors import InputError
from safework_cli.data.reply import THINK_CLOSE, THINK_OPEN
from safework_cli.data.row import Message
from safework_cli.models.thoughts import reader_of

TEMPLATE_DATE = date(2024, 7, 26)
"""What templates that print today's date are given (Llama 3.2, gpt-oss): a model's prompts must not change from day to day. The value is
the default of Llama 3.2's own template."""
_ANCHOR = "\u241fAnchor\u241f"
"""Stands for a reply's text, which is never rendered: both cases, so that a template that changes letters is noticed."""
_MARKS = re.compile(rf"{THINK_OPEN}|{THINK_CLOSE}|\s+")
_OPENED = re.compile(rf"{THINK_OPEN}\s*$")
_NOW = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


@dataclass(slots=True)
class Encoded:
    """A tokenized conversation.

    Attributes:
        input_ids: (T,)
        supervised: (T,) True on the tokens that a policy would have sampled: assistant content and its stop token.
        marked: the first token of the marked word and the token after its last one; None where no word is marked.
    """

    input_ids: list[int]
    supervised: list[bool]
    marked: tuple[int, int] | None = None


class TemplateError(InputError):
    """A conversation that the model's chat template refuses, changes or drops. Stages with many rows count it as a drop reason."""


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
    """The template's text, on ``TEMPLATE_DATE``.

    Raises:
        TemplateError: the template raises, as Gemma's does for a system message.
    """
    plain = [{"role": message["role"], "content": message["content"]} for message in messages]
    try:
        template = with_fixed_date(tokenizer.get_chat_template())
        text = tokenizer.apply_chat_template(plain, chat_template=template, tokenize=False, add_generation_prompt=generation_prompt)
    except MemoryError:
        raise
    except Exception as error:  # a template is a program of somebody else's: jinja2's errors, and whatever its filters raise
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        roles = ", ".join(message["role"] for message in messages)
        raise TemplateError(f"the chat template refuses it: {why}", f"its roles are {roles}") from None
    assert isinstance(text, str)
    return text


@lru_cache(maxsize=64)
def with_fixed_date(template: str) -> str:
    """A template that prints ``TEMPLATE_DATE`` instead of today's date (transformers passes data only: the date is written in)."""
    return _NOW.sub(lambda match: json.dumps(TEMPLATE_DATE.strftime(match[2])), template)


def shows_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template prints the date."""
    return "strftime_now" in str(tokenizer.chat_template)


def dated(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """For a manifest's seeds: what the template's date is fixed to, where it prints one."""
    return {"date in the chat template": TEMPLATE_DATE.isoformat()} if shows_date(tokenizer) else {}


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of text that the template wrote: special tokens are parsed, none is added (no double BOS)."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """The ids after which a reply begins; with a last assistant message, the ids after which that message goes on.

    Raises:
        TemplateError: the template refuses the conversation, or drops what the user says.
    """
    if messages[-1]["role"] != "assistant":
        return encode_text(tokenizer, _asked(tokenizer, messages))
    prefix = _asked(tokenizer, messages[:-1])
    return encode_text(tokenizer, prefix) + encode_text(tokenizer, after_opening(prefix, messages[-1]["content"]))


def instructed(tokenizer: PreTrainedTokenizerBase, system: str, messages: Sequence[Message]) -> list[Message]:
    """A conversation under an instruction of ours: a system message, or the beginning of the user's where the template takes no system
    message (Gemma's raises)."""
    if not system:
        return list(messages)
    with_system = [Message(role="system", content=system), *messages]
    try:
        render(tokenizer, with_system, generation_prompt=True)
    except TemplateError:
        first, *others = messages
        return [Message(role=first["role"], content=f"{system}\n\n{first['content']}"), *others]
    return with_system


def _asked(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """The text of a prompt, generation prompt included."""
    text = render(tokenizer, messages, generation_prompt=True)
    if messages and messages[-1]["content"].strip() not in text:
        raise TemplateError(
            f"the chat template drops or changes what the {messages[-1]['role']} says",
            "the model would get another prompt; templates of some vision-language models take only lists of parts, not plain text",
            "choose another template with chat_template=…, or another model",
        )
    return text


def missing_generation_prompt(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What the template writes before a reply and leaves out of its prompts, where it has no generation prompt at all."""
    asked = [Message(role="user", content="?")]
    try:
        before = render(tokenizer, [*asked, Message(role="assistant", content=_ANCHOR)])
        before = _MARKS.sub("", before[: _place(before)])
        prompts = [_MARKS.sub("", render(tokenizer, asked, generation_prompt=given)) for given in (False, True)]
    except TemplateError:
        return None  # each row says why
    return before.removeprefix(prompts[1]) if prompts[0] == prompts[1] != before and before.startswith(prompts[1]) else None


def after_opening(prefix: str, content: str) -> str:
    """A reply's text as it follows a generation prompt: without the ``<think>`` that the prompt holds already."""
    if not _OPENED.search(prefix):
        return content
    bare = content.lstrip()
    return bare.removeprefix(THINK_OPEN).lstrip() if bare.startswith(THINK_OPEN) else content


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], stop_ids: Sequence[int], mark: tuple[int, int] | None = None
) -> Encoded:
    """Tokenizes a whole conversation with its supervision mask.

    Args:
        stop_ids: tokens that may end a turn; each assistant turn must end in one of them.
        mark: character offsets of a word in the content of the last assistant message.

    Raises:
        TemplateError: the template refuses the conversation, changes what an assistant says, writes something before a reply that its
            generation prompt lacks, opens a thought that the reply does not close, or closes a turn without a stop token; or a reply
            writes a control token; or the marked word is not in the text that is trained on.
    """
    marked: tuple[int, int] | None = None
    control = reader_of(tokenizer).control_ids | set(stop_ids)
    input_ids: list[int] = []
    supervised: list[bool] = []

    def add(ids: list[int], is_sampled: bool) -> None:
        input_ids.extend(ids)
        supervised.extend([is_sampled] * len(ids))

    asked = [position for position, message in enumerate(messages) if message["role"] == "assistant"]
    for number, position in enumerate(asked):
        before = messages[:position]
        turn = _turn_of(tokenizer, before, stop_ids)
        if number == 0:
            prefix = _asked(tokenizer, before)
            _refuse_other_prompt(prefix, turn.before)
            add(encode_text(tokenizer, prefix), False)
        else:
            prefix = text_between(tokenizer, before, asked[number - 1])
            add(_after_turn_end(tokenizer, prefix, turn.closing), False)
        indent, content = turn.indent(prefix), messages[position]["content"]
        text = indent + _reply_text(prefix, content)
        _refuse_control(tokenizer, text, control)
        if mark is not None and position == asked[-1]:
            # only the left end of a reply's text is moved: by what the template opened already, and white space
            shift = len(indent) - (len(content) - len(after_opening(prefix, content).lstrip()))
            marked = _marked_tokens(tokenizer, text, turn.closing, (mark[0] + shift, mark[1] + shift), len(input_ids))
        add(encode_text(tokenizer, text + turn.closing), True)
        if (last := input_ids[-1]) not in stop_ids:
            ends = tokenizer.convert_ids_to_tokens(last)
            raise TemplateError("the last supervised token is not a stop token", f"the turn ends in {ends!r}")
    return Encoded(input_ids, supervised, marked)


def _marked_tokens(tokenizer: PreTrainedTokenizerBase, text: str, closing: str, mark: tuple[int, int], before: int) -> tuple[int, int]:
    """The tokens that hold the marked characters of a reply.

    Args:
        before: tokens before the reply.
    """
    if not 0 <= mark[0] < mark[1] <= len(text):
        raise TemplateError("the marked word is not in the text that is trained on", "the mark is in white space or in the opening tag")
    if not tokenizer.is_fast:
        raise TemplateError("the tokenizer does not say which characters its tokens hold", "a mark cannot be found among its tokens")
    offsets = tokenizer(text + closing, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    places = [place for place, (start, end) in enumerate(offsets) if start < mark[1] and end > mark[0]]
    return before + places[0], before + places[-1] + 1


def observation_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], stop_ids: Sequence[int], stopped: bool) -> list[int]:
    """The ids between a sampled assistant turn and the next one: what the template puts around an environment's message.

    Args:
        messages: the conversation up to and including the environment's message; the turn before it is the assistant's.
        stopped: whether the sampled ids already hold a stop token. The template's own end of turn is left out then, whichever of the
            model's stop tokens was sampled.
    """
    last_reply = len(messages) - 2
    between = text_between(tokenizer, messages, last_reply)
    if not stopped:
        return encode_text(tokenizer, between)
    return _after_turn_end(tokenizer, between, _turn_of(tokenizer, messages[:last_reply], stop_ids).closing)


def text_between(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], last_reply: int) -> str:
    """What the template writes from the end of a reply's content to the beginning of the next one.

    Args:
        messages: up to the next reply.
        last_reply: position of the reply; it and earlier ones are not rendered.
    """
    text = render(
        tokenizer,
        [*_without_replies(messages[:last_reply]), Message(role="assistant", content=_ANCHOR), *messages[last_reply + 1 :]],
        generation_prompt=True,
    )
    return text[_place(text) + len(_ANCHOR) :]


def _without_replies(messages: Sequence[Message]) -> list[Message]:
    return [Message(role=m["role"], content="." if m["role"] == "assistant" else m["content"]) for m in messages]


def _place(text: str) -> int:
    place = text.rfind(_ANCHOR)
    if place < 0:
        raise TemplateError(
            "the chat template changes or drops what an assistant says",
            "the model would get another reply than the row has",
            "choose another template with chat_template=…",
        )
    return place


@dataclass(frozen=True, slots=True)
class _Turn:
    """What the template writes around an assistant's content: everything before it, and what follows up to the first stop token. What
    comes after that (a newline, mostly) is never sampled."""

    before: str
    closing: str

    def indent(self, prefix: str) -> str:
        """White space that the template puts between its generation prompt and the content (Mistral's space)."""
        lead = self.before.removeprefix(prefix) if self.before.startswith(prefix) else ""
        return lead if lead.isspace() else ""


def _turn_of(tokenizer: PreTrainedTokenizerBase, before: Sequence[Message], stop_ids: Sequence[int]) -> _Turn:
    whole = render(tokenizer, [*_without_replies(before), Message(role="assistant", content=_ANCHOR)])
    place = _place(whole)
    closing = whole[place + len(_ANCHOR) :]
    tokens = [str(tokenizer.convert_ids_to_tokens(token)) for token in stop_ids]
    ends = [match.end() for token in tokens if (match := re.search(re.escape(token), closing))]
    if not ends:
        raise TemplateError(
            "the chat template closes an assistant turn without a stop token",
            "a model trained on it never learns to stop",
            "set eos_token to the template's end-of-turn token",
        )
    return _Turn(whole[:place], closing[: min(ends)])


def _refuse_other_prompt(prefix: str, before: str) -> None:
    """Refuses a template whose generation prompt lacks what the template writes before a reply; thought marks and white space aside."""
    bare_prefix, bare_before = _MARKS.sub("", prefix), _MARKS.sub("", before)
    if bare_before != bare_prefix:
        raise TemplateError(
            f"the chat template writes {bare_before.removeprefix(bare_prefix)[:60]!r} before a reply, and its generation prompt does not",
            "training and generation would see different tokens",
            "choose another template with chat_template=…",
        )


def _reply_text(prefix: str, content: str) -> str:
    text = after_opening(prefix, content).strip()
    if _OPENED.search(prefix) and THINK_CLOSE not in text:
        raise TemplateError(
            "the chat template opens a thought in the prompt, and the reply closes none",
            "the model would learn to answer inside its thought",
            "give the rows thoughts (safework data cot), or choose another template with chat_template=…",
        )
    return text


def _refuse_control(tokenizer: PreTrainedTokenizerBase, text: str, control: set[int]) -> None:
    if written := [token for token in encode_text(tokenizer, text) if token in control]:
        what = f"a reply writes the control token {tokenizer.convert_ids_to_tokens(written[0])}"
        raise TemplateError(what, "the model would learn to end or to open a turn in the middle of a reply", "remove it from the reply")


def _after_turn_end(tokenizer: PreTrainedTokenizerBase, between: str, closing: str) -> list[int]:
    """Ids of the text between two replies, without the end of turn that the first one already has."""
    ids, ended = encode_text(tokenizer, between), encode_text(tokenizer, closing)
    same = next((i for i, pair in enumerate(zip(ids, ended, strict=False)) if pair[0] != pair[1]), min(len(ids), len(ended)))
    added = tokenizer.added_tokens_decoder  # computed at each access
    whole = max((i + 1 for i in range(same) if ids[i] in added), default=0)
    return ids[whole:]
