"""One value without structure: a number with its unit, a ratio, a time, a number in another base, words, or an expression."""

from __future__ import annotations

import re
from fractions import Fraction

from safework_cli.verifiers.rules.math_notation import FUNCTIONS, latex_of, split_top
from safework_cli.verifiers.rules.math_values import MAX_DIGITS, UNITS, Based, Expression, Number, Ratio, TooLarge, Unreadable, Value, Words
from safework_cli.verifiers.rules.numerals import chinese_in_digits, english_in_digits

_CURRENCY = {"¤": "$", "$": "$", "€": "€", "£": "£", "¥": "¥", "₹": "₹"}
_DIGITS = r"\d+(?:\.\d*)?|\.\d+"
_NUMBER = re.compile(
    rf"([+-]?)\s*({_DIGITS})(?:\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*(?:\{{\s*([+-]?\d+)\s*\}}|\(([+-]?\d+)\)|([+-]?\d+))|[eE]([+-]?\d+))?"
)
_TEN = re.compile(r"([+-]?)\s*10\s*\^\s*(?:\{\s*([+-]?\d+)\s*\}|\(([+-]?\d+)\)|([+-]?\d+))")
_OVER = re.compile(r"([+-]?)\s*(?:(\d+)\s*)?(?:\\frac\s*(?:\{\s*([+-]?\d+(?:\.\d+)?)\s*\}|(\d))\s*(?:\{\s*([+-]?\d+(?:\.\d+)?)\s*\}|(\d)))")
_SLASHED = re.compile(r"([+-]?)\s*(?:(\d+)\s+)?(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)")
_REPEATING = re.compile(
    r"([+-]?)(\d*)\.(\d*)(?:\\(?:overline|bar|dot)\s*\{(\d+)\}|\\(?:overline|bar|dot)\s*(\d)|\((\d+)\))(?:\.\.\.|\\l?dots)?"
)
_BASE = re.compile(
    r"([0-9A-Za-z]*\d[0-9A-Za-z]*)\s*_\s*(?:\{\s*(?:\\text\{)?\s*(\d{1,2}|two|three|four|five|six|seven|eight|nine|ten|twelve)\s*\}?\s*\}|(\d{1,2}))"
)
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "twelve": 12}
_CLOCK = re.compile(r"(\d{1,2}(?::\d{2}){1,2})\s*(?:(am|pm)|([ap])\.\s?m\.?)?", re.IGNORECASE)


def single(text: str, raw: str) -> Value:
    """One value: a number with its unit, a ratio, a time, a number in another base, words, or an expression."""
    digits = max((len(run) for run in re.findall(r"\d+", text)), default=0)
    if digits > MAX_DIGITS:
        raise TooLarge(f"it is too large, with a number of more than {MAX_DIGITS} digits")
    if not re.search(r"[0-9]", text):
        text = spelled_out(text)
    elif re.search(r"[\u4e00-\u9fff]|illion|thousand", text):
        text = english_in_digits(chinese_in_digits(text))
    text = re.sub(r"(?<![A-Za-z])(?:minus|negative)\s+(?=\d)", "-", text)
    if re.fullmatch(r"-?(?:0,\d+|\d+,(?!\d{3}$)\d+)", text):
        text = text.replace(",", ".")  # a decimal comma
    number = _number(text)
    if number is not None:
        return number
    clock = _CLOCK.fullmatch(text)
    parts, colons = split_top(text, re.compile(r":|\\colon"))
    if clock or (colons and all(plain_value(part.strip()) is not None for part in parts)):
        values = [plain_value(part.strip()) for part in (clock[1].split(":") if clock else parts)]
        half = ""
        if clock and (clock[2] or clock[3]):
            half = (clock[2] or clock[3] + "m").lower()
        hours = [value for value in values if value is not None]
        may_be_time = clock is not None and hours[0] <= 24 and all(value < 60 for value in hours[1:])
        return Ratio(tuple(hours), may_be_time, half)
    to = re.fullmatch(r"(\d+(?:\.\d+)?)\s+to\s+(\d+(?:\.\d+)?)", text)
    if to:
        return Ratio((Fraction(to[1]), Fraction(to[2])))
    based = _BASE.fullmatch(text)
    if based:
        base = _BASES.get(based[2] or "") or int(based[2] or based[3])
        if 2 <= base <= 36 and all(char.isalnum() and int(char, 36) < base for char in based[1]):
            return Based(based[1].upper().lstrip("0") or "0", base)
    if _is_words(text):
        return words_of(text)
    if text.count("{") - text.count("\\{") != text.count("}") - text.count("\\}"):
        raise Unreadable("its braces do not match")
    expression, unit = _expression_unit(text)
    return Expression(latex_of(expression), raw, unit)


