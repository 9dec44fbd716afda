"""Whether two mathematical answers are equal. Structure and plain numbers are compared here; single expressions by ``same``."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from safework_cli.verifiers.rules.math_notation import compact, has_variables
from safework_cli.verifiers.rules.math_values import (
    UNITS,
    Based,
    Chain,
    Either,
    Equation,
    Expression,
    Group,
    Inequality,
    Matrix,
    Named,
    Number,
    Ratio,
    TooLarge,
    Union,
    Value,
    Words,
)

Same = Callable[[str, str, str, Fraction | None], bool]
"""``same(relation, a, b, within)``: whether two expressions are equal ("equal", to within an absolute difference where one is given), or
one is a constant multiple of the other ("multiple", "positive multiple")."""

SIGNIFICANT_DIGITS = 6
"""A decimal stands for a value that it only approximates where it has at least so many digits: 0.333333 is 1/3, 0.33 is not."""
MAX_COMPARISONS = 5_000


class Comparison:
    """One comparison of a gold answer with a reply's; counts its steps."""

    def __init__(self, same: Same):
        self._same = same
        self._left = MAX_COMPARISONS

    def equal(self, gold: Value, reply: Value) -> bool:
        """Raises TooLarge after ``MAX_COMPARISONS`` pairs."""
        self._left -= 1
        if self._left < 0:
            raise TooLarge("there are too many parts to compare")
        if isinstance(reply, Either):
            return self._consistent(reply) and any(self.equal(gold, form) for form in reply.forms)
        if isinstance(gold, Either):
            return any(self.equal(form, reply) for form in gold.forms)
        if isinstance(reply, Chain):
            last = reply.parts[-1]
            return all(self.equal(last, part) for part in reply.parts[:-1]) and self.equal(gold, last)
        if isinstance(gold, Chain):
            return self.equal(gold.parts[-1], reply)
        if isinstance(gold, Named) and isinstance(reply, Named):
            if _is_variable(gold.name) and _is_variable(reply.name) and gold.name != reply.name:
                return self._equations(gold, reply)  # "y = x" is "x = y"
            return self.equal(gold.value, reply.value)
        if isinstance(gold, Equation) or isinstance(reply, Equation):
            return self._equations(gold, reply)
        if isinstance(gold, Group) or isinstance(reply, Group):
            return self._groups(gold, reply)
        if isinstance(gold, Named):
            return self.equal(gold.value, reply)
        if isinstance(reply, Named):
            return self.equal(gold, reply.value)
        if isinstance(gold, Words) or isinstance(reply, Words):
            return _spelling(gold) != "" and _spelling(gold) == _spelling(reply)
        if isinstance(gold, Union) or isinstance(reply, Union):
            return self._unions(gold, reply)
        if isinstance(gold, Matrix) or isinstance(reply, Matrix):
            return self._matrices(gold, reply)
        if isinstance(gold, Inequality) or isinstance(reply, Inequality):
            return isinstance(gold, Inequality) and isinstance(reply, Inequality) and self._inequalities(gold, reply)
        if isinstance(gold, Ratio) or isinstance(reply, Ratio):
            return _ratios(gold, reply)
        if isinstance(gold, Based) or isinstance(reply, Based):
            return _based(gold, reply)
        if isinstance(gold, Number) and isinstance(reply, Number):
            return _numbers(gold, reply)
        return self._expressions(gold, reply)

    def _consistent(self, either: Either) -> bool:
        """Whether an approximation is near what it approximates, where both are plain numbers."""
        plain = [form.value for form in either.forms if isinstance(form, Number)]
        return all(abs(value - plain[0]) * 50 <= abs(plain[0]) for value in plain)

    def _expressions(self, gold: Value, reply: Value) -> bool:
        if isinstance(gold, Expression) and isinstance(reply, Expression) and compact(gold.latex) == compact(reply.latex):
            return _same_dimension(gold.unit, reply.unit)
        a, b = _latex(gold), _latex(reply)
        if isinstance(gold, Number) != isinstance(reply, Number) and re.fullmatch(
            r"[A-DF-Za-df-hj-z]", (b if isinstance(gold, Number) else a) or ""
        ):
            return False  # a letter is not a number
        if a is None or b is None or not _same_dimension(_unit(gold), _unit(reply)):
            return False
        scale_a, scale_b = _scales(_unit(gold), _unit(reply))
        if "degree" in (_unit(gold), _unit(reply)) and _unit(gold) != _unit(reply):
            in_degrees, other = (a, b) if _unit(gold) == "degree" else (b, a)
            if r"\pi" in other and r"\pi" not in in_degrees:
                return self._same("equal", rf"({in_degrees})\cdot\frac{{\pi}}{{180}}", other, None)
        within = _within(gold, reply)
        if self._same("equal", _scaled(a, scale_a), _scaled(b, scale_b), within):
            return True
        percents = [value for value in (gold, reply) if isinstance(value, Number) and value.percent]
        if not percents:
            return False
        hundredth = _latex(Number(percents[0].value / 100)) or ""
        return self._same("equal", *((hundredth, b) if percents[0] is gold else (a, hundredth)), None)

    def _equations(self, gold: Value, reply: Value) -> bool:
        sides = []
        for value in (gold, reply):
            if isinstance(value, Equation):
                sides.append(f"({value.left})-({value.right})")
            elif isinstance(value, Named) and (inner := _latex(value.value)) is not None:
                sides.append(f"({value.name})-({inner})")
            else:
                return False
        if (
            isinstance(gold, Equation)
            and isinstance(reply, Equation)
            and compact(gold.left + "=" + gold.right) == compact(reply.left + "=" + reply.right)
        ):
            return True
        return self._same("multiple", sides[0], sides[1], None)

    def _inequalities(self, gold: Inequality, reply: Inequality) -> bool:
        for parts, signs in ((reply.parts, reply.signs), _turned(reply)):
            if signs == gold.signs and len(parts) == len(gold.parts):
                if all(compact(a) == compact(b) or self._same("equal", a, b, None) for a, b in zip(gold.parts, parts, strict=True)):
                    return True
                if len(parts) == 2:
                    a, b = (f"({left})-({right})" for left, right in (gold.parts, parts))
                    return self._same("positive multiple", a, b, None)
        return False

    def _groups(self, gold: Value, reply: Value) -> bool:
        if isinstance(gold, Group) and gold.left in ("(", "[") and isinstance(reply, Matrix | Group):
            return self._ordered(gold, reply)
        if isinstance(gold, Matrix) and isinstance(reply, Group):
            cells = [cell for row in gold.rows for cell in row]
            single = len(gold.rows) == 1 or all(len(row) == 1 for row in gold.rows)
            return single and len(cells) == len(reply.items) and all(map(self.equal, cells, reply.items))
        if isinstance(reply, Named) and not isinstance(gold, Named):
            return self._groups(gold, reply.value) if isinstance(reply.value, Group) else self.equal(gold, reply.value)
        if isinstance(gold, Named):
            return self.equal(gold.value, reply)
        if not isinstance(gold, Group):
            assert isinstance(reply, Group)
            # "\{5\}" for 5, and one value said twice ("1/2 or 0.5"); never a choice between several
            return reply.left in ("", "{") and all(self.equal(gold, item) for item in reply.items)
        if not isinstance(reply, Group):
            return len(gold.items) == 1 and self.equal(gold.items[0], reply)
        if reply.left in ("(", "["):  # gold is a list or a set
            return gold.left == "" and reply.left == "(" and self._in_order(gold.items, reply.items)
        return self._unordered(gold.items, reply.items)

    def _ordered(self, gold: Group, reply: Matrix | Group) -> bool:
        if isinstance(reply, Matrix):
            cells = [cell for row in reply.rows for cell in row]
            single = len(reply.rows) == 1 or all(len(row) == 1 for row in reply.rows)
            return single and self._in_order(gold.items, tuple(cells))
        if reply.left == "":
            if gold.left == "[":
                return False
            named = [item for item in reply.items if isinstance(item, Named)]
            if len(named) == len(reply.items) and len({item.name for item in named}) == len(named):
                return self._in_order(gold.items, tuple(item.value for item in sorted(named, key=lambda item: item.name)))
            return self._in_order(gold.items, reply.items)
        if reply.left == "{":
            return False
        if len(gold.items) == 2 and (gold.left, gold.right) != (reply.left, reply.right):
            return False
        return self._in_order(gold.items, reply.items)

    def _in_order(self, gold: tuple[Value, ...], reply: tuple[Value, ...]) -> bool:
        return len(gold) == len(reply) and all(self.equal(a, b) for a, b in zip(gold, reply, strict=True))

    def _unordered(self, gold: tuple[Value, ...], reply: tuple[Value, ...]) -> bool:
        names = [[item.name for item in items if isinstance(item, Named)] for items in (gold, reply)]
        if (not names[0]) != (not names[1]) and len(set(names[0] + names[1])) == len(gold) == len(reply) > 1:
            # "a = 4, b = 5" for 4, 5: several names have an order
            ordered = [sorted(items, key=lambda item: item.name if isinstance(item, Named) else "") for items in (gold, reply)]
            return self._in_order(*map(tuple, ordered)) or self._in_order(gold, reply)
        if len(gold) != len(reply):
            gold, reply = self._distinct(gold), self._distinct(reply)
            if len(gold) != len(reply):
                return False
        rest = list(reply)
        for item in gold:
            match = next((place for place, other in enumerate(rest) if self.equal(item, other)), None)
            if match is None:
                return False
            del rest[match]
        return True

    def _distinct(self, items: tuple[Value, ...]) -> tuple[Value, ...]:
        kept: list[Value] = []
        for item in items:
            if not any(item == other for other in kept):
                kept.append(item)
        return tuple(kept)

    def _unions(self, gold: Value, reply: Value) -> bool:
        if not (isinstance(gold, Union) and isinstance(reply, Union)):
            return False
        return len(gold.parts) == len(reply.parts) and self._unordered(gold.parts, reply.parts)

    def _matrices(self, gold: Value, reply: Value) -> bool:
        if isinstance(gold, Matrix) and isinstance(reply, Expression) and r"\begin" in reply.latex:
            return self._same("equal", _matrix_latex(gold), reply.latex, None)
        if not (isinstance(gold, Matrix) and isinstance(reply, Matrix)) or gold.kind != reply.kind or len(gold.rows) != len(reply.rows):
            return False
        if gold.kind == "cases":
            rows = [Group(row, "(", ")") for row in gold.rows], [Group(row, "(", ")") for row in reply.rows]
            return self._unordered(tuple(rows[0]), tuple(rows[1]))
        return all(self._in_order(a, b) for a, b in zip(gold.rows, reply.rows, strict=True))


