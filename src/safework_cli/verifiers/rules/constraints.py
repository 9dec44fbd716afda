"""Instruction constraints that a program can check, after IFEval's (arXiv 2311.07911): the share that a final answer keeps."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from safework_cli.core.errors import nearest
from safework_cli.verifiers.contract import Exchange, Verdict
from safework_cli.verifiers.rules.ifeval import IFEVAL, kept

_WORD = re.compile(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+(?:['’-][^\W\u4e00-\u9fff]+)*")
_BULLET = re.compile(r"(?:[-*•]|\d++[.)、])\s*+\S")
_SENTENCE_END = re.compile(r"[.!?]++(?=[\s\"'”’)\]*]|$)|[。！？]+")


def count_words(text: str) -> int:
    """Words; each Chinese character counts as one."""
    return len(_WORD.findall(text))


def count_sentences(text: str) -> int:
    """Stretches of text up to a full stop, question or exclamation mark; a last one without a mark counts too."""
    return sum(bool(_WORD.search(part)) for part in _SENTENCE_END.split(text))


def count_bullets(text: str) -> int:
    """Lines that begin with a bullet or a number and go on."""
    return sum(_BULLET.match(line.lstrip()) is not None for line in text.split("\n"))


def _number(constraint: dict[str, Any]) -> int:
    value = constraint.get("n")
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"constraint '{constraint['type']}' needs a whole number n, not {value!r}")
    return value


def _text(constraint: dict[str, Any]) -> str:
    value = constraint.get("text")
    if not isinstance(value, str) or not value:
        raise ValueError(f"constraint '{constraint['type']}' needs a text, not {value!r}")
    return value


CHECKS: dict[str, Callable[[str, dict[str, Any]], bool]] = {
    "lowercase": lambda answer, c: answer == answer.lower(),
    "uppercase": lambda answer, c: answer == answer.upper(),
    "max_words": lambda answer, c: count_words(answer) <= _number(c),
    "min_words": lambda answer, c: count_words(answer) >= _number(c),
    "contains": lambda answer, c: _text(c).lower() in answer.lower(),
    "not_contains": lambda answer, c: _text(c).lower() not in answer.lower(),
    "starts_with": lambda answer, c: answer.startswith(_text(c)),
    "ends_with": lambda answer, c: answer.endswith(_text(c)),
    "bullets": lambda answer, c: count_bullets(answer) == _number(c),
    "no_commas": lambda answer, c: not re.search("[,，]", answer),
    "sentences": lambda answer, c: count_sentences(answer) == _number(c),
}
"""By type. ``contains`` and ``not_contains`` ignore case; ``bullets`` and ``sentences`` ask for exactly n."""


class ConstraintsRule:
    """The share of ``meta.constraints`` that the final answer keeps; labels "all", "some", "none".

    A constraint is a dict with ``type`` and, where the type needs one, ``n`` or ``text``; or with IFEval's ``id`` and arguments. An unknown
    type or a missing parameter is an error; an empty answer keeps nothing.
    """

    name = "constraints"
    version = 2  # sentences and words by NLTK, a text of white space keeps nothing
    libraries = ("nltk", "langdetect")

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        return [self._judge(e) for e in exchanges]

    def _judge(self, exchange: Exchange) -> Verdict:
        constraints = exchange.meta.get("constraints")
        if not isinstance(constraints, list) or not constraints:
            return Verdict(None, error="the row has no meta.constraints")
        answer = exchange.final
        try:
            kept = [self._kept(answer, constraint) for constraint in constraints]
        except ValueError as error:
            return Verdict(None, error=str(error))
        share = sum(kept) / len(kept) if answer else 0.0
        return Verdict(share, "all" if share == 1.0 else "some" if share else "none")

    @staticmethod
    def _kept(answer: str, constraint: Any) -> bool:
        if isinstance(constraint, dict) and constraint.get("id") in IFEVAL:
            try:
                return kept(answer, constraint)
            except KeyError as error:
                raise ValueError(f"constraint '{constraint['id']}' lacks {error}") from None
        kind = constraint.get("type", constraint.get("id")) if isinstance(constraint, dict) else None
        if kind not in CHECKS:
            known = [*CHECKS, *IFEVAL]
            raise ValueError(f"unknown constraint {kind or constraint!r}{nearest(str(kind), known)}; known: {', '.join(known)}")
        return CHECKS[kind](answer, constraint)
