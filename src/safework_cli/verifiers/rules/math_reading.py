r"""What a mathematical answer says, read from its text: numbers, lists, intervals, matrices, ratios, equations, words.

Structure is read here, by one pass over brackets; what is left, a single expression, stays LaTeX and goes to math-verify's parser. All of
it is bounded by the size of the text: ``MAX_CHARACTERS`` and ``MAX_DEPTH``.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from safework_cli.verifiers.rules.numerals import chinese_in_digits, english_in_digits

MAX_CHARACTERS, MAX_DEPTH, MAX_DIGITS, MAX_ITEMS = 2_000, 24, 1_000, 200


class Unreadable(ValueError):
    """The text is not a mathematical answer."""


class TooLarge(ValueError):
    """Reading or comparing it would take more than a bounded number of operations."""


@dataclass(frozen=True, slots=True)
class Number:
    """``value``; ``last_place`` is the value of its last digit where it was written as a decimal, ``digits`` how many count."""

    value: Fraction
    last_place: Fraction | None = None
    digits: int = 0
    percent: bool = False
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Expression:
    """LaTeX of one expression; ``raw`` as it was written, for comparison by letters."""

    latex: str
    raw: str
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Words:
    text: str


@dataclass(frozen=True, slots=True)
class Group:
    """Several values between brackets: "(" and "[" are ordered, a set "{" and a bare list "" are not."""

    items: tuple[Value, ...]
    left: str = ""
    right: str = ""


@dataclass(frozen=True, slots=True)
class Union:
    parts: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    rows: tuple[tuple[Value, ...], ...]
    kind: str = "matrix"


@dataclass(frozen=True, slots=True)
class Named:
    """``name = value``."""

    name: str
    value: Value


@dataclass(frozen=True, slots=True)
class Equation:
    left: str
    right: str


@dataclass(frozen=True, slots=True)
class Chain:
    """``2 + 2 = 4``: the parts hold no variable and must all be equal; the last one is the answer."""

    parts: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Either:
    """The same answer in two forms: "√2 ≈ 1.414"."""

    forms: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Inequality:
    """``parts[0] signs[0] parts[1] …`` that is no interval of one variable."""

    parts: tuple[str, ...]
    signs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ratio:
    """``a:b``; ``clock`` where it may be a time of day; ``half`` is "am" or "pm" where it says so."""

    parts: tuple[Fraction, ...]
    clock: bool = False
    half: str = ""


@dataclass(frozen=True, slots=True)
class Based:
    digits: str
    base: int


Value = Number | Expression | Words | Group | Union | Matrix | Named | Equation | Chain | Either | Inequality | Ratio | Based

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "0123456789+-()ni")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋", "0123456789+-")
_CHARACTERS = {
    "−": "-", "–": "-", "—": "-", "﹣": "-", "‐": "-", "‑": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ",
    "÷": r"\div ", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "⩽": r"\le ", "≦": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≧": r"\ge ",
    "≠": r"\ne ", "≈": r"\approx ", "≒": r"\approx ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ", "∓": r"\mp ",
    "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
    "°": r"^\circ ", "º": r"^\circ ", "∠": r"\angle ", "△": r"\triangle ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ",
    "γ": r"\gamma ",
    "λ": r"\lambda ", "φ": r"\phi ", "ω": r"\omega ", "μ": r"\mu ", "σ": r"\sigma ", "，": ", ", "、": ", ", "；": "; ",
    "：": ":", "。": ".",
    "（": "(", "）": ")", "【": "[", "】": "]", "’": "'", "‘": "'", "“": '"', "”": '"', "′": "'", "\u00a0": r"\,",
    "\u2009": r"\,", "\u202f": r"\,",
    "\u3000": " ", "％": "%", "￥": "¥", "∖": r"\setminus ", "⟨": r"\langle ", "⟩": r"\rangle ",
    "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "\u200b": "", "\ufeff": "", "\u2061": "", "\u2062": "",
}  # fmt: skip
_TABLE = str.maketrans(_CHARACTERS)
_VULGAR = {c: f"{n}/{d}" for c, n, d in zip("½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞", (1, 1, 2, 1, 3, 1, 2, 3, 4, 1, 5, 1, 3, 5, 7),
                                           (2, 3, 3, 4, 4, 5, 5, 5, 5, 6, 6, 8, 8, 8, 8), strict=True)}  # fmt: skip
_DROPPED = re.compile(
    r"\\(?:left|right|bigg?[lrm]?|Bigg?[lrm]?|limits|displaystyle|textstyle|scriptstyle|hfill|bf|rm|it|,?\s*!)(?![A-Za-z])\.?"
    r"|\\(?:tag|label|phantom|hspace|vspace)\*?\s*\{[^{}]*\}|<<[^<>]*>>|\\!"
)
_SPACE = re.compile(r"(?<!\\)\\(?:[,;:> ]|q?quad(?![A-Za-z])|thinspace(?![A-Za-z])|enspace(?![A-Za-z])|(?=\n))|~|\s+")
_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|tt|sf|sc|up)?|mathrm|mathbf|mathit|mathsf|mathtt|boldsymbol|bm|mbox|hbox|operatorname\*?)\s*\{"
)
_COMMAND_NAMES = {"dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom", "leq": "le", "geq": "ge",
                  "leqslant": "le", "geqslant": "ge", "neq": "ne", "varnothing": "emptyset", "lbrace": "{", "rbrace": "}", "lbrack": "[",
                  "rbrack": "]", "lparen": "(", "rparen": ")", "lt": "<", "gt": ">", "degree": "circ", "N": "mathbb{N}",
                  "R": "mathbb{R}", "Z": "mathbb{Z}", "Q": "mathbb{Q}", "C": "mathbb{C}", "infin": "infty", "vert": "|",
                  "lvert": "|", "rvert": "|",
                  "mid": "|", "varphi": "phi", "varepsilon": "epsilon", "lg": "log_{10}", "backslash": "setminus", "ast": "cdot",
                  "iff": "Leftrightarrow", "land": "wedge", "lor": "vee"}  # fmt: skip
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_FUNCTIONS = ("arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "sin", "cos", "tan", "cot", "sec", "csc", "ln", "log", "exp", "max",
              "min", "gcd", "lcm", "det")  # fmt: skip
_CURRENCY = {"¤": "$", "$": "$", "€": "€", "£": "£", "¥": "¥", "₹": "₹"}
UNITS: dict[str, tuple[str, Fraction]] = {}
"""Unit → (dimension, scale). Units that are not listed are not compared: "5 apples" is 5."""
for _dimension, _units in {
    "length": {"mm": "1/1000", "millimeter": "1/1000", "cm": "1/100", "centimeter": "1/100", "dm": "1/10", "m": 1, "meter": 1, "km": 1000,
               "kilometer": 1000, "inch": "0.0254", "ft": "0.3048", "feet": "0.3048", "foot": "0.3048", "yard": "0.9144",
               "mile": "1609.344", "毫米": "1/1000", "厘米": "1/100", "米": 1, "千米": 1000, "公里": 1000},
    "area": {"mm^2": "1/1000000", "cm^2": "1/10000", "m^2": 1, "km^2": 1000000, "ft^2": "0.09290304", "inch^2": "0.00064516"},
    "volume": {"cm^3": "1/1000000", "m^3": 1, "ml": "1/1000000", "l": "1/1000", "liter": "1/1000", "litre": "1/1000"},
    "mass": {"mg": "1/1000000", "g": "1/1000", "gram": "1/1000", "kg": 1, "kilogram": 1, "克": "1/1000", "千克": 1, "公斤": 1},
    "time": {"s": 1, "sec": 1, "second": 1, "min": 60, "minute": 60, "h": 3600, "hr": 3600, "hour": 3600, "day": 86400, "week": 604800,
             "秒": 1, "分钟": 60, "小时": 3600, "天": 86400},
    "speed": {"m/s": 1, "km/h": "5/18", "kmh": "5/18", "mph": "0.44704"},
    "money $": {"$": 1, "dollar": 1, "cent": "1/100", "usd": 1},
    "money €": {"€": 1, "euro": 1},
    "money ¥": {"¥": 1, "yuan": 1, "元": 1, "角": "1/10", "分": "1/100"},
    "angle": {"degree": 1},
}.items():  # fmt: skip
    for _unit, _scale in _units.items():
        UNITS[_unit] = (_dimension, Fraction(_scale))
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
_ENVIRONMENT = re.compile(
    r"\\begin\{([bpvBV]?matrix|smallmatrix|array|cases|aligned)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}(\^\s*(?:T|\{\s*T\s*\}|\\top))?", re.DOTALL
)
_RELATION = re.compile(r"\\(?:ne|le|ge|approx|equiv|sim|simeq|cong)(?![A-Za-z])|(?<![<>!])=|<=|>=|!=|<|>|≈")
_RELATION_NAMES = {
    "<=": r"\le",
    ">=": r"\ge",
    "!=": r"\ne",
    "\\equiv": "=",
    "\\sim": r"\approx",
    "\\simeq": r"\approx",
    "\\cong": r"\approx",
}
_AND_OR = re.compile(
    r"(?<![A-Za-z\\])(and|or)(?![A-Za-z])|(?<=[\d)}\]])(?:and|or)(?=[A-Z\\(\d-])"
    r"|(?<=\s)(?:和|或|与|及)(?=\s)|(?<=[\d}) ])(?:和|或者|或|与|及)(?=[\d\\(\- ])"
)
_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}


def balanced_end(text: str, start: int) -> int:
    """Position of the brace that closes the one at ``start``, or -1."""
    depth = 0
    for place in range(start, len(text)):
        if text[place] in "{}" and not (place and text[place - 1] == "\\" and (place < 2 or text[place - 2] != "\\")):
            depth += 1 if text[place] == "{" else -1
            if depth == 0:
                return place
    return -1


def cleaned(text: str) -> str:
    r"""A text in one spelling: Unicode signs as LaTeX, no styling, ``\text`` for every font of words, plain spaces, "¤" for dollars."""
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉₊₋]+", lambda m: f"_{{{m[0].translate(_SUBSCRIPTS)}}}", text)
    text = re.sub("(\\d?)\\s?([½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])", lambda m: f"{m[1]} {_VULGAR[m[2]]}", text)
    text = re.sub(r"√\s*(?:\(([^()]*)\)|(\d+|[A-Za-z]))", lambda m: rf"\sqrt{{{m[1] or m[2]}}}", text)
    text = re.sub(r"[\uff01-\uff5e]", lambda m: unicodedata.normalize("NFKC", m[0]), text.translate(_TABLE))
    text = text.replace("**", "^") if re.search(r"[\w)]\*\*[\w({]", text) else text.replace("**", "")
    text = text.replace(r"\$", "¤").replace(r"\%", "%").replace(r"\#", "#").replace("{,}", "").replace(r"\&", "&")
    if "\\begin" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)  # escaped once too often
    text = re.sub(r",?\\!\s*", "", text)
    text = _DROPPED.sub("", text)
    text = _COMMAND.sub(lambda m: "\\" + _COMMAND_NAMES.get(m[1], m[1]), text)
    text = text.replace("\\<", "<").replace("\\>", ">").replace("\\(", "").replace("\\)", "").replace("\\|", "|").replace("\\$", "¤")
    text = re.sub(r"\\log_\{10\}(?=_)", r"\\log", text)
    text = re.sub(r"\\\[(?!\d)|(?<!\\)\\\]", lambda m: m[0][1:], text) if "\\[" in text else text
    text = re.sub(r"\$\$?([^$]*)\$\$?", r"\1", text)
    text = text.replace("$", "¤")
    text = re.sub(r"\{\s*(?:\\)?(?:rm|bf|it)\s+([^{}]*)\}", r"\\text{\1}", text)
    text = re.sub(r"(?<=\d)(?:\\[,;:]|\\ |~|\u00a0)(?=\d{3}(?!\d))", "", text)
    text = _SPACE.sub(" ", text)
    return re.sub(r"\\mathbb\s*([A-Z])", r"\\mathbb{\1}", text).strip()


def _unstyled(text: str) -> tuple[str, list[tuple[int, str]]]:
    r"""The text without its ``\text{…}`` parts, and those parts with where they stood.

    Letters, digits and signs in them are kept in place.
    """
    out: list[str] = []
    parts: list[tuple[int, str]] = []
    place = length = 0
    for found in _TEXT.finditer(text):
        if found.start() < place:
            continue
        end = balanced_end(text, found.end() - 1)
        if end < 0:
            raise Unreadable("a brace is not closed")
        inner = text[found.end() : end].strip()
        before = text[place : found.start()]
        out.append(before)
        length += len(before)
        kept = _kept_in_place(found[0], inner)
        if kept is None:
            parts.append((length, inner))
            kept = " "
        out.append(kept)
        length += len(kept)
        place = end + 1
    out.append(text[place:])
    return "".join(out), parts


def _kept_in_place(command: str, inner: str) -> str | None:
    """What a styled part is in a formula, or None where it is words."""
    if re.fullmatch(r"(?:,\s*)?(?:and|or|和|或|与)(?:\s*,)?", inner, re.IGNORECASE):
        return f" {inner.strip(', ').lower()} " if inner.isascii() else " and "
    if "operatorname" in command:
        return rf"\{inner} " if inner in _FUNCTIONS else None
    if not inner or re.fullmatch(r"[\d\s.,:+\-*/^()=]+|\\[A-Za-z]+", inner):
        return inner
    if re.fullmatch(r"[A-Za-z]", inner) and command.startswith((r"\math", r"\bold", r"\bm")):
        return inner
    return None


def read(text: str) -> Value:
    """What a text says.

    Raises:
        Unreadable: nothing, or brackets do not match.
        TooLarge: it is longer, deeper or has more digits than is read.
    """
    if len(text) > MAX_CHARACTERS:
        raise TooLarge(f"it is too long, more than {MAX_CHARACTERS} characters")
    text = cleaned(text)
    if not re.search(r"[\d\\]", text):
        text = _spelled_out(text)  # before "and" is read as the joint of a list
    return _read(re.sub(r"_\{\\text\{(\w+)\}\}", r"_{\1}", text), 0)


def _read(text: str, depth: int) -> Value:
    if depth > MAX_DEPTH:
        raise TooLarge("its brackets are nested too deeply")
    text = _stripped(text)
    if not text:
        raise Unreadable("it is empty")
    environment = _environment(text, depth)
    if environment is not None:
        return environment
    plain, words = _unstyled(text)
    raw = text
    text = _stripped(plain)
    if not text or not re.search(r"[\w∅∞\\]", text):
        if words:
            return _words(" ".join(part for _, part in words))
        raise Unreadable("it says nothing")
    unit = ""
    if words:
        position, trailing = words[-1]
        if position >= len(plain.rstrip(" ^{}0123456789.,")) - 1 or len(plain[position:].strip()) <= 5:
            exponent = re.fullmatch(r"\s*\^\s*\{?\s*([23])\s*\}?\s*", plain[position:])
            unit = _unit_name(trailing + (f"^{exponent[1]}" if exponent else ""))
            text = _stripped(plain[:position]) or text
            if exponent is None and not re.fullmatch(r"[\s.,;]*", plain[position:]):
                text = _stripped(plain)
            if re.fullmatch(r"base|in base|base-?\w+", trailing):
                text, unit = _stripped(plain), ""
    if re.fullmatch(r"(?:\{\}\s*)?\^\s*\\circ", text):
        raise Unreadable("it says nothing")
    structured = _structured(text, depth, raw)
    if structured is not None:
        return _with_unit(structured, unit)
    return _with_unit(_single(text, raw), unit)


def _with_unit(value: Value, unit: str) -> Value:
    if not unit:
        return value
    if isinstance(value, Number) and not value.unit:
        if unit in ("percent", "per cent", "percentage", "pct", "%"):
            return Number(value.value, value.last_place, value.digits, True, "")
        return Number(value.value, value.last_place, value.digits, value.percent, unit)
    if isinstance(value, Expression) and not value.unit:
        return Expression(value.latex, value.raw, unit)
    if isinstance(value, Named):
        return Named(value.name, _with_unit(value.value, unit))
    if isinstance(value, Ratio) and unit.replace(".", "") in ("am", "pm"):
        return Ratio(value.parts, value.clock, unit.replace(".", ""))
    return value


def _stripped(text: str) -> str:
    """Without outer space, closing punctuation, and braces around the whole."""
    before = None
    while before != text:
        before = text
        text = (
            text.strip().rstrip(".,;:!?。，；\n ").strip()
            if not re.search(r"\d!+\.?$|[)}A-Za-z]!+\.?$", text)
            else text.strip().rstrip(". ")
        )
        text = text.removesuffix("\\").rstrip() if text.endswith("\\") and not text.endswith("\\\\") else text
        if text.startswith("{") and balanced_end(text, 0) == len(text) - 1:
            text = text[1:-1]
        for command in ("\\boxed", "\\fbox", "\\displaystyle"):
            if text.startswith(command + "{") and balanced_end(text, len(command)) == len(text) - 1:
                text = text[len(command) + 1 : -1]
    return text


def split_top(text: str, separators: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """The parts of a text between separators that stand outside all brackets, and those separators."""
    parts: list[str] = []
    signs: list[str] = []
    depth = start = place = 0
    while place < len(text):
        if text.startswith("\\{", place) or text.startswith("\\langle", place) or text.startswith("\\begin", place):
            depth += 1
            place += 2
            continue
        if text.startswith("\\}", place) or text.startswith("\\rangle", place) or text.startswith("\\end", place):
            depth -= 1
            place += 2
            continue
        if text[place] in "([{":
            depth += 1
        elif text[place] in ")]}":
            depth -= 1
        elif depth == 0:
            found = separators.match(text, place)
            if found and found.end() > place:
                parts.append(text[start:place])
                signs.append(found[0].strip())
                place = start = found.end()
                continue
        place += 1
    parts.append(text[start:])
    return parts, signs


def _environment(text: str, depth: int) -> Value | None:
    found = re.search(r"\\begin\{(?:[bpB]?matrix|smallmatrix|array|cases)\}", text)
    if found is None:
        return None
    whole = _ENVIRONMENT.fullmatch(text[found.start() :].strip().rstrip(" )]").rstrip(".").strip())
    if whole is None:
        return None
    before = text[: found.start()].rstrip("([ ").strip()
    name = re.fullmatch(r"(.*?)(?<![<>])=", before)
    if name and name_like(name[1].strip()):
        before = ""
    kind, body, transposed = whole[1], whole[2], whole[3]
    if kind in ("vmatrix", "Vmatrix", "aligned") or "\\begin" in body:
        return None
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?|\\cr", body) if row.strip()]
    cells = [row.split("&") for row in rows]
    if not cells or sum(map(len, cells)) > MAX_ITEMS:
        raise TooLarge("the matrix is too large") if cells else Unreadable("the matrix is empty")
    scalar = before.removesuffix(r"\cdot").removesuffix(r"\times").strip()
    if scalar and kind == "cases":
        return None
    read_rows = []
    for row in cells:
        read_rows.append(tuple(_read(f"({scalar})({cell.strip()})" if scalar else cell, depth + 1) for cell in row))
    if transposed:
        read_rows = list(zip(*read_rows, strict=False))
    return Matrix(tuple(read_rows), "cases" if kind == "cases" else "matrix")


def name_like(text: str) -> bool:
    r"""Whether the left side of an equation only names the right side: ``x``, ``S_{ABCD}``, ``f(x)``, ``\angle ABC``, ``(x, y)``."""
    text = re.sub(r"_\s*(?:\{[^{}]*\}|\\?\w)", "", text)
    text = text.replace("^{-1}", "").replace("'", "")
    text = re.sub(r"(?<=[A-Za-z])\([^()]*\)", "", text)
    text = re.sub(
        r"\\(?:angle|triangle|overline|vec|frac|text|mathrm|hat|bar|square|Delta|measuredangle|widehat|overrightarrow)(?![A-Za-z])",
        " ",
        text,
    )
    if re.search(r"\\(?:sqrt|frac|times|cdot|pm|div|sum|int|cup|pi|infty|ln)(?![A-Za-z])", text):
        return False
    text = re.sub(r"\\[A-Za-z]+", "x", text)
    return bool(re.search(r"[A-Za-z\u4e00-\u9fff]", text)) and re.fullmatch(r"[A-Za-z\u4e00-\u9fff\s|,:(){}\[\]\\]+", text) is not None


def has_variables(latex: str) -> bool:
    """Whether letters are left when commands are taken away, e and i apart."""
    return (
        re.search(r"[A-DF-Za-df-hj-z]", re.sub(r"\\[A-Za-z]+", " ", latex)) is not None
        or re.search(r"\\(?:alpha|beta|gamma|delta|theta|lambda|mu|phi|omega|sigma|rho|tau)(?![A-Za-z])", latex) is not None
    )


def _structured(text: str, depth: int, raw: str) -> Value | None:
    parts, signs = split_top(text, re.compile(r"\\cup(?![A-Za-z])"))
    if signs:
        return Union(tuple(_read(part, depth + 1) for part in parts))
    parts, signs = split_top(text, re.compile(r"\\setminus(?![A-Za-z])"))
    if len(parts) == 2 and re.fullmatch(r"\s*(?:\\mathbb\{R\}|\(\s*-\s*\\infty\s*,\s*\+?\s*\\infty\s*\))\s*", parts[0]):
        removed = _read(parts[1], depth + 1)
        points = removed.items if isinstance(removed, Group) else (removed,)
        if all(isinstance(point, Number) for point in points):
            return _without([point for point in points if isinstance(point, Number)])
    parts, signs = split_top(text, re.compile(r"\\in(?![A-Za-z])|(?<=\s)in(?=\s)"))
    if len(parts) == 2 and name_like(parts[0]):
        return Named(compact(parts[0]), _read(parts[1], depth + 1))
    listed = _listed(text, depth)
    if listed is not None:
        return listed
    related = _related(text, depth)
    if related is not None:
        return related
    bracketed = _bracketed(text, depth)
    if bracketed is not None:
        return bracketed
    if re.search(r"\\pm|\\mp|\+/-|\+-", text):
        text = text.replace("+/-", r"\pm ").replace("+-", r"\pm ")
        if text.count(r"\pm") + text.count(r"\mp") <= 4:
            plus = text.replace(r"\pm", "+").replace(r"\mp", "-")
            minus = text.replace(r"\pm", "-").replace(r"\mp", "+")
            return Group((_read(plus, depth + 1), _read(minus, depth + 1)))
    return None


def _listed(text: str, depth: int) -> Value | None:
    """Parts set apart by commas, "and", "or": a list, or a union or intersection of rays."""
    if re.fullmatch(r"-?\d+,\d+", text) and text.count(",") == 1 and text.lstrip("-").startswith("0,"):
        return None  # a decimal comma
    decimal = re.fullmatch(r"(-?(?:\d+,\d{2}|\d{4,},\d+))\s*([¤€£¥₹]?)", text)
    joined = re.sub(r"(?<![\d.,_^{])(\d{1,3})((?:,\d{3})+)(?![\d,]\d|,\d{3})(?!\d)", lambda m: m[1] + m[2].replace(",", ""), text)
    parts, signs = split_top(joined, re.compile(rf"\s*[,;]\s*(?:{_AND_OR.pattern})?|{_AND_OR.pattern}"))
    kept = [(part, sign) for part, sign in zip(parts, [*signs, ""], strict=True) if part.strip()]
    if len(kept) < 2:
        return None
    if ";" in signs and "," in signs:
        sets, _ = split_top(text, re.compile(r"\s*;\s*"))
        tuples = [_read(part, depth + 1) for part in sets if part.strip()]
        if all(isinstance(one, Group) and one.left == "" and all(isinstance(item, Named) for item in one.items) for one in tuples):
            return Group(tuple(Group(tuple(item.value for item in one.items), "(", ")") for one in tuples))  # type: ignore[union-attr]
    if decimal:
        whole, _, places = decimal[1].partition(",")
        return Either((Group((_read(whole, depth + 1), _read(places, depth + 1))), _read(f"{whole}.{places}", depth + 1)))
    if len(kept) > MAX_ITEMS:
        raise TooLarge("the list is too long")
    items = tuple(_read(part, depth + 1) for part, _ in kept)
    if all(_is_ray(item) for item in items):
        inner = [item.value if isinstance(item, Named) else item for item in items]
        if len(items) == 2 and any("and" in sign or "且" in sign for _, sign in kept):
            met = _intersection(inner[0], inner[1])
            return met if met is not None else Union(tuple(inner))
        return Union(tuple(inner))
    flat: list[Value] = []
    for item in items:
        if isinstance(item, Group) and not item.left:
            flat += item.items
        elif isinstance(item, Named) and isinstance(item.value, Group) and not item.value.left:
            flat += [Named(item.name, part) for part in item.value.items]
        else:
            flat.append(item)
    return Group(tuple(flat))


def _is_ray(value: Value) -> bool:
    inner = value.value if isinstance(value, Named) else value
    return (
        isinstance(value, Named)
        and isinstance(inner, Group)
        and inner.left in "(["
        and inner.left != ""
        and len(inner.items) == 2
        and any(_infinite(item) for item in inner.items)
    )


def _infinite(value: Value) -> int:
    if isinstance(value, Expression) and "infty" in value.latex:
        return -1 if value.latex.strip().startswith("-") else 1
    return 0


def _infinity(sign: int) -> Expression:
    latex = r"\infty" if sign > 0 else r"-\infty"
    return Expression(latex, latex)


def _intersection(a: Value, b: Value) -> Value | None:
    if not (isinstance(a, Group) and isinstance(b, Group)):
        return None
    low = next((g for g in (a, b) if _infinite(g.items[0]) == 0), None)
    high = next((g for g in (a, b) if _infinite(g.items[1]) == 0), None)
    if low is None or high is None or low is high:
        return None
    return Group((low.items[0], high.items[1]), low.left, high.right)


def _without(points: list[Number]) -> Union:
    """The real line without some points."""
    ends: list[Value] = [_infinity(-1), *sorted(points, key=lambda point: point.value), _infinity(1)]
    return Union(tuple(Group((left, right), "(", ")") for left, right in pairwise(ends)))


def _related(text: str, depth: int) -> Value | None:
    parts, found = split_top(text, _RELATION)
    if not found or any(not part.strip() for part in parts[1:]):
        return None
    if not parts[0].strip():
        return _read(parts[-1], depth + 1)  # "= 5"
    signs = [_RELATION_NAMES.get(sign, sign) for sign in found]
    parts = [part.strip() for part in parts]
    if set(signs) <= {"=", r"\approx"}:
        return _equated(parts, signs, depth)
    if "=" in signs and signs[0] == "=" and name_like(parts[0]):
        return _related(text.split("=", 1)[1], depth + 1)
    return _interval(parts, signs, depth) or Inequality(tuple(parts), tuple(signs))


def _equated(parts: list[str], signs: list[str], depth: int) -> Value:
    named = name_like(parts[0]) and len(parts) > 1
    rest, rest_signs = (parts[1:], signs[1:]) if named else (parts, signs)
    if not named and len(parts) == 2 and signs == ["="] and any(map(has_variables, parts)):
        if name_like(parts[1]):
            return Named(compact(parts[1]), _read(parts[0], depth + 1))
        return Equation(parts[0], parts[1])
    exact: list[str] = [rest[0]]
    near: list[str] = []
    for part, sign in zip(rest[1:], rest_signs, strict=True):
        (near if near or sign == r"\approx" else exact).append(part)
    values = [_read(part, depth + 1) for part in exact]
    answer: Value = values[-1]
    constant = [value for part, value in zip(exact, values, strict=True) if not has_variables(part)]
    if len(constant) > 1 and constant[-1] is values[-1]:
        answer = Chain(tuple(constant))
    if near:
        answer = Either((answer, *(_read(part, depth + 1) for part in near)))
    return Named(compact(parts[0]), answer) if named else answer


def _interval(parts: list[str], signs: list[str], depth: int) -> Value | None:
    """The interval that an inequality in one variable states, or None."""
    if len(parts) == 2:
        left, right = parts
        if name_like(right) and not name_like(left) and not has_variables(left):
            left, right, signs = right, left, [_FLIPPED.get(signs[0], signs[0])]
        scaled = re.fullmatch(r"(-?)\s*(\d*)\s*([A-Za-z])", left)
        if scaled and (scaled[1] or scaled[2]) and (plain := _plain(right)) is not None and signs[0] in _FLIPPED and scaled[2] != "0":
            factor = Fraction(int(f"{scaled[1]}{scaled[2] or 1}"))
            return Named(scaled[3], _ray(Number(plain / factor), signs[0] if factor > 0 else _FLIPPED[signs[0]]))
        if not name_like(left) or has_variables(right):
            return None
        bound = _read(right, depth + 1)
        inner = re.fullmatch(r"\|\s*(.*?)\s*\|", left)
        if inner and isinstance(bound, Number) and signs[0] in _FLIPPED:
            return Named(compact(inner[1]), _absolute(bound, signs[0]))
        return Named(
            compact(left), _ray(bound, signs[0]) if signs[0] in _FLIPPED else _without([bound]) if isinstance(bound, Number) else bound
        )
    if len(parts) == 3 and name_like(parts[1]) and not has_variables(parts[0]) and not has_variables(parts[2]):
        rising = all(sign in ("<", r"\le") for sign in signs)
        if rising or all(sign in (">", r"\ge") for sign in signs):
            low, high = _read(parts[0], depth + 1), _read(parts[2], depth + 1)
            left, right = ("(" if signs[0] in "<>" else "["), (")" if signs[1] in "<>" else "]")
            if not rising:
                low, high, left, right = high, low, ("(" if signs[1] in "<>" else "["), (")" if signs[0] in "<>" else "]")
            inner = re.fullmatch(r"\|\s*(.*?)\s*\|", parts[1])
            if inner and isinstance(low, Number) and isinstance(high, Number) and low.value >= 0:
                mirrored = Group((Number(-high.value), Number(-low.value)), "[" if right == "]" else "(", "]" if left == "[" else ")")
                return Named(compact(inner[1]), Union((mirrored, Group((low, high), left, right))))
            return Named(compact(parts[1]), Group((low, high), left, right))
    return None


def _ray(bound: Value, sign: str) -> Group:
    if sign in ("<", r"\le"):
        return Group((_infinity(-1), bound), "(", ")" if sign == "<" else "]")
    return Group((bound, _infinity(1)), "(" if sign == ">" else "[", ")")


def _absolute(bound: Number, sign: str) -> Value:
    """|x| < c and its like."""
    opposite = Number(-bound.value)
    if sign in ("<", r"\le"):
        return Group((opposite, bound), "(" if sign == "<" else "[", ")" if sign == "<" else "]")
    return Union((_ray(opposite, "<" if sign == ">" else r"\le"), _ray(bound, sign)))


_BRACKETS = (("\\{", "\\}", "{", "}"), ("\\langle", "\\rangle", "(", ")"), ("(", ")", "(", ")"), ("[", "]", "[", "]"), ("(", "]", "(", "]"),
             ("[", ")", "[", ")"))  # fmt: skip


def _bracketed(text: str, depth: int) -> Value | None:
    for opening, closing, left, right in _BRACKETS:
        if not (text.startswith(opening) and text.endswith(closing)) or len(text) < len(opening) + len(closing):
            continue
        inner = text[len(opening) : len(text) - len(closing)]
        if not _closes_at_end(inner):
            continue
        if left == "{" and split_top(inner, re.compile(r"\||:(?!\d)"))[1]:
            return None  # a set by its rule
        parts, _ = split_top(inner, re.compile(r"\s*[,;]\s*"))
        parts = [part for part in parts if part.strip()]
        if len(parts) > MAX_ITEMS:
            raise TooLarge("the list is too long")
        if not parts:
            if left == "{":
                return Expression(r"\emptyset", r"\emptyset")
            raise Unreadable("the brackets are empty")
        items: list[Value] = []
        for part in parts:
            item = _read(part, depth + 1)
            items += item.items if isinstance(item, Group) and not item.left and left == "{" else (item,)
        if len(items) == 1 and left != "{":
            return items[0]
        return Group(tuple(items), left, right)
    return None


def _closes_at_end(inner: str) -> bool:
    """Whether no bracket of the inside closes one that stands outside of it."""
    depth = 0
    for char in inner:
        depth += (char in "([{") - (char in ")]}")
        if depth < 0:
            return False
    return depth == 0


def _single(text: str, raw: str) -> Value:
    """One value: a number with its unit, a ratio, a time, a number in another base, words, or an expression."""
    digits = max((len(run) for run in re.findall(r"\d+", text)), default=0)
    if digits > MAX_DIGITS:
        raise TooLarge(f"it is too large, with a number of more than {MAX_DIGITS} digits")
    if not re.search(r"[0-9]", text):
        text = _spelled_out(text)
    elif re.search(r"[\u4e00-\u9fff]|illion|thousand", text):
        text = english_in_digits(chinese_in_digits(text))
    text = re.sub(r"(?<![A-Za-z])(?:minus|negative)\s+(?=\d)", "-", text)
    if text == r"\mathbb{R}":
        return Group((_infinity(-1), _infinity(1)), "(", ")")
    if re.fullmatch(r"-?(?:0,\d+|\d+,(?!\d{3}$)\d+)", text):
        text = text.replace(",", ".")  # a decimal comma
    number = _number(text)
    if number is not None:
        return number
    clock = _CLOCK.fullmatch(text)
    parts, colons = split_top(text, re.compile(r":|\\colon"))
    if clock or (colons and all(_plain(part.strip()) is not None for part in parts)):
        values = [_plain(part.strip()) for part in (clock[1].split(":") if clock else parts)]
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
        return _words(text)
    if text.count("{") - text.count("\\{") != text.count("}") - text.count("\\}"):
        raise Unreadable("its braces do not match")
    expression, unit = _expression_unit(text)
    return Expression(latex_of(expression), raw, unit)


def _spelled_out(text: str) -> str:
    text = english_in_digits(chinese_in_digits(text), fractions=True)
    return text


def latex_of(text: str) -> str:
    """LaTeX of an expression that may be written as in a program: ``sqrt(2)``, ``2*x``, ``pi/2``."""
    text = re.sub(r"(?<![A-Za-z\\])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(rf"(?<![A-Za-z\\])(pi|theta|alpha|beta|infty|infinity|{'|'.join(_FUNCTIONS)})(?![A-Za-z])", r"\\\1 ", text)
    text = text.replace(r"\infinity", r"\infty").replace("*", r"\cdot ")
    text = re.sub(r"(?<![A-Za-z\\])inf(?![A-Za-z])", r"\\infty ", text)
    text = re.sub(r"\^\s*\(([^()]*)\)", r"^{\1}", text)
    return re.sub(r"\s+", " ", text).strip()


def _expression_unit(text: str) -> tuple[str, str]:
    r"""An expression without a degree sign, a currency or trailing words, and the unit that they say."""
    degrees = re.fullmatch(r"(.*?)\s*\^\s*\{?\s*\\circ\s*\}?", text)
    if degrees:
        return degrees[1], "degree"
    money = re.fullmatch(r"(-?)\s*([¤€£¥₹])\s*(.*)", text)
    if money:
        return money[1] + money[3], _CURRENCY[money[2]]
    worded = re.fullmatch(r"(.*[\d})])\s+([A-Za-z]{3,}(?:[\s/][A-Za-z^0-9]+)*)", text)
    if worded and worded[2].split()[0].lower() not in _FUNCTIONS and not worded[2].startswith(("pi", "sqrt", "sin", "cos")):
        return worded[1], _unit_name(worded[2])
    return text, ""


def _plain(text: str) -> Fraction | None:
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
        if worded and (not worded[2].isascii() or not re.match(rf"(?:{'|'.join(_FUNCTIONS)}|pi|sqrt|or|and|to)\b", worded[2])):
            text, unit = worded[1].strip(), _unit_name(worded[2])
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
        exponent = ten[2] or ten[3] or ten[4]
        if len(exponent) > 4 or abs(int(exponent)) > 2 * MAX_DIGITS:
            return None
        return Number((-1 if ten[1] == "-" else 1) * Fraction(10) ** int(exponent))
    repeating = _REPEATING.fullmatch(text)
    if repeating:
        start, again = repeating[3], repeating[4] or repeating[5] or repeating[6]
        value = Fraction(
            int((repeating[2] or "0") + start + again) - int((repeating[2] or "0") + start or "0"),
            (10 ** len(again) - 1) * 10 ** len(start),
        )
        return Number(-value if repeating[1] == "-" else value)
    for pattern in (_OVER, _SLASHED):
        found = pattern.fullmatch(text)
        if not found:
            continue
        top, bottom = (found[3] or found[4], found[5] or found[6]) if pattern is _OVER else (found[3], found[4])
        if Fraction(bottom) == 0:
            return None
        value = Fraction(top) / Fraction(bottom)
        if found[2]:
            value += int(found[2])
        return Number(-value if found[1] == "-" else value)
    return None


def _unit_name(text: str) -> str:
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
    return any(len(token) >= 3 and token not in _FUNCTIONS for token in tokens) and not re.search(r"[A-Za-z]\(|\s-\s", text)


def _words(text: str) -> Value:
    """Words; a number said in words is the number."""
    spelled = _spelled_out(text)
    if spelled != text or re.search(r"\d", text):
        said = re.sub(r"(?<![A-Za-z])(?:minus|negative)\s+(?=\d)", "-", spelled).strip()
        number = _number(said)
        if number is not None:
            return number
    if not re.search(r"\w", text):
        raise Unreadable("it says nothing")
    return Words(text)


def expressions_of(value: Value) -> list[str]:
    """LaTeX of all single expressions in a value."""
    if isinstance(value, Expression):
        return [value.latex]
    if isinstance(value, Named):
        return expressions_of(value.value)
    if isinstance(value, Equation):
        return [value.left, value.right]
    if isinstance(value, Inequality):
        return list(value.parts)
    parts: tuple[Value, ...] = ()
    if isinstance(value, Group):
        parts = value.items
    elif isinstance(value, Matrix):
        parts = tuple(cell for row in value.rows for cell in row)
    elif isinstance(value, Union | Chain):
        parts = value.parts
    elif isinstance(value, Either):
        parts = value.forms
    return [latex for part in parts for latex in expressions_of(part)]


def compact(text: str) -> str:
    """A text without space and braces that change nothing: two that are equal say the same."""
    text = re.sub(r"\\text\{([^{}]*)\}", r"\1", text)
    return re.sub(r"\s+|\\(?:cdot|times)(?=\s*[A-Za-z(\\])", "", re.sub(r"([_^])\{(\w)\}", r"\1\2", text))
