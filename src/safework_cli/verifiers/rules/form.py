"""The form of a reply: the one ``<think>`` format, and one language throughout."""

from __future__ import annotations

import re
from collections.abc import Sequence

from safework_cli.rows import language_of, parse_reply
from safework_cli.verifiers.contract import Exchange, Verdict


class FormatRule:
    """1 for exactly one non-empty thought followed by a non-empty answer, else 0; the label names what was found (``rows.parse_reply``)."""

    name = "format"
    version = 1

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        found = [parse_reply(e.reply).format for e in exchanges]
        return [Verdict(float(form == "ok"), form) for form in found]


_NO_LANGUAGE = re.compile(r"```.*?```|`[^`]*`|\$[^$]*\$|\\[A-Za-z]+|https?://\S+", re.DOTALL)
_WORDS = re.compile(r"[\u4e00-\u9fff]|[^\W\d_]{2,}")


class LanguageRule:
    """1 where question, thought and answer are in one language (``rows.language_of``), else 0.

    A part without words (a number, a choice letter, a formula, code) has no language and agrees with any other. Labels: "same",
    "mixed", "empty" (a reply without an answer scores 0).
    """

    name = "language"
    version = 1

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        return [self._judge(e) for e in exchanges]

    def _judge(self, exchange: Exchange) -> Verdict:
        reply = parse_reply(exchange.reply)
        if not reply.answer:
            return Verdict(0.0, "empty")
        parts = (_NO_LANGUAGE.sub(" ", text) for text in (exchange.question, reply.thought, reply.answer))
        languages = {language_of(text) for text in parts if _WORDS.search(text)}
        return Verdict(1.0, "same") if len(languages) <= 1 else Verdict(0.0, "mixed")
