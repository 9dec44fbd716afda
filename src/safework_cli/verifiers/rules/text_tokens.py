"""Short answers as tokens that are equal where what they say is: numbers, dates, quantities, words without case and accents.

English is cut into words, Chinese and Japanese into characters. What changes a value is kept: sign, decimal point, operators, percent,
"C++". What does not is dropped: case, accents of Latin letters, punctuation, thousands separators, full width, traditional characters.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from functools import cache
from typing import Any

from safework_cli.verifiers.rules.dates import MARK, month_names, with_dates
from safework_cli.verifiers.rules.numerals import chinese_in_digits, english_in_digits

ARTICLES = frozenset(("a", "an", "the"))
_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_UNIT = r"(?:[kcmn]m|[km]g|[mc]l|[kmg]?hz|[kmgt]b|[kmg]w|kwh|mph|kmh|ft|lbs?|oz|am|pm|mi|min|sec|hrs?|yrs?|[mglsvw]|°[cf]|bn|cc)"
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:e[+-]?\d{1,3}(?![^\W_]))?"
_TOKEN = re.compile(
    rf"{MARK}[md]\d+|{MARK}x\w+"
    rf"|(?P<time>\d{{1,2}}(?::\d{{2}}){{1,2}}(?![\d:]))(?:\s?(?P<half>[ap])\.?\s?m\b\.?)?"
    r"|\d+(?:\.\d+){2,}(?![^\W_])|(?<![^\W_])-?\d+(?:/\d+)+(?![^\W_])"
    rf"|(?P<number>(?:(?<![^\W_])(?<![)\]%])-)?{_NUMBER})(?=(?:{_UNIT})?(?![^\W_{_CJK}]))"
    rf"|[{_CJK}]"
    rf"|[^\W_{_CJK}{MARK}]+(?:\+\+|\#|\+(?![\w+]))?"
    r"|(?P<sign>%|≤|≥|≠|±|×|÷|<=|>=|!=|[<>=+^](?![<>=+^]))|(?<=\d)\*(?=\d)"
)
_SIGNS = {"<=": "≤", ">=": "≥", "!=": "≠"}
_NAMES = {"dollar": "dollar", "dollars": "dollar", "usd": "dollar", "euros": "euro", "eur": "euro", "pounds": "pound", "gbp": "pound",
          "percent": "%", "percents": "%", "percentage": "%", "kilometers": "km", "kilometres": "km", "kilometer": "km", "kilometre": "km",
          "centimeters": "cm", "centimetres": "cm", "meters": "m", "metres": "m", "meter": "m", "metre": "m", "kilograms": "kg",
          "kilogram": "kg", "feet": "ft", "foot": "ft"}  # fmt: skip
_MONEY = re.compile(rf"(?:\b(?:us|u\.s\.)\s?)?([$€£])\s?({_NUMBER})(?!\$)")
_MONEY_NAMES = {"$": "dollar", "€": "euro", "£": "pound"}
_STYLE = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|boxed|operatorname|mbox|left|right|quad|displaystyle)(?![a-z])|[{}\\]"
)
_SUPERSCRIPT = str.maketrans({c: f"^{d}" for c, d in zip("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789", strict=True)} | {"−": "-", "﹣": "-"})
_GROUPED_BY_SPACE = re.compile(r"(?<![\d.,-])\d{1,3}(?:[\u00a0\u2009\u202f ]\d{3})+(?![\d])(?![.,]\d{3}(?!\d))")
_GROUPED_BY_DOT = re.compile(r"(?<![\d.,])\d{1,3}(?:\.\d{3}){2,}(?![\d.])")
_INITIALS = re.compile(r"(?<![^\W_])[^\W\d_](?:\.[^\W\d_])+(?![^\W_])\.?|(?<![^\W_])[^\W\d_]\.(?:\s[^\W\d_]\.)+")
_PLAIN = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ı": "i", "ħ": "h",
    "&": " and ", "\u2044": "/",
                        "–": " ", "—": " ", "‐": "-", "‑": "-", "「": " ", "」": " ",
                        "℃": "°c"})  # fmt: skip


class _Fold(dict[int, str]):
    """Character → lower case, without the accents of a Latin letter, simplified: made as characters come up."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        folded = char.casefold().translate(_PLAIN)
        base = unicodedata.normalize("NFD", folded)
        if len(base) > 1 and base[0].isascii():
            folded = "".join(c for c in base if not unicodedata.combining(c))
        if 0x3400 <= code <= 0x9FFF or code >= 0x20000:
            folded = _simplified(char)
        elif "\u0300" <= char <= "\u036f" or unicodedata.category(char) in ("Cf", "Co"):
            folded = ""
        self[code] = folded
        return folded


