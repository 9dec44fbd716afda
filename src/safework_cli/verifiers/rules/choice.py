r"""Multiple choice: which letter a reply chose, read as a careful person reads it (``choice_reading``)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from safework_cli.verifiers.contract import UNPARSED, Exchange, Verdict
from safework_cli.verifiers.rules.choice_cues import NEXT_QUESTION
from safework_cli.verifiers.rules.choice_reading import Reading
from safework_cli.verifiers.rules.choice_text import Options, lower_case, readable

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
UNKNOWN_CHOICES = 10
"""How many letters count where the options are not known."""
_CONTROL = re.compile(r"<\|\w{1,40}\|>|</?s>|<(?:start|end)_of_turn>|\[/?INST\]")
"""Control tokens that a model wrote after its reply: what follows is another turn."""
_ANSWER_PREFIX = re.compile(r"(?:^|\n)A: (?!because|since)")
_BEFORE_TEXT = re.compile(r"(?<![A-Za-z0-9])([A-Z])(?![A-Za-z0-9'])(?:[ )\].:,–—\"]|-(?!\d)){1,6}")
_LETTER_B = re.compile(r"(?:^|\n)[(]?B[):.]")


def chosen_letter(final: str, choices: Sequence[str]) -> str | None:
    """The letter that a final answer chose, or None where it chose none or more than one, or where that is not clear.

    Args:
        choices: the options' texts in order, at most 26; empty where unknown, then the letters A to J count and texts cannot be recognised.
    """
    return read_letter(final, options_of(tuple(choices), LETTERS[: len(choices)] if choices else LETTERS[:UNKNOWN_CHOICES]))


def read_letter(final: str, options: Options) -> str | None:
    """``chosen_letter`` with the options prepared."""
    text = readable(next((part for part in _CONTROL.split(final) if part.strip()), ""))
    low = lower_case(text)
    if (prefix := _ANSWER_PREFIX.search(text)) and not _LETTER_B.search(text) and not options.length_after("A", low[prefix.end() :]):
        text = f"{text[: prefix.start()]}answer: {text[prefix.end() :]}"  # "A: B", as in "Q: … A: …"
        low = lower_case(text)
    start, read = 0, 0
    for cut in [*(match.start() for match in NEXT_QUESTION.finditer(low)), len(text)]:
        if text[start:cut].strip():  # a reply that runs on into a question of its own has answered before it; one may also begin by it
            letter = Reading(text[start:cut].strip(), options).letter()
            read += 1
            if letter is not None or read == 2:
                return letter
        start = cut
    return None


def options_named(exchange: Exchange) -> set[str]:
    """The letters of the options whose texts the final answer names and does not deny. Raises no error: without options, none."""
    choices = _choices(exchange)
    if not 0 < len(choices) <= len(LETTERS):
        return set()
    text = readable(exchange.final)
    return Reading(text, options_of(choices, LETTERS[: len(choices)])).unnegated(text)


def letters_stated(exchange: Exchange) -> set[str]:
    """The letters that the final answer states or begins with, those of "B or C" too; not those of options that it states by their text."""
    options = options_of(_choices(exchange), _letters(exchange)[0])
    text = readable(exchange.final)
    stated = {
        text[event.start].upper()
        for event in Reading(text, options).events()
        if event.kind in ("stated", "several") and event.end == event.start + 1  # more than a letter: a text, or a box
    }
    letter = read_letter(exchange.final, options)
    return (stated | ({letter} if letter is not None else set())) & set(options.valid)


def slip_of_the_letter(exchange: Exchange, right: str) -> bool:
    """Whether a letter other than the right one stands directly before the right option's text: "C) Paris", where Paris is A."""
    options = options_of(_choices(exchange), _letters(exchange)[0])
    text = readable(exchange.final)
    for match in list(_BEFORE_TEXT.finditer(text))[-300:]:
        rest = text[match.end() :]
        own = options.length_after(right, lower_case(rest))
        whole = any(options.is_text_of(right, part) for part in (rest, rest.partition("\n")[0])) or (
            own and re.match(r"\W*$|\s*[.,;:)!?\n]|\s+(?:because|since|as)\b", rest[own:])
        )
        if match[1] in options.valid and match[1] != right and whole:
            return True
    return False


@lru_cache(maxsize=1024)
def options_of(choices: tuple[str, ...], letters: str) -> Options:
    """The options of a question, prepared once for its replies."""
    return Options(choices, letters)


class ChoiceRule:
    """1 where the chosen letter is the gold letter, else 0. Labels: "correct", "wrong", "unparsed" (none, or not clear: score 0).

    The gold answer is a letter of ``meta.choices`` (at most 26); without choices the letters A to J count, and a later gold letter with
    those before it.
    """

    name = "choice"
    version = 2  # letters are read one by one with what is said of them

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        return [self._judge(e) for e in exchanges]

    @staticmethod
    def gold_problem(exchange: Exchange) -> str | None:
        """Why the gold answer is not a letter of the question, or None."""
        return _letters(exchange)[1]

    def _judge(self, exchange: Exchange) -> Verdict:
        valid, problem = _letters(exchange)
        if problem is not None:
            return Verdict(None, error=problem)
        chosen = read_letter(exchange.final, options_of(_choices(exchange), valid))
        if chosen is None:
            return Verdict(0.0, UNPARSED)
        right = chosen == _gold(exchange)
        return Verdict(float(right), "correct" if right else "wrong")


def _choices(exchange: Exchange) -> tuple[str, ...]:
    return tuple(str(choice) for choice in exchange.meta.get("choices") or ())


def _gold(exchange: Exchange) -> str:
    return (exchange.answer or "").strip().strip("().").upper()


def _letters(exchange: Exchange) -> tuple[str, str | None]:
    """The letters of an exchange's question, and why its gold answer is none of them, or None."""
    count, gold = len(_choices(exchange)), _gold(exchange)
    if count > len(LETTERS):
        return LETTERS, f"the question has {count} choices, and letters go to Z"
    valid = LETTERS[: count or max(UNKNOWN_CHOICES, LETTERS.find(gold) + 1 if len(gold) == 1 else 0)]
    known = len(gold) == 1 and gold in valid
    return valid, None if known else f"the gold answer {exchange.answer!r} is not a letter among {valid[0]}–{valid[-1]}"
