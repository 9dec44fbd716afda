"""Text as it is compared: folded, and cut into words (characters for Chinese and Japanese)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from safework_cli.data.row import Message, Row

_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")
_BETWEEN_ASCII = str.maketrans({chr(code): " " for code in range(128) if not chr(code).isalnum()})


def asked(row: Row) -> list[Message]:
    """What a policy is asked: a row's prompt. Of a worked search episode, whose later user turns are results of its own searches, the
    question."""
    if row.task == "search" and row.reply is not None:
        return row.messages[: next(place for place, message in enumerate(row.messages) if message["role"] == "assistant")]
    return row.prompt


def asked_text(row: Row) -> str:
    """The user's turns of what is asked."""
    return "\n".join(message["content"] for message in asked(row) if message["role"] == "user")


@lru_cache(maxsize=16)  # a row's texts are compared with several things, one after the other
def words(text: str) -> tuple[str, ...]:
    """The words of a text without case, accents' encoding, width and punctuation; each CJK character is a word."""
    if text.isascii():  # the same words, sooner
        return tuple(text.lower().translate(_BETWEEN_ASCII).split())
    return tuple(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def shingles(tokens: Sequence[str], size: int) -> set[str]:
    """Every run of ``size`` words; of a shorter text, the whole."""
    if len(tokens) <= size:
        return {" ".join(tokens)}
    return {" ".join(tokens[i : i + size]) for i in range(len(tokens) - size + 1)}
