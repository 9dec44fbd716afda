"""Short answers compared as text, by value: exact match, F1 and containment, over the tokens of ``text_tokens``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from safework_cli.verifiers.contract import Exchange, Verdict
from safework_cli.verifiers.rules.text_tokens import tokens_of

_ANSWER_LINE = re.compile(
    r"(?:^|\n|[.!?。！？])[\s*_#]*(?:the )?(?:final answer|answer|最终答案|答案)[*_ ]{0,8}(?:[:：]|\bis\b|是|为)[*_ ]{0,8}([^\n]+)",
    re.IGNORECASE,
)
_VERSION = re.compile(r"(?<![^\W_])([^\W\d_][^\W_]*\+*#?\s|v\.?\s?)(\d+\.\d+)(?![^\W_]|\.\d|\s*%)", re.IGNORECASE)
_NAMED = re.compile(
    r"(?<![^\W_])(?:(?!(?i:about|approximately|around|roughly|only|exactly|over|under|nearly|almost|some|the|at|is|was|to|of|in|by|than|us|usd|eur"
    r"|gbp|inr|rs|cny|rmb|cad|aud|gpa|ph)\s)[A-Z][^\W_]*\+*#?\s|(?i:version|release|v)\.?\s?)\d+\.\d+(?=\s*(?:$|[,;:.)(]|[A-Z]))"
)
"""A number with a decimal point that is part of a name in a gold answer: "Python 3.10", "v1.10", "version 2.0"; no quantity."""
_POSSESSIVE = re.compile(r"(?<=[^\W_])['\u2019]s(?![^\W_])", re.IGNORECASE)
_TRANSLATED = re.compile(r"^([^()（）]*[\u3400-\u9fff][^()（）]*)[（(]([^()（）]*[A-Za-z][^()（）]*)[)）]$")


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


def _golds(exchange: Exchange) -> list[tuple[str, list[str]]]:
    """Texts and tokens of the gold answer and its aliases, empty ones left out. "约翰·加尔通（Johan Galtung）" is also either name."""
    texts = [exchange.answer or "", *map(str, exchange.meta.get("aliases") or [])]
    for text in list(texts):
        if match := _TRANSLATED.match(text.strip()):
            texts += [match[1], match[2]]
    golds = [(text.strip(), tokens_of(_as_written(text) if _NAMED.search(text) else text)) for text in texts if text.strip()]
    return golds + [(text, ["one"]) for text, tokens in golds if tokens == ["1"] and text.lower() == "one"]


def _as_written(text: str) -> str:
    """A text whose decimals after a word are names and no numbers: "Python 3.10" is not "Python 3.1"."""
    return _VERSION.sub(lambda match: match[1] + match[2].replace(".", "point"), text)


def f1_of(predicted: Sequence[str], gold: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over the multiset of tokens (SQuAD's F1, Rajpurkar et al. 2016)."""
    common = sum((Counter(predicted) & Counter(gold)).values())
    return 2 * common / (len(predicted) + len(gold)) if common else 0.0


class _TextRule:
    """Common course of the three: no usable gold is an error, the best of gold and aliases counts."""

    name = ""
    version = 3  # a possessive ends a word, and the number of a name ("Python 3.10") is compared as written
    libraries = ("babel", "opencc")

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        return [self._judge(e) for e in exchanges]

    def _judge(self, exchange: Exchange) -> Verdict:
        golds = _golds(exchange)
        if not golds:
            why = "the row has no gold answer" if exchange.answer is None else f"the gold answer {exchange.answer!r} is empty"
            return Verdict(None, error=why)
        final = exchange.final
        longest = max(len(text) for text, _ in golds)
        replies = self._replies(final, 400 + 40 * longest)
        # a gold answer of only signs ("---") has no tokens: it is compared literally
        named = self._replies(_as_written(final), 400 + 40 * longest) if any(_NAMED.search(text) for text, _ in golds) else []
        score = max(
            max(self._score(reply, gold) for reply in (named if _NAMED.search(text) else replies))
            if gold
            else float(self._signs(final, text))
            for text, gold in golds
        )
        return Verdict(score, "correct" if score == 1.0 else "partial" if score > 0 else "wrong")

    def _replies(self, final: str, longest: int) -> list[list[str]]:
        """The token lists that are compared; a text of more than ``longest`` characters cannot equal any gold answer."""
        return [tokens_of(short_answer(final))]

    def _signs(self, final: str, gold: str) -> bool:
        return gold in (short_answer(final).strip(), final.strip())

    def _score(self, reply: list[str], gold: list[str]) -> float:
        raise NotImplementedError


class ExactRule(_TextRule):
    """1 where the stated answer equals the gold answer or an alias, else 0."""

    name = "exact"

    def _replies(self, final: str, longest: int) -> list[list[str]]:
        return [tokens_of(text) if len(text) <= longest else [] for text in {short_answer(final), final}]

    def _score(self, reply: list[str], gold: list[str]) -> float:
        return float(reply == gold)


class F1Rule(_TextRule):
    """Token F1 between the stated answer and the nearest of gold and aliases: SQuAD's formula, over tokens that are compared by value (the
    official script erases decimal points and signs, and leaves dates as words)."""

    name = "f1"

    def _score(self, reply: list[str], gold: list[str]) -> float:
        return f1_of(reply, gold)


class ContainsRule(_TextRule):
    """1 where the gold answer or an alias occurs in the final answer as whole words (characters for Chinese), else 0.

    A reply that lists many candidates passes too: use it where answers are short and the prompt asks for one.
    """

    name = "contains"

    def _replies(self, final: str, longest: int) -> list[list[str]]:
        return [tokens_of(text) for text in dict.fromkeys((final, _POSSESSIVE.sub("", final)))]  # "Newton's law" names Newton

    def _signs(self, final: str, gold: str) -> bool:
        return gold in final

    def _score(self, reply: list[str], gold: list[str]) -> float:
        return float(_joined(gold) in _joined(reply))


def _joined(tokens: Sequence[str]) -> str:
    return "\x1f" + "\x1f".join(tokens) + "\x1f"