def spelled_out(text: str) -> str:
    text = english_in_digits(chinese_in_digits(text), fractions=True)
    return text


def _expression_unit(text: str) -> tuple[str, str]:
    r"""An expression without a degree sign, a currency or trailing words, and the unit that they say."""
    if re.search(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])", text):
        return re.sub(r"(\d+)\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})", r"\\frac{\1\\pi}{180}", text), ""
    degrees = re.fullmatch(r"(.*?)\s*\^\s*\{?\s*\\circ\s*\}?", text)
    if degrees:
        return degrees[1], "degree"
    money = re.fullmatch(r"(-?)\s*([¤€£¥₹])\s*(.*)", text)
    if money:
        return money[1] + money[3], _CURRENCY[money[2]]
    worded = re.fullmatch(r"(.*[\d})])\s+([A-Za-z]{3,}(?:[\s/][A-Za-z^0-9]+)*)", text)
    if worded and worded[2].split()[0].lower() not in FUNCTIONS and not worded[2].startswith(("pi", "sqrt", "sin", "cos")):
        return worded[1], unit_name(worded[2])
    return text, ""


def plain_value(text: str) -> Fraction | None:
    number = _number(text)
    return number.value if number is not None and not number.unit and not number.percent else None


def _number(text: str) -> Number | None:
    """A number with whatever stands around it, or None."""
    text = text.strip()
    unit = ""
    percent = False
    money = re.match(r"([+-]?)\s*(?:US|AU|CA)?([¤€£¥₹])\s*", text)
    if money:
        text, unit = money[1] + text[money.end() :], _CURRENCY[money[2]]
    ends = re.search(r"\s*(?:([¤€£¥₹])|(%|percent(?:age)?|per cent|pct)|(\^\s*\{?\s*\\circ\s*\}?(?:\s*[CF])?))\s*$", text)
    if ends and ends.start() > 0:
        text = text[: ends.start()]
        percent = ends[2] is not None
        unit = _CURRENCY[ends[1]] if ends[1] else "degree" if ends[3] else unit
    if not unit and not percent:
        worded = re.fullmatch(
            r"(.*?[\d}])\s*((?<=\s)(?:[A-Za-zµ]{2,}\.?|[mgshLlNJWVAKCF](?![A-Za-z]))(?:[\s/·-]+[A-Za-z.]+)*(?:\s*\^?\s*\{?[23]\}?)?|[\u4e00-\u9fff]{1,8})",
            text,
        )  # fmt: skip
        tight = re.fullmatch(r"(.*?[\d}])(kg|km|cm|mm|ml|mL|mg|mph|km/h|ft|hr|Hz|cm\^\{?[23]\}?|m\^\{?[23]\}?|km\^\{?2\}?)", text)
        worded = tight or worded
        if worded and (not worded[2].isascii() or not re.match(rf"(?:{'|'.join(FUNCTIONS)}|pi|sqrt|or|and|to)\b", worded[2])):
            text, unit = worded[1].strip(), unit_name(worded[2])
            if re.fullmatch(r"percent(age)?|pct|per cent", unit):
                unit, percent = "", True
    value = _number_alone(text.strip())
    if value is None:
        return None
    return Number(value.value, value.last_place, value.digits, percent, unit)


