"""The right answer in any form: the same gold answers as the strict rule of a row, read without regard to the form that was asked for.

A model that knows a fact and states it in a sentence fails "Reply with the answer only". Next to the strict score this one tells learning
a fact from learning a form. One rule serves all models.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from safework_cli.verifiers.contract import Exchange, Verdict
from safework_cli.verifiers.rules.choice import options_named
from safework_cli.verifiers.rules.choice_reading import Reading
from safework_cli.verifiers.rules.choice_text import Options, readable
from safework_cli.verifiers.rules.correctness import CorrectnessRule
from safework_cli.verifiers.rules.text import ContainsRule
from safework_cli.verifiers.rules.text_tokens import tokens_of

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_NUMBER = re.compile(r"(?<![\w.])[-−]?\d[\d,]*(?:\.\d+)?(?:/\d+)?")
_OPPOSITES = {"yes": "no", "no": "yes", "true": "false", "false": "true"}


class LenientRule:
    """1 where the strict rule says so, or where the final answer holds the right answer and no other option.

    - choice: of the options' texts, the reply names only the right one. A letter counts only where the strict rule reads it, or where no
      text is named.
    - a number as the gold answer: it is the last number of the reply.
    - other short answers: the gold answer or an alias occurs as whole words and is not denied; for yes, no, true and false, the opposite
      does not occur.
    - constraints: the share that is kept, as in the strict rule. There is no lenient form of a constraint.

    Labels are those of the strict rule.
    """

    name = "lenient"
    version = 1
    rests_on = ("correctness",)

    gold_problem = staticmethod(CorrectnessRule.gold_problem)

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        strict = CorrectnessRule().judge(exchanges)
        return [self._judge(exchange, verdict) for exchange, verdict in zip(exchanges, strict, strict=True)]

    @staticmethod
    def _judge(exchange: Exchange, strict: Verdict) -> Verdict:
        if strict.error is not None or strict.score == 1.0:
            return strict
        kind = exchange.meta.get("answer_type")
        if kind == "choice":
            right = only_right_option(exchange)
        elif kind in ("math", "exact"):
            gold = number_of(exchange.answer or "")
            right = last_number(exchange.final) == gold if gold is not None else kind == "exact" and _stated(exchange)
        else:
            return strict
        return Verdict(1.0, "correct") if right else strict


def only_right_option(exchange: Exchange) -> bool:
    """Whether the reply names the text of the right option and of no other."""
    named = options_named(exchange)
    return named == {(exchange.answer or "").strip().strip("().").upper()}


def number_of(text: str) -> Fraction | None:
    """The value of a text that is only a number; None for other texts."""
    plain = text.strip().strip("$").rstrip(".")
    return _value(plain) if _NUMBER.fullmatch(plain) else None


def last_number(text: str) -> Fraction | None:
    """The value of the last number in digits of a text; None where there is none."""
    numbers = _NUMBER.findall(readable(text))
    return _value(numbers[-1]) if numbers else None


def _value(digits: str) -> Fraction | None:
    try:
        return Fraction(digits.replace(",", "").replace("−", "-"))
    except (ValueError, ZeroDivisionError):
        return None


def _stated(exchange: Exchange) -> bool:
    """Whether the gold answer or an alias occurs and is not denied, and its opposite does not occur."""
    if ContainsRule().judge([exchange])[0].score != 1.0:
        return False
    opposite = _OPPOSITES.get((exchange.answer or "").strip().lower().rstrip("."))
    if opposite is not None and opposite in tokens_of(exchange.final):
        return False
    golds = [exchange.answer or "", *map(str, exchange.meta.get("aliases") or ())][: len(LETTERS)]
    text = readable(exchange.final)
    options = Options(golds, LETTERS[: len(golds)])
    return not options.occurring(text) or bool(Reading(text, options).unnegated(text))
