"""Short answers compared as text: exact match, F1 and containment, after SQuAD's normalisation.

English is compared by words, Chinese by characters. SQuAD's normalisation (Rajpurkar et al. 2016, the official evaluation script):
lower case, no punctuation, no articles, single spaces.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from safework_cli.verifiers.contract import Exchange, Verdict

_TOKEN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]|[^\W\u3400-\u4dbf\u4e00-\u9fff]+")
_ARTICLES = {"a", "an", "the"}
_ANSWER_LINE = re.compile(
    r"(?:^|\n|[.!?。！？]\s*)[*_# ]*(?:the )?(?:final answer|answer|最终答案|答案)[*_ ]*(?:[:：]|\bis\b|是|为)[*_ ]*([^\n]+)", re.IGNORECASE
)


def tokens_of(text: str) -> list[str]:
    """Normalised tokens: words, or characters for Chinese."""
    folded = unicodedata.normalize("NFKC", text).lower()
    folded = "".join(" " if unicodedata.category(c) in ("Pd", "Zs") else c for c in folded if not _is_mark(c))
    return [token for token in _TOKEN.findall(folded) if token not in _ARTICLES]


def _is_mark(char: str) -> bool:
    """Punctuation that vanishes ("U.S." is "us"); a dash becomes a space instead, so that "twenty-one" stays two words."""
    category = unicodedata.category(char)
    return category.startswith("P") and category != "Pd"


def last_boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{…}``, braces balanced, or None."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for position in range(start + len("\\boxed"), len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start + len("\\boxed{") : position]
    return None


def short_answer(final: str) -> str:
    r"""The part of a final answer that states it: ``\boxed{…}``, else the last "Answer: …" line, else all of it."""
    boxed = last_boxed(final)
    if boxed is not None:
        return boxed
    lines = _ANSWER_LINE.findall(final)
    return lines[-1].strip(" *_") if lines else final


def _golds(exchange: Exchange) -> list[list[str]]:
    """Token lists of the gold answer and its aliases; empty ones left out."""
    texts = [exchange.answer or "", *map(str, exchange.meta.get("aliases") or [])]
    return [tokens for tokens in map(tokens_of, texts) if tokens]


def f1_of(predicted: Sequence[str], gold: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over the multiset of tokens."""
    common = sum((Counter(predicted) & Counter(gold)).values())
    return 2 * common / (len(predicted) + len(gold)) if common else 0.0


class _TextRule:
    """Common course of the three: no usable gold is an error, the best of gold and aliases counts."""

    name = ""

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        return [self._judge(e) for e in exchanges]

    def _judge(self, exchange: Exchange) -> Verdict:
        golds = _golds(exchange)
        if not golds:
            why = "the row has no gold answer" if exchange.answer is None else f"the gold answer {exchange.answer!r} is empty"
            return Verdict(None, error=why)
        score = max(self._score(exchange.final, gold) for gold in golds)
        return Verdict(score, "correct" if score == 1.0 else "partial" if score > 0 else "wrong")

    def _score(self, final: str, gold: list[str]) -> float:
        raise NotImplementedError


class ExactRule(_TextRule):
    """1 where the stated answer equals the gold answer or an alias, else 0."""

    name = "exact"
    version = 1

    def _score(self, final: str, gold: list[str]) -> float:
        return float(gold in (tokens_of(short_answer(final)), tokens_of(final)))


class F1Rule(_TextRule):
    """Token F1 between the stated answer and the nearest of gold and aliases."""

    name = "f1"
    version = 1

    def _score(self, final: str, gold: list[str]) -> float:
        return f1_of(tokens_of(short_answer(final)), gold)


class ContainsRule(_TextRule):
    """1 where the gold answer or an alias occurs in the final answer as whole words (characters for Chinese), else 0.

    A reply that lists many candidates passes too: use it where answers are short and the prompt asks for one.
    """

    name = "contains"
    version = 1

    def _score(self, final: str, gold: list[str]) -> float:
        have = tokens_of(final)
        return float(any(have[i : i + len(gold)] == gold for i in range(len(have) - len(gold) + 1)))
