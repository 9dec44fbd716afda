"""Numbers in words, as digits: Chinese numerals and English number words.

Considered: cn2an and word2number. They convert a string that is a number and raise otherwise; here numbers are part of prose.
"""

from __future__ import annotations

import re
from fractions import Fraction

_DIGITS = {
    c: n for n, cs in enumerate(("〇零○", "一壹弌", "二贰貳两兩", "三叁參", "四肆", "五伍", "六陆陸", "七柒", "八捌", "九玖")) for c in cs
}
_UNITS = {"十": 10, "拾": 10, "百": 100, "佰": 100, "千": 1000, "仟": 1000}
_MYRIADS = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8, "兆": 10**12}
_DIGIT, _UNIT, _MYRIAD = "".join(_DIGITS), "".join(_UNITS), "".join(_MYRIADS)

LONGEST = 120
"""Most characters of a number in words: a longer one is left unchanged."""

_ARABIC_MYRIADS = re.compile(rf"(\d[\d,]*(?:\.\d+)?)\s?([{_UNIT}]?)([{_MYRIAD}]{{1,3}})")
_RUN = re.compile(rf"[负負]?[{_DIGIT}{_UNIT}{_MYRIAD}]+(?:[点點][{_DIGIT}]+)?")
_ANY = re.compile(rf"[{_DIGIT}{_UNIT}{_MYRIAD}]")
_PER = re.compile(r"([百千万])分之(?=[\d负負.]|[" + _DIGIT + _UNIT + "])")
_FRACTION = re.compile(r"(?:(\d+)又)?(\d+)分之(-?\d+(?:\.\d+)?)")
_PERCENT = re.compile(r"\x00([百千万])(-?\d+(?:\.\d+)?)")
_NOT_A_NUMBER = frozenset("些样样般直定切起共旦下向带致律并再何味")
"""After 一, these make a word that is not a count: 一些, 一样, 一共."""


