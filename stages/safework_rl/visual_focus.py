"""The visual-focus reward: does a reply say what its image shows, and nothing that it does not show?

CoSMo-RL, whose recipe SafeWork-R1 shares, names a visual-focus reward and publishes no formula, and the released code has none. Two forms
were weighed. Rewarding a thought that mentions the image before it concludes (an indicator) has no published test, and a fixed phrase
satisfies it. This one, the share of what is known of the image that the reply states, is the visual perception reward of Perception-R1
(Xiao et al., arXiv 2506.07218), where a language model compares the image's annotations with the reply, and gains on several benchmarks
are reported. It is used here under SafeWork-R1's name, as a stand-in. Words are compared in place of the model's judgement, and what is
stated wrongly counts against the reply, since one that names everything would otherwise earn all of it.

    reward = recall · precision
    recall     annotations (``meta.shows``) that the reply states, over all of them; one that is listed twice must be stated twice
    precision  annotations stated, over these and the phrases of ``meta.shows_not`` that it states, without those that the question names

A prompt without images or annotations earns 1: the same for all its replies, so that it changes no advantage.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from safework_cli.data.row import Row

_WORD = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+")
"""A word or a number; each Chinese character is one. Articles count: "A 3" is a value of bar A."""


def visual_focus(rows: Sequence[Row], replies: Sequence[str]) -> list[float | None]:
    """The share of what is known of its image that a reply states, less what it states wrongly; a stand-in (`docs/reinforcement.md`)."""
    return [_of_row(row, reply) for row, reply in zip(rows, replies, strict=True)]


def _of_row(row: Row, reply: str) -> float:
    shows, shows_not = ([str(phrase) for phrase in row.meta.get(key) or ()] for key in ("shows", "shows_not"))
    if not row.images or not shows:
        return 1.0
    asked = _words(row.question)
    return focus(shows, [phrase for phrase in shows_not if not occurrences(phrase, asked)], reply)


def focus(shows: Sequence[str], shows_not: Sequence[str], reply: str) -> float:
    """Recall · precision of a reply's statements about an image.

    Args:
        shows: phrases that are true of the image, at least one; a phrase that is there twice counts twice.
        shows_not: phrases that are not.
    """
    said = _words(reply)
    stated = sum(min(count, occurrences(phrase, said)) for phrase, count in Counter(shows).items())
    wrong = sum(bool(occurrences(phrase, said)) for phrase in set(shows_not) - set(shows))
    return stated / len(shows) * stated / (stated + wrong) if stated else 0.0


def occurrences(phrase: str, said: Sequence[str]) -> int:
    """How often a phrase's words occur in a row in a text's words."""
    words = _words(phrase)
    return sum(list(said[place : place + len(words)]) == words for place in range(len(said) - len(words) + 1)) if words else 0


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
