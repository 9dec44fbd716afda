"""The form of a reply: the one ``<think>`` format, and one language throughout."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from safework_cli.data.reply import language_of, parse_reply
from safework_cli.verifiers.contract import Exchange, Verdict


class FormatRule:
    """1 for exactly one non-empty thought followed by a non-empty answer, else 0; the label names what was found (``rows.parse_reply``)."""

    name = "format"
    version = 1

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        formats = [parse_reply(e.reply).format for e in exchanges]
        return [Verdict(float(form == "ok"), form) for form in formats]


_NO_LANGUAGE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$[^$\n]*\$|\\[A-Za-z]+|https?://\S+|[\w.+-]{1,64}@\S+|[\"“«][^\"“”«»\n]{0,400}[\"”»]", re.DOTALL
)
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_SCRIPTS = (
    ("kana", "\u3040", "\u30ff"), ("ko", "\u1100", "\u11ff"), ("ko", "\uac00", "\ud7af"), ("han", "\u3400", "\u4dbf"),
    ("han", "\u4e00", "\u9fff"), ("cyrillic", "\u0400", "\u052f"), ("arabic", "\u0600", "\u077f"), ("he", "\u0590", "\u05ff"),
    ("el", "\u0370", "\u03ff"), ("th", "\u0e00", "\u0e7f"), ("devanagari", "\u0900", "\u097f"), ("bn", "\u0980", "\u09ff"),
    ("ta", "\u0b80", "\u0bff"), ("te", "\u0c00", "\u0c7f"), ("ka", "\u10a0", "\u10ff"), ("hy", "\u0530", "\u058f"),
)  # fmt: skip
"""Name, first and last character. A script of one language is called by its code, the others stand for their languages."""
_LATIN_WORDS = "en de fr es pt it nl pl sv da no fi cs ro hu tr vi id ca hr sk sl et lv lt sq is ga cy eu ms tl sw af"
_LATIN = tuple(_LATIN_WORDS.split())
_PARTICLES_WORDS = "a al and da das de del della den der des di do dos du e el en et i il in la las le les los of the to und van von y"
_PARTICLES = frozenset(_PARTICLES_WORDS.split())
MIN_WORDS = 3
"""Of Latin script, by which a language is named; fewer are a name, a term, "OK"."""
MIN_PROBABILITY = 0.6


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(_LATIN)
    return identifier


def language_named(text: str) -> str | None:
    """The language of a text, "?" if it is in Latin letters of an unclear language, None if it has no words of a language.

    The official rule detects Chinese and English (``row.language_of``: Chinese if more than half of the letters are). Kana, Hangul
    and other scripts name their languages (or "cyrillic", "arabic", "devanagari"); Latin letters are read by py3langid. Code, formulas,
    quotations, addresses, numbers, letters, names and terms of one or two words have no language.
    """
    plain = _NO_LANGUAGE.sub(" ", text)
    counts = dict.fromkeys((name for name, _, _ in _SCRIPTS), 0)
    for char, count in Counter(plain).items():
        for name, first, last in _SCRIPTS:
            if first <= char <= last:
                counts[name] += count
    words = _WORD.findall(plain)
    letters = sum(map(len, words))
    if counts["kana"] > 1 and counts["kana"] >= 0.1 * (counts["kana"] + counts["han"]) and 2 * (counts["kana"] + counts["han"]) > letters:
        return "ja"
    if language_of(plain) == "zh":
        return "zh"
    script = max(counts, key=counts.__getitem__)
    if 2 * counts[script] > letters:
        return {"kana": "ja", "han": "zh"}.get(script, script)
    latin = [word for word in words if len(word) > 1 and word[0] < "\u0250"]
    if len(latin) < MIN_WORDS or (len(latin) <= 5 and all(word[0].isupper() or word in _PARTICLES for word in latin)):
        return None
    named, probability = _identifier().classify(" ".join(latin[:400]))
    return named if probability >= MIN_PROBABILITY else "?"


class LanguageRule:
    """1 where question, thought and answer are in one language (``language_named``), else 0.

    A thought or answer without words of a language (a number, a choice letter, a name, a formula, code) agrees with any other. A question
    of a few Latin letters is in some language of that script. Labels: "same", "mixed", "empty" (a reply without an answer scores 0).
    """

    name = "language"
    version = 2  # languages other than Chinese and English
    libraries = ("py3langid",)

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        return [self._judge(e) for e in exchanges]

    def _judge(self, exchange: Exchange) -> Verdict:
        reply = parse_reply(exchange.reply)
        if not reply.answer:
            return Verdict(0.0, "empty")
        asked = language_named(exchange.question) or ("?" if _WORD.search(_NO_LANGUAGE.sub(" ", exchange.question)) else None)
        languages = {asked, language_named(reply.thought), language_named(reply.answer)} - {None}
        if "?" in languages and len(languages) > 1 and languages <= {"?", *_LATIN}:
            languages.discard("?")
        return Verdict(1.0, "same") if len(languages) <= 1 else Verdict(0.0, "mixed")
