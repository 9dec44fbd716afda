"""Multiple choice with one or several right options: which letters a reply chose, and how many of the right ones."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from safework_cli.verifiers.contract import UNPARSED, Exchange, Verdict

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MAX_READ = 4_000
"""Characters of a final answer that are read, from its end: the verdict of a longer one is there."""
_ONE = r"[(\[{]?(?<![A-Za-z])[A-Z](?![A-Za-z])[)\]}]?"
_BETWEEN = r"(?:\s*(?:[,、;/&+]|\band\b|和|与|及|以及)\s*(?:and\s+)?|\s+)"
_RUN = rf"(?:(?<![A-Za-z])[A-Z]{{2,26}}(?![A-Za-z])|{_ONE}(?:{_BETWEEN}{_ONE})*)"
_WHOLE = re.compile(rf"\s*({_RUN})\s*\.?\s*")
_BOXED = re.compile(rf"\\boxed\s*\{{\s*(?:\\(?:text|mathrm|mathbf)\s*\{{)?\s*({_RUN})")
_STATED = re.compile(
    rf"(?:\b(?:answers?|options?|choices?|letters?)\b[^A-Z\n.。]{{0,40}}|(?:答案|正确选项|正确的选项|应选|故选|选择|选)[^A-Za-z\n。]{{0,10}})({_RUN})",
)
_CORRECT = re.compile(rf"({_RUN})\s*(?:(?:is|are)\s+(?:the\s+)?(?:only\s+)?(?:correct|right|true)\b|(?:均|都)?(?:正确|对))")


def chosen_letters(final: str, letters: str) -> frozenset[str] | None:
    """The letters that a final answer chose, or None where it states none, or one that the question does not have.

    Read in this order: the whole answer ("BD", "B, D", "B and D"), the last box, the last statement ("the answers are B and D",
    "答案：BD"), the last "B and D are correct", the last line.

    Args:
        letters: those of the question's options.
    """
    text = re.sub(r"[*`$_]", "", unicodedata.normalize("NFKC", final)).strip()[-MAX_READ:]
    last_line = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    stated = [next(reversed(list(pattern.finditer(text))), None) for pattern in (_BOXED, _STATED, _CORRECT)]
    for found in (_WHOLE.fullmatch(text), *stated, _WHOLE.fullmatch(last_line)):
        if found is not None:
            chosen = frozenset(re.sub(r"\band\b|[^A-Z]", "", found[1]))
            return chosen if chosen <= set(letters) else None
    return None


class ChoicesRule:
    """1 where the chosen letters are the right ones, ``partial`` where they are some of these and no others, else 0. Labels: "correct",
    "partial", "wrong", "unparsed".

    The gold answer is one or several letters of ``meta.choices``: "BD".

    Args:
        partial: what a part of the right letters is worth; an examination gives half of the points.
    """

    name = "choices"
    version = 1

    def __init__(self, partial: Annotated[float, Field(ge=0, le=1)] = 0.5):
        self._partial = partial

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        return [self._judge(exchange) for exchange in exchanges]

    @staticmethod
    def gold_problem(exchange: Exchange) -> str | None:
        """Why the gold answer is not one or several letters of the question, or None."""
        gold, letters = (exchange.answer or "").strip(), _letters(exchange)
        if len(exchange.meta.get("choices") or ()) > len(LETTERS):
            return f"the question has {len(exchange.meta['choices'])} choices, and letters go to Z"
        known = gold and len(set(gold)) == len(gold) and set(gold) <= set(letters)
        return None if known else f"the gold answer {exchange.answer!r} is not one or several letters among {letters[0]}–{letters[-1]}"

    def _judge(self, exchange: Exchange) -> Verdict:
        if (problem := self.gold_problem(exchange)) is not None:
            return Verdict(None, error=problem)
        gold, chosen = frozenset((exchange.answer or "").strip()), chosen_letters(exchange.final, _letters(exchange))
        if not chosen:
            return Verdict(0.0, UNPARSED)
        if chosen == gold:
            return Verdict(1.0, "correct")
        return Verdict(self._partial, "partial") if chosen < gold else Verdict(0.0, "wrong")


def _letters(exchange: Exchange) -> str:
    return LETTERS[: len(exchange.meta.get("choices") or ()) or 10]