_FOLD = _Fold()


@cache
def _converter() -> Any:
    import opencc

    return opencc.OpenCC("t2s")


def _simplified(char: str) -> str:
    return str(_converter().convert(char))


def folded(text: str) -> str:
    """A text in lower case and compatibility form, Latin letters without accents, Chinese characters simplified."""
    if text.isascii():
        return text.lower().replace("&", " and ")
    return unicodedata.normalize("NFKC", text.translate(_SUPERSCRIPT)).translate(_FOLD)


def tokens_of(text: str) -> list[str]:
    """Normalised tokens, articles left out (unless nothing else is there): words, or characters for Chinese."""
    text = _STYLE.sub(" ", folded(text)) if "\\" in text or "{" in text else folded(text)
    text = text.replace("'", "").replace("\u2019", "").replace("`", "")
    text = with_dates(chinese_in_digits(text))
    text = english_in_digits(text)
    if text.strip(' .!?,"*') == "one":
        text = "1"
    if any(c in text for c in "$€£"):
        text = _MONEY.sub(lambda m: f"{m[2]} {_MONEY_NAMES[m[1]]} ", text)
        text = english_in_digits(re.sub(r"(\d) (dollar|euro|pound)  ?(million|billion|trillion|thousand)\b", r"\1 \3 \2", text))
    text = text.replace("per cent", "%")
    text = _INITIALS.sub(lambda m: re.sub(r"[.\s]", "", m[0]) + " ", text)
    text = _GROUPED_BY_SPACE.sub(lambda m: re.sub(r"\D", "", m[0]), text)
    text = _GROUPED_BY_DOT.sub(lambda m: m[0].replace(".", ""), text)
    tokens = [token for match in _TOKEN.finditer(text) if (token := _token(match, text))]
    return [token for token in tokens if token not in ARTICLES] or tokens


def _token(match: re.Match[str], text: str) -> str:
    written = match[0]
    if match["number"]:
        return number_of(written)
    if match["time"]:
        return _time(match["time"], match["half"])
    if match["sign"]:
        return _SIGNS.get(written, written) if written == "%" or _between(match, text) else ""
    if written[0] == MARK:
        return written
    written = _NAMES.get(written, written)
    month = month_names().get(written) if len(written) > 3 and written in _ENGLISH_MONTHS else None
    return f"{MARK}m{month}" if month else written


_ENGLISH_MONTHS = frozenset(
    ("january", "february", "march", "april", "june", "july", "august", "september", "october", "november", "december")
)


def _between(match: re.Match[str], text: str) -> bool:
    """Whether an operator stands between two operands, or before one; not a quotation mark of Markdown, a rule, or an arrow."""
    before, after = text[max(0, match.start() - 2) : match.start()].rstrip(" "), text[match.end() : match.end() + 2].lstrip(" ")
    joined = bool(after) and (after[0].isalnum() or after[0] in "-.(" + MARK)
    return joined and bool(before) and (before[-1].isalnum() or before[-1] in ")]%")


def number_of(text: str) -> str:
    """A number without separators, leading and closing zeros: "1,234.50" is "1234.5"."""
    text = text.replace(",", "")
    if "e" in text:
        value = Decimal(text).normalize()
        text = f"{value:f}" if abs(value.adjusted()) < 60 else str(value)
    sign, digits = ("-", text[1:]) if text[0] == "-" else ("", text)
    whole, point, places = digits.partition(".")
    places = places.rstrip("0")
    whole = whole.lstrip("0") or "0"
    number = f"{whole}.{places}" if point and places else whole
    return number if number == "0" else sign + number


def _time(text: str, half: str | None) -> str:
    hour, rest = text.split(":", 1)
    number = int(hour)
    if half == "p" and number < 12:
        number += 12
    elif half == "a" and number == 12:
        number = 0
    return f"{number}:{rest}"