def chinese_value(text: str) -> Fraction | None:
    """The value of a whole Chinese numeral ("负二点五", "三百零五", "二〇〇八", "一万三"), or None."""
    sign = -1 if text[:1] in ("负", "負") else 1
    whole, _, decimals = text.lstrip("负負").replace("點", "点").partition("点")
    if not whole or whole[0] in _MYRIAD or (whole[0] in _UNIT and whole[0] not in "十拾"):
        return None
    if all(c in _DIGITS for c in whole):
        value = Fraction("".join(str(_DIGITS[c]) for c in whole))
    else:
        total = section = digit = Fraction(0)
        last_unit = 1
        for char in whole:
            if char in _DIGITS:
                digit, last_unit = Fraction(_DIGITS[char]), (1 if _DIGITS[char] == 0 else last_unit)
            elif char in _UNITS:
                section += (digit or (1 if section == 0 else 0)) * _UNITS[char]
                digit, last_unit = Fraction(0), _UNITS[char]
            else:
                section += digit
                total = (total + section) * _MYRIADS[char] if section == 0 or total == 0 else total + section * _MYRIADS[char]
                section, digit, last_unit = Fraction(0), Fraction(0), _MYRIADS[char]
        value = total + section + digit * (last_unit // 10 if last_unit >= 100 and digit else 1)  # 一万三 is 13,000
    if decimals:
        value += Fraction(int("".join(str(_DIGITS[c]) for c in decimals)), 10 ** len(decimals))
    return sign * value


def in_digits(value: Fraction) -> str:
    """A value as text: "42", "2.5", or "2/3" where no decimal ends."""
    if value.denominator == 1:
        return str(value.numerator)
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    places = 0
    while (value * 10**places).denominator != 1:
        places += 1
    digits = f"{abs(value.numerator) * 10**places // value.denominator:0{places + 1}d}"
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def chinese_in_digits(text: str) -> str:
    """A text with its Chinese numerals in digits: "三百人" is "300人", "1.5万" is "15000", "五分之二" is "2/5", "百分之三" is "3%"."""
    if text.isascii() or _ANY.search(text) is None:
        return text

    def arabic(match: re.Match[str]) -> str:
        if len(match[1]) > LONGEST:
            return match[0]
        value = Fraction(match[1].replace(",", "")) * _UNITS.get(match[2], 1)
        for char in match[3]:
            value *= _MYRIADS[char]
        return in_digits(value)

    def run(match: re.Match[str]) -> str:
        following = text[match.end() : match.end() + 1]
        if len(match[0]) > 40 or (match[0] == "一" and following in _NOT_A_NUMBER):
            return match[0]
        value = chinese_value(match[0])
        return match[0] if value is None else in_digits(value)

    text = _PER.sub(lambda m: f"\x00{m[1]}", text)
    held = re.compile(rf"\x00[{_UNIT}万]")
    pieces, place = [], 0
    marks = list(held.finditer(text))
    whole = text
    for mark in [*marks, None]:
        end = len(whole) if mark is None else mark.start()
        text = whole[place:end]
        text = _ARABIC_MYRIADS.sub(arabic, text)
        pieces.append(_RUN.sub(run, text))
        if mark is not None:
            pieces.append(mark[0])
            place = mark.end()
    text = "".join(pieces)
    scale = {"百": "%", "千": "/1000", "万": "/10000"}
    text = _PERCENT.sub(lambda m: m[2] + scale[m[1]], text)
    return _FRACTION.sub(lambda m: f"{m[1] + ' ' if m[1] else ''}{m[3]}/{m[2]}", text).replace("\x00", "")


_ONES = dict(
    zip(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
        ],
        range(20),
        strict=True,
    )
)
_TENS = dict(zip(["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], range(20, 100, 10), strict=True))
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = {"half": 2, "halves": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9,
          "tenth": 10, "hundredth": 100}  # fmt: skip
_PARTS |= {f"{name}s": value for name, value in _PARTS.items() if not name.startswith("hal")}
_NUMBER_WORD = "|".join(sorted([*_ONES, *_TENS, *_SCALES], key=len, reverse=True))
_STEMS = tuple(word for word in [*_ONES, *_TENS, *_SCALES, "half", "third", "quarter", "fifth"] if not word.endswith(("teen", "ty")))
_STEMS = (*_STEMS, "teen", "ty")
_WORDS = re.compile(rf"\b(?:{_NUMBER_WORD})(?:(?:[\s-]+(?:and\s+)?)(?:{_NUMBER_WORD}))*\b", re.IGNORECASE)
_SCALED = re.compile(
    r"(?<![\w.,])(\d[\d,]*(?:\.\d+)?)[\s\u00a0-]?((?:(?:hundred|thousand|million|billion|trillion)s?\b[\s-]?)+)", re.IGNORECASE
)
_PART = re.compile(rf"\b(\d+|an?)[\s-]+({'|'.join(sorted(_PARTS, key=len, reverse=True))})\b", re.IGNORECASE)


def english_in_digits(text: str, *, fractions: bool = False) -> str:
    """A text with its English number words in digits: "twenty-one" is "21", "1.5 million" is "1500000".

    A lone "one" stays: it is a pronoun as often as a count. With ``fractions``, "two thirds" is "2/3".
    """

    def words(match: re.Match[str]) -> str:
        if (match[0].lower() == "one" and not fractions) or len(match[0]) > LONGEST:
            return match[0]
        numbers: list[int] = []
        total = current = 0
        last = ""
        for word in re.findall(r"[a-z]+", match[0].lower()):
            if word == "and":
                continue
            kind = "ones" if word in _ONES else "tens" if word in _TENS else "scale"
            if (kind == "ones" and last in ("ones", "small")) or (kind == "tens" and last in ("ones", "tens", "small")):
                numbers.append(total + current)
                total = current = 0
            if word in _ONES:
                current += _ONES[word]
                kind = "ones" if 0 < _ONES[word] < 10 else "small"
            elif word in _TENS:
                current += _TENS[word]
            elif word == "hundred":
                current = max(current, 1) * 100
            else:
                total, current = total + max(current, 1) * _SCALES[word], 0
            last = kind
        return " ".join(map(str, [*numbers, total + current]))

    def scaled(match: re.Match[str]) -> str:
        if len(match[0]) > LONGEST:
            return match[0]
        value = Fraction(match[1].replace(",", ""))
        for word in re.findall(r"[a-z]+", match[2].lower()):
            value *= _SCALES[word.removesuffix("s")]
        return in_digits(value) + (" " if match[0][-1:].isspace() else "")

    lower = text.lower()
    if not any(word in lower for word in _STEMS):
        return text
    text = _SCALED.sub(scaled, text)
    text = _WORDS.sub(words, text)
    if fractions:
        text = _PART.sub(lambda m: f"{1 if m[1].lower() in ('a', 'an') else m[1]}/{_PARTS[m[2].lower()]}", text)
    return text
