"""The right answer in any form: the same gold answers as the strict rule of a row, read without regard to the form that was asked for.

A model that knows a fact and states it in a sentence fails "Reply with the answer only". Next to the strict score this one tells learning
a fact from learning a form. One rule serves all models.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from safework_cli.verifiers.contract import Exchange, Verdict
from safework_cli.verifiers.rules import choice_cues as cues
from safework_cli.verifiers.rules.choice import letters_stated, options_named, slip_of_the_letter
from safework_cli.verifiers.rules.choice_reading import Reading
from safework_cli.verifiers.rules.choice_text import Options, lower_case, readable
from safework_cli.verifiers.rules.correctness import CorrectnessRule
from safework_cli.verifiers.rules.text import ContainsRule
from safework_cli.verifiers.rules.text_tokens import tokens_of

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_NUMBER = re.compile(r"(?<![\w.])[-−]?\d[\d,]*(?:\.\d+)?(?:/\d+)?")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|[。！？\n]")
_SAME_TWICE = re.compile(r"⟦⟧(?:\s*[,(]?\s*(?:or|或者?|also known as|also called)\s+⟦⟧)+")
_DOUBTED = re.compile(
    r"(?:\bnot|n't|\bnever)\s+(?:think|believe(?! in\b)|say|mean|agree|feel|claim|conclude|sure)\b[^.!?,;:\n]*$|\bdoubt\b[^.!?,;:\n]*$"
    r"|(?:\bnot|n't)\s+(?:(?:actually|really|necessarily|simply|called|named|known as|in|be|the|a)\s+)+$|(?:不认为|不觉得|不相信)[^。,!?]*$"
)
_UNSURE = re.compile(
    r"\b(?:could|may|might|maybe|perhaps|possibly|probably|likely|either|not sure|unsure|guess)\b|可能|也许|或许|大概|不确定"
)
_SHORT = 12
"""Words of a sentence whose "or" joins answers: in a longer one, that does not say it is unsure, it may join anything."""
_OR_BEFORE = re.compile(
    r"\beither\b[^.,;:!?\n]*$|[\w)]\W{0,3}\s(?:or|又或者?)\s+(?:(?:the|a|an|in|maybe|perhaps|even|possibly)\s+)*$|(?:或者?|还是)\s*$"
)
_OR_AFTER = re.compile(
    r"(?:\s*,(?!\s*(?:for|by|whether|and|but|which|who|in|at|on|with|as|from|to|it|is|more|sooner)\b)[^,.;:!?\n]{1,40}){0,12}\s*,?\s+or\s+"
    r"(?!rather|simply|just|in other|more precisely|as\b|also|so\b|not\b|less\b|later\b|worse\b)\w|\s*(?:、[^、。,]{1,20})*(?:或|还是)"
)
_OPPOSITES = {"yes": "no", "no": "yes", "true": "false", "false": "true"}


class LenientRule:
    """1 where the strict rule says so, or where the final answer holds the right answer and no other option.

    - choice: of the options' texts, the reply names only the right one, and it states no letter, or a wrong letter directly before the
      right text ("C) Paris": a slip of the letter). "The answer is C. Some say Paris." is C.
    - a number as the gold answer: it is the last number of the reply.
    - other short answers: the gold answer or an alias occurs as whole words, is not denied and not one of several joined by "or"; for
      yes, no, true and false, the opposite does not occur.
    - constraints: the share that is kept, as in the strict rule. There is no lenient form of a constraint.

    Labels are those of the strict rule.
    """

    name = "lenient"
    version = 2  # a letter that was stated counts, and candidates joined by "or" do not
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
    """Whether the reply names the text of the right option and of no other, and states no other letter but before that text."""
    gold = (exchange.answer or "").strip().strip("().").upper()
    return options_named(exchange) == {gold} and (not letters_stated(exchange) - {gold} or slip_of_the_letter(exchange, gold))


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
    if options.occurring(text) and not Reading(text, options).unnegated(text):
        return False
    places = _places(lower_case(text), golds)
    return not places or any(not _denied_or_one_of_several(*place) for place in places)


def _places(text: str, golds: Sequence[str]) -> list[tuple[str, str]]:
    """What stands before and after each occurrence of a gold answer as it is written, in its sentence, other gold answers as "⟦⟧"."""
    written = "|".join(
        sorted((r"\s+".join(map(re.escape, lower_case(readable(gold)).split())) for gold in golds if gold.strip()), key=len)[::-1]
    )
    marked = re.sub(rf"(?<![a-z0-9])(?:{written})(?![a-z0-9])", "⟦⟧", text) if written else text
    marked = _SAME_TWICE.sub("⟦⟧", marked)
    sentences = [sentence for sentence in _SENTENCE.split(marked) if "⟦⟧" in sentence]
    return [(s[max(0, at - 200) : at], s[at + 2 : at + 202]) for s in sentences[:50] for at in _found(s, "⟦⟧")]


def _found(text: str, part: str) -> list[int]:
    return [match.start() for match in re.finditer(re.escape(part), text)][:50]


def _denied_or_one_of_several(before: str, after: str) -> bool:
    if _DOUBTED.search(before) or cues.DENIED.search(before.rstrip(" \"'(")):
        return True
    answers = len(tokens_of(before + after)) <= _SHORT or _UNSURE.search(before)
    return bool(answers and (_OR_BEFORE.search(before) or _OR_AFTER.match(after)))