def _matrix_latex(matrix: Matrix) -> str:
    rows = r" \\ ".join(" & ".join(_latex(cell) or "?" for cell in row) for row in matrix.rows)
    return rf"\begin{{pmatrix}}{rows}\end{{pmatrix}}"


def _turned(inequality: Inequality) -> tuple[tuple[str, ...], tuple[str, ...]]:
    turned = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
    return inequality.parts[::-1], tuple(turned.get(sign, sign) for sign in inequality.signs[::-1])


def _is_variable(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z](?:_\w+|_\{\w+\})?", name) is not None


def _spelling(value: Value) -> str:
    """The letters and digits of words, for comparison without case and punctuation; "" for other values."""
    if isinstance(value, Words):
        return re.sub(r"[\W_]+", "", value.text.casefold())
    if isinstance(value, Expression):
        return re.sub(r"[\W_]+", "", re.sub(r"\\text|\\", "", value.raw).casefold())
    if isinstance(value, Group) and all(isinstance(item, Expression | Words) for item in value.items):
        return "".join(map(_spelling, value.items))
    if isinstance(value, Number) and value.last_place is None and value.value.denominator == 1 and not value.unit:
        return str(value.value)
    return ""


def _unit(value: Value) -> str:
    return value.unit if isinstance(value, Number | Expression) else ""


