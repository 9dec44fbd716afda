"""The format of a reasoned reply: ``<think>reasoning</think>answer``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"

REPLY_FORMAT_VERSION = 2
"""Of ``parse_reply``; raise it when a text is taken apart differently. 2: split at the first closing tag; text before a thought is read."""

ReplyFormat = Literal["ok", "no_thought", "unclosed", "unopened", "empty_thought", "empty_answer", "repeated", "text_before"]


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply taken apart.

    Attributes:
        thought: the first thought. With "unclosed" it is everything after the opening tag.
        answer: everything outside the first thought, which is what a user reads and what is judged.
        format: "ok" is exactly one non-empty thought, then a non-empty answer, and nothing before the thought.
    """

    thought: str
    answer: str
    format: ReplyFormat


def parse_reply(text: str) -> Reply:
    """Splits ``<think>thought</think>answer`` at the first closing tag, as vLLM's and Inspect's reasoning parsers do.

    Args:
        text: the reply with the thought's opening tag. Engines put it there where the chat template opened the thought in the prompt
            (``models.thoughts``); a closing tag without an opening one is "unopened".
    """
    before, opened, inside = text.partition(THINK_OPEN)
    if THINK_CLOSE in before:  # closed before it is opened
        before, opened, inside = "", "", text
    elif not opened:
        return Reply("", seen(text), "no_thought" if seen(text) else "empty_answer")
    thought, closed, after = inside.partition(THINK_CLOSE)
    before, thought, after = seen(before), seen(thought), seen(after)
    answer = f"{before}\n{after}" if before and after else before or after
    return Reply(thought, answer, _format_of(before, thought, after, opened=bool(opened), closed=bool(closed)))


def seen(text: str) -> str:
    """The text without white space around it; empty where nothing of it can be seen (control and zero-width characters only)."""
    return text.strip() if any(char.isprintable() and not char.isspace() for char in text) else ""


def _format_of(before: str, thought: str, after: str, *, opened: bool, closed: bool) -> ReplyFormat:
    if not closed:
        return "unclosed"
    if any(tag in text for text in (thought, after) for tag in (THINK_OPEN, THINK_CLOSE)):
        return "repeated"
    if not opened:
        return "unopened"
    if before:
        return "text_before"
    if not thought:
        return "empty_thought"
    return "ok" if after else "empty_answer"


def make_reply(thought: str, answer: str) -> str:
    """Writes a reply in the one format."""
    return f"{THINK_OPEN}{thought.strip()}{THINK_CLOSE}{answer.strip()}"


_CJK = re.compile(r"[\u4e00-\u9fff]")

_LETTER = re.compile(r"[^\W\d_]")


def language_of(text: str) -> str:
    """ "zh" when more than half of the letters are CJK (the rule of the official code, `docs/safeladder.md` 3.2), else "en"."""
    chinese = 0 if text.isascii() else len(_CJK.findall(text))
    return "zh" if chinese and chinese > 0.5 * len(_LETTER.findall(text)) else "en"
