"""Calendar dates in text, in one spelling, so that two that mean the same day are equal as text.

Month names are CLDR's, by Babel; dateparser and dateutil guess an order for 03/04/2020, take numbers for dates, and are slow in prose.
A date becomes its year, month and day in this order, so that "August 2008" is in "15 August 2008". A date of numbers whose order is not
certain stays as it is written: it equals itself, and nothing else.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache

LANGUAGES = (
    "en",
    "fr",
    "de",
    "es",
    "it",
    "pt",
    "nl",
    "ru",
    "uk",
    "pl",
    "cs",
    "sv",
    "da",
    "nb",
    "fi",
    "tr",
    "ro",
    "hu",
    "id",
    "el",
    "ca",
    "vi",
)
MARK = "\ue000"
"""Begins the tokens of months and days: no text holds it, ``folded`` drops it."""

_WORD = r"([^\W\d_]{3,12})\.?"
_DAY = r"(?<![\d.,/:-])(\d{1,2})(?:st|nd|rd|th|er|\.|º)?"
_YEAR = r"(\d{4})(?![\d:]|[.,]\d)"
_OF = r"(?:\s{1,2}(?:of|de|del|da)\b)?\s{0,2}"
_WEEKDAY = r"(?:\b(?:mon|tues|wednes|thurs|fri|satur|sun)day,?\s{1,2})?"
_DAY_MONTH_YEAR = re.compile(rf"{_WEEKDAY}{_DAY}{_OF}[\s-]{{0,2}}{_WORD},?{_OF}[\s-]{{0,2}}{_YEAR}")
_MONTH_DAY_YEAR = re.compile(rf"{_WEEKDAY}(?<![^\W_]){_WORD}\s{{1,2}}(?:the\s)?(\d{{1,2}})(?:st|nd|rd|th)?(?:,\s{{0,2}}|\s{{1,2}}){_YEAR}")
_YEAR_MONTH_DAY = re.compile(rf"(?<![\d.,-])(\d{{4}}),?\s{{1,2}}{_WORD}\s{{1,2}}(\d{{1,2}})(?:st|nd|rd|th)?(?![\d:])")
_MONTH_YEAR = re.compile(rf"(?<![^\W_]){_WORD},?{_OF}[\s-]{{0,2}}{_YEAR}")
_DAY_MONTH = re.compile(rf"{_WEEKDAY}{_DAY}{_OF}{_WORD}(?![^\W_])")
_MONTH_DAY = re.compile(rf"{_WEEKDAY}(?<![^\W_]){_WORD}\s{{1,2}}(\d{{1,2}})(?:st|nd|rd|th)?(?![\d:]|[.,/]\d)")
_ISO = re.compile(r"(?<![\d.,/-])(\d{4})([-/.])(\d{1,2})\2(\d{1,2})(?![\d/-]|\.\d)(?:t[\d:.]+z?)?")
_NUMBERS = re.compile(r"(?<![\d.,/-])(\d{1,2})([-/.])(\d{1,2})\2(\d{4})(?![\d/-]|\.\d)")
_DIGIT = re.compile(r"\d")
_LETTERS = re.compile(r"[^\W\d_]{3,12}")
_CJK_DAY = re.compile(r"(?:(?<!\d)(\d{4})\s?[年년]\s?)?(?<!\d)(\d{1,2})\s?[月월]\s?(?:(\d{1,2})\s?[日号號일])?")
_CJK_YEAR = re.compile(r"(?<!\d)([12]\d{3})\s?[年년](?!代|级|度)")


@cache
def month_names() -> dict[str, int]:
    """Names and abbreviations of months, folded, in all ``LANGUAGES``; those that mean different months in two languages are left out."""
    from babel import Locale

    numbers: dict[str, int] = {}
    clashes = set()
    for language in LANGUAGES:
        months = Locale.parse(language).months
        for form in ("format", "stand-alone"):
            for width in ("wide", "abbreviated"):
                for number, name in months[form].get(width, {}).items():
                    folded = _unaccented(name.casefold()).rstrip(".")
                    if numbers.setdefault(folded, number) != number and language != "en":
                        clashes.add(folded)
    english = {_unaccented(name.casefold()): n for n, name in Locale.parse("en").months["format"]["wide"].items()}
    return {name: number for name, number in numbers.items() if name not in clashes and len(name) >= 3} | english | {"sept": 9}


def _unaccented(text: str) -> str:
    return (
        "".join(c for c in unicodedata.normalize("NFD", text) if not ("\u0300" <= c <= "\u036f"))
        if text.isascii() or _latin(text)
        else text
    )


def _latin(text: str) -> bool:
    return any("a" <= c <= "z" for c in text)


def with_dates(text: str) -> str:
    """A folded text (lower case, no accents) with its dates in one spelling."""
    if _DIGIT.search(text) is None:
        return text
    if "月" in text or "월" in text:
        text = _CJK_DAY.sub(lambda m: _date(m[0], m[1], int(m[2]), m[3]), text)
    if "年" in text or "년" in text:
        text = _CJK_YEAR.sub(r" \1 ", text)
    text = _ISO.sub(lambda m: _date(m[0], m[1], int(m[3]), m[4]), text)
    text = _NUMBERS.sub(_numbers, text)
    if month_names().keys().isdisjoint(_LETTERS.findall(text)):
        return text
    text = _DAY_MONTH_YEAR.sub(_named(lambda m: (m[3], m[2], m[1])), text)
    text = _MONTH_DAY_YEAR.sub(_named(lambda m: (m[3], m[1], m[2])), text)
    text = _YEAR_MONTH_DAY.sub(_named(lambda m: (m[1], m[2], m[3])), text)
    text = _MONTH_YEAR.sub(_named(lambda m: (m[2], m[1], None)), text)
    text = _DAY_MONTH.sub(_named(lambda m: (None, m[2], m[1])), text)
    return _MONTH_DAY.sub(_named(lambda m: (None, m[1], m[2])), text)


def _named(parts: Callable[[re.Match[str]], tuple[str | None, str, str | None]]) -> Callable[[re.Match[str]], str]:
    def replaced(match: re.Match[str]) -> str:
        year, name, day = parts(match)
        month = month_names().get(name)
        return match[0] if month is None else _date(match[0], year, month, day)

    return replaced


def _numbers(match: re.Match[str]) -> str:
    first, second = int(match[1]), int(match[3])
    if first > 12 >= second or first == second:
        return _date(match[0], match[4], second, match[1])
    if second > 12 >= first:
        return _date(match[0], match[4], first, match[3])
    return f" {MARK}x{first}x{second}x{match[4]} "


def _date(text: str, year: str | None, month: int, day: str | None) -> str:
    if not 1 <= month <= 12 or (day is not None and not 1 <= int(day) <= 31):
        return text
    return f" {year or ''} {MARK}m{month} {f'{MARK}d{int(day)}' if day else ''} "