def _same_dimension(a: str, b: str) -> bool:
    if not a or not b or a == b or a not in UNITS or b not in UNITS:
        return True
    return UNITS[a][0] == UNITS[b][0]


def _scales(a: str, b: str) -> tuple[Fraction, Fraction]:
    if a in UNITS and b in UNITS and a != b:
        return UNITS[a][1], UNITS[b][1]
    return Fraction(1), Fraction(1)


def _scaled(latex: str, scale: Fraction) -> str:
    return latex if scale == 1 else rf"({latex})\cdot\frac{{{scale.numerator}}}{{{scale.denominator}}}"


def _latex(value: Value) -> str | None:
    if isinstance(value, Expression):
        return value.latex
    if isinstance(value, Number):
        top, bottom = abs(value.value.numerator), value.value.denominator
        sign = "-" if value.value < 0 else ""
        return f"{sign}{top}" if bottom == 1 else rf"{sign}\frac{{{top}}}{{{bottom}}}"
    return None


def _within(gold: Value, reply: Value) -> Fraction | None:
    """How far a decimal of enough digits may lie from what it approximates: less than one unit of its last place."""
    for decimal, other in ((reply, gold), (gold, reply)):
        if isinstance(decimal, Number) and decimal.last_place is not None and decimal.digits >= SIGNIFICANT_DIGITS:
            exact = isinstance(other, Expression) and not has_variables(other.latex)
            if exact:
                return decimal.last_place
    return None


