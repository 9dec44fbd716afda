"""What a mathematical answer can be: the values that ``math_reading`` makes and ``math_compare`` compares."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

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
    """``parts[0] signs[0] parts[1] …`` that is not an interval of one variable."""

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
UNITS: dict[str, tuple[str, Fraction]] = {}
"""Unit → (dimension, scale). Units that are not listed are not compared: "5 apples" is 5."""
_TABLE: dict[str, dict[str, int | str]] = {
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
}  # fmt: skip
for _dimension, _units in _TABLE.items():
    for _unit, _scale in _units.items():
        UNITS[_unit] = (_dimension, Fraction(_scale))


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
