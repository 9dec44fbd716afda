"""A model's chat template as a function from messages to text.

Templates differ in what they read: text, or lists of parts (LLaVA, Idefics3, SmolVLM), where plain text is dropped without an error, so
that the model is asked nothing. What a template reads is tried once, for each role: text where it keeps that, else parts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from safework_cli.core.errors import InputError
from safework_cli.data.images import TAG
from safework_cli.data.row import ROLES, Message

TEMPLATE_DATE = date(2024, 7, 26)
"""What templates that print today's date are given (Llama 3.2, gpt-oss): a model's prompts must not change from day to day. The value is
the default of Llama 3.2's own template."""
ANCHOR = "\u241fAnchor\u241f"
"""Stands for a text that is looked for in what a template makes of it: both cases, so that a template that changes letters is noticed."""
_NOW = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


class TemplateError(InputError):
    """A conversation that the model's chat template refuses, changes or drops. Stages with many rows count it as a drop reason."""


@dataclass(frozen=True, slots=True)
class TemplateForm:
    """What a chat template reads.

    Attributes:
        text: the roles whose content it reads as text; that of the others has to be a list of parts.
        images: a user's message may have images.
    """

    text: frozenset[str]
    images: bool


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, generation_prompt: bool = False, images: bool = False
) -> str:
    """The template's text, on ``TEMPLATE_DATE``.

    Args:
        images: each ``<image>`` in a message is an image's place, which the template writes in its own way; otherwise it is text.

    Raises:
        TemplateError: the template raises, as Gemma's does for a system message, or has no place for images.
    """
    form = form_of(tokenizer)
    if images and not form.images:
        raise TemplateError(
            "the chat template has no place for images", "the model would be asked without them", "take a model that reads images"
        )
    try:
        contents = [_content(message, form, images) for message in messages]
        given = [{"role": message["role"], "content": content} for message, content in zip(messages, contents, strict=True)]
        return _rendered(tokenizer, with_fixed_date(tokenizer.get_chat_template()), given, generation_prompt)
    except MemoryError:
        raise
    except Exception as error:  # a template is a program of somebody else's: jinja2's errors, and whatever its filters raise
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        roles = ", ".join(message["role"] for message in messages)
        raise TemplateError(f"the chat template refuses it: {why}", f"its roles are {roles}") from None


def form_of(tokenizer: PreTrainedTokenizerBase) -> TemplateForm:
    """What the tokenizer's chat template reads."""
    return _form(tokenizer, with_fixed_date(tokenizer.get_chat_template()))


@lru_cache(maxsize=32)
def _form(tokenizer: PreTrainedTokenizerBase, template: str) -> TemplateForm:
    asked: Any = ANCHOR if _keeps(tokenizer, template, [("user", ANCHOR)]) else [_text(ANCHOR)]
    question: Any = "?" if isinstance(asked, str) else [_text("?")]
    around = {"system": lambda content: [("system", content), ("user", question)], "user": lambda content: [("user", content)]}
    around["assistant"] = lambda content: [("user", question), ("assistant", content)]
    parts_only = {
        role
        for role in ROLES
        if not _keeps(tokenizer, template, around[role](ANCHOR)) and _keeps(tokenizer, template, around[role]([_text(ANCHOR)]))
    }
    without, with_image = ([("user", [*parts, _text(ANCHOR)])] for parts in ([], [{"type": "image"}]))
    images = _keeps(tokenizer, template, with_image) and _tried(tokenizer, template, with_image) != _tried(tokenizer, template, without)
    return TemplateForm(frozenset(ROLES) - parts_only, images)


def _keeps(tokenizer: PreTrainedTokenizerBase, template: str, turns: Sequence[tuple[str, Any]]) -> bool:
    # a text model's template prints a list of parts as Python writes it: that is not what a part is for
    text = _tried(tokenizer, template, turns)
    return ANCHOR in text and f"'{ANCHOR}'" not in text


def _tried(tokenizer: PreTrainedTokenizerBase, template: str, turns: Sequence[tuple[str, Any]]) -> str:
    """What a template makes of a conversation; nothing where it raises."""
    try:
        return _rendered(tokenizer, template, [{"role": role, "content": content} for role, content in turns], True)
    except MemoryError:
        raise
    except Exception:  # whatever a template's filters raise
        return ""


def _rendered(tokenizer: PreTrainedTokenizerBase, template: str, messages: list[dict[str, Any]], generation_prompt: bool) -> str:
    text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=generation_prompt)
    assert isinstance(text, str)
    return text


def _content(message: Message, form: TemplateForm, images: bool) -> str | list[dict[str, str]]:
    """A message's content as the template reads it."""
    role, content = message["role"], message["content"]
    if images and TAG in content:
        between = content.split(TAG)
        parts = [part for number, text in enumerate(between) for part in ([{"type": "image"}] * (number > 0) + [_text(text)] * bool(text))]
        return parts
    return content if role in form.text else [_text(content)]


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text, "content": text}  # Pixtral's template reads the second name


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