def _numbers(gold: Number, reply: Number) -> bool:
    if not _same_dimension(gold.unit, reply.unit):
        return False
    a, b = _scales(gold.unit, reply.unit)
    if gold.percent == reply.percent:
        return _close(gold, reply, gold.value * a, reply.value * b)
    percent, plain = (gold, reply) if gold.percent else (reply, gold)
    return _close(percent, plain, percent.value, plain.value) or _close(percent, plain, percent.value / 100, plain.value)


def _close(a: Number, b: Number, x: Fraction, y: Fraction) -> bool:
    if x == y:
        return True
    decimals = [n for n in (a, b) if n.last_place is not None]
    if not decimals or (a.unit != b.unit and a.unit in UNITS and b.unit in UNITS):
        return False
    coarse = max(decimals, key=lambda n: n.last_place or 0)
    if coarse.digits < SIGNIFICANT_DIGITS or coarse.last_place is None or coarse.last_place >= 1:
        return False
    return abs(x - y) < coarse.last_place and (len(decimals) == 1 or abs(x - y) * 10**SIGNIFICANT_DIGITS <= max(abs(x), abs(y)))


def _ratios(gold: Value, reply: Value) -> bool:
    if isinstance(gold, Ratio) and isinstance(reply, Ratio):
        if gold.half and reply.half and gold.half != reply.half:
            return False
        if gold.parts == reply.parts:
            return True
        if gold.clock and reply.clock:
            return (gold.half == "pm" or reply.half == "pm") and _day(gold) == _day(reply)
        if len(gold.parts) != len(reply.parts) or gold.half or reply.half or not gold.parts[0] or not reply.parts[0]:
            return False
        return [part / gold.parts[0] for part in gold.parts] == [part / reply.parts[0] for part in reply.parts]
    ratio, other = (gold, reply) if isinstance(gold, Ratio) else (reply, gold)
    if not isinstance(ratio, Ratio) or not isinstance(other, Number) or len(ratio.parts) != 2 or not ratio.parts[1] or ratio.half:
        return False
    return other.value == ratio.parts[0] / ratio.parts[1]


def _day(time: Ratio) -> tuple[Fraction, ...]:
    hour = time.parts[0]
    if time.half == "pm" and hour < 12:
        hour += 12
    return (hour, *time.parts[1:])


def _based(gold: Value, reply: Value) -> bool:
    if isinstance(gold, Based) and isinstance(reply, Based):
        return (gold.digits, gold.base) == (reply.digits, reply.base)
    based, other = (gold, reply) if isinstance(gold, Based) else (reply, gold)
    if not isinstance(based, Based) or not isinstance(other, Number) or other.value.denominator != 1:
        return False
    if based is gold:
        return str(other.value) == based.digits  # the question asked for this base
    return based.base == 10 and str(other.value) == based.digits