def _number_alone(text: str) -> Number | None:
    if not text or len(text) > 3 * MAX_DIGITS:
        return None
    inner = re.fullmatch(r"([+-]?)\s*[({]\s*([+-]?[^(){}]*)[)}]", text)
    if inner:
        found = _number_alone(inner[2].strip())
        return found and Number(-found.value if inner[1] == "-" else found.value, found.last_place, found.digits)
    text = (
        re.sub(r"(?<=\d)[ ,](?=\d{3}(?:[ ,.]|$|\s))", "", text)
        if re.fullmatch(r"[+-]?\s*\d{1,3}(?:([ ,])\d{3})(?:\1\d{3})*(?:\.\d+)?", text)
        else text
    )
    whole = _NUMBER.fullmatch(text)
    if whole:
        exponent = (
            int(whole[3] or whole[4] or whole[5] or whole[6] or 0) if len(whole[3] or whole[4] or whole[5] or whole[6] or "") < 6 else 10**6
        )
        if abs(exponent) > 2 * MAX_DIGITS:
            raise TooLarge("its exponent is too large")
        value = Fraction(whole[2] if not whole[2].endswith(".") else whole[2][:-1]) * Fraction(10) ** exponent
        decimals = len(whole[2].partition(".")[2])
        written = exponent != 0 or decimals > 0
        digits = len(whole[2].replace(".", "").lstrip("0"))
        return Number(-value if whole[1] == "-" else value, Fraction(10) ** (exponent - decimals) if written else None, digits)
    ten = _TEN.fullmatch(text)
    if ten:
        power = ten[2] or ten[3] or ten[4]
        if len(power) > 4 or abs(int(power)) > 2 * MAX_DIGITS:
            return None
        return Number((-1 if ten[1] == "-" else 1) * Fraction(10) ** int(power))
    repeating = _REPEATING.fullmatch(text)
    if repeating:
        start, again = repeating[3], repeating[4] or repeating[5] or repeating[6]
        value = Fraction(
            int((repeating[2] or "0") + start + again) - int((repeating[2] or "0") + start or "0"),
            (10 ** len(again) - 1) * 10 ** len(start),
        )
        return Number(-value if repeating[1] == "-" else value)
    for pattern in (_OVER, _SLASHED):
        over = pattern.fullmatch(text)
        if not over:
            continue
        top, bottom = (over[3] or over[4], over[5] or over[6]) if pattern is _OVER else (over[3], over[4])
        if Fraction(bottom) == 0:
            return None
        value = Fraction(top) / Fraction(bottom)
        if over[2]:
            value += int(over[2])
        return Number(-value if over[1] == "-" else value)
    return None


def unit_name(text: str) -> str:
    """A unit in one spelling: lower case, singular, "square meters" as "meter^2"."""
    text = re.sub(r"[{}\s.]+", " ", text).strip().replace(" ^", "^").replace("^ ", "^")
    text = re.sub(r"^(?:square|sq)\s+(\w+)$", r"\1^2", text, flags=re.IGNORECASE)
    text = re.sub(r"^(?:cubic|cu)\s+(\w+)$", r"\1^3", text, flags=re.IGNORECASE)
    text = re.sub(r"(?<=[a-z])([23])$", r"^\1", text)
    if text in ("a m", "p m"):
        return text.replace(" ", "")
    if len(text) > 1:
        text = text.lower()
    base, power, exponent = text.partition("^")
    for ending, new in (("inches", "inch"), ("feet", "ft"), ("foot", "ft")):
        if base == ending:
            base = new
    if base not in UNITS and base.endswith("s") and base[:-1] in UNITS:
        base = base[:-1]
    if power and base in ("meter", "centimeter", "kilometer", "millimeter"):
        base = {"meter": "m", "centimeter": "cm", "kilometer": "km", "millimeter": "mm"}[base]
    return base + power + exponent


def _is_words(text: str) -> bool:
    """Words rather than a formula: letters only, with a word of three letters or more."""
    if "\\" in text or not re.fullmatch(r"[A-Za-z\u00c0-\u024f\u0370-\u04ff\u3040-\u9fff\s'’.,\-()/&]+", text):
        return False
    if re.search(r"[\u3040-\u9fff]", text):
        return True
    tokens = re.findall(r"[A-Za-z\u00c0-\u04ff]+", text)
    return any(len(token) >= 3 and token not in FUNCTIONS for token in tokens) and not re.search(r"[A-Za-z]\(|\s-\s", text)


def words_of(text: str) -> Value:
    """Words; a number said in words is the number."""
    spelled = spelled_out(text)
    if spelled != text or re.search(r"\d", text):
        said = re.sub(r"(?<![A-Za-z])(?:minus|negative)\s+(?=\d)", "-", spelled).strip()
        number = _number(said)
        if number is not None:
            return number
    if not re.search(r"\w", text):
        raise Unreadable("it says nothing")
    return Words(text)
