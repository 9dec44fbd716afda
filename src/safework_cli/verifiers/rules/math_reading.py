r"""The structure of a mathematical answer, read from its text: lists, intervals, matrices, equations, and the values in them.

Structure is read by passes over brackets; what is left, a single expression, stays LaTeX and goes to math-verify's parser. All of it is
bounded by the size of the text: ``MAX_CHARACTERS`` and ``MAX_DEPTH``.
"""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise

from safework_cli.verifiers.rules.math_notation import (
    cleaned,
    closes_at_end,
    compact,
    has_variables,
    name_like,
    split_top,
    stripped,
    unstyled,
)
from safework_cli.verifiers.rules.math_numbers import plain_value, single, spelled_out, unit_name, words_of
from safework_cli.verifiers.rules.math_values import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    MAX_ITEMS,
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
    Unreadable,
    Value,
    Words,
)
from safework_cli.verifiers.rules.math_words import in_signs

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
        text = spelled_out(text)  # before "and" is read as the joint of a list
    signed = in_signs(text)
    if signed is None:
        return Words(text)  # equal to the same words only
    text = signed
    return _read(re.sub(r"_\{\\text\{(\w+)\}\}", r"_{\1}", text), 0)


def _read(text: str, depth: int) -> Value:
    if depth > MAX_DEPTH:
        raise TooLarge("its brackets are nested too deeply")
    text = stripped(text)
    if not text:
        raise Unreadable("it is empty")
    environment = _environment(text, depth)
    if environment is not None:
        return environment
    plain, words = unstyled(text)
    raw = text
    text = stripped(plain)
    if not text or not re.search(r"[\w∅∞\\]", text):
        if words:
            return words_of(" ".join(part for _, part in words))
        raise Unreadable("it says nothing")
    unit = ""
    if words:
        position, trailing = words[-1]
        if position >= len(plain.rstrip(" ^{}0123456789.,")) - 1 or len(plain[position:].strip()) <= 5:
            exponent = re.fullmatch(r"\s*\^\s*\{?\s*([23])\s*\}?\s*", plain[position:])
            unit = unit_name(trailing + (f"^{exponent[1]}" if exponent else ""))
            text = stripped(plain[:position]) or text
            if exponent is None and not re.fullmatch(r"[\s.,;]*", plain[position:]):
                text = stripped(plain)
            if re.fullmatch(r"base|in base|base-?\w+", trailing):
                text, unit = stripped(plain), ""
    if re.fullmatch(r"(?:\{\}\s*)?\^\s*\\circ", text):
        raise Unreadable("it says nothing")
    structured = _structured(text, depth, raw)
    if structured is not None:
        return _with_unit(structured, unit)
    return _with_unit(single(text, raw), unit)


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


def _structured(text: str, depth: int, raw: str) -> Value | None:
    if text == r"\mathbb{R}":
        return Group((_infinity(-1), _infinity(1)), "(", ")")
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
    if len(parts) == 2 and name_like(parts[0]) and (signs != ["in"] or " " not in parts[0].strip()):  # no "8 in 3 years"
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
            named = [[item.value for item in one.items if isinstance(item, Named)] for one in tuples if isinstance(one, Group)]
            return Group(tuple(Group(tuple(values), "(", ")") for values in named))
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
    parts, relations = split_top(text, _RELATION)
    if not relations or any(not part.strip() for part in parts[1:]):
        return None
    if not parts[0].strip():
        return _of_what_is_asked(_RELATION_NAMES.get(relations[0], relations[0]), text.lstrip()[len(relations[0]) :], depth)
    signs = [_RELATION_NAMES.get(sign, sign) for sign in relations]
    parts = [part.strip() for part in parts]
    if set(signs) <= {"=", r"\approx"}:
        return _equated(parts, signs, depth)
    if "=" in signs and signs[0] == "=" and name_like(parts[0]):
        return _related(text.split("=", 1)[1], depth + 1)
    return _interval(parts, signs, depth) or Inequality(tuple(parts), tuple(signs))


def _of_what_is_asked(sign: str, right: str, depth: int) -> Value:
    """A relation without its left side: "= 5" is 5, "> 5" a ray."""
    bound = _read(right, depth + 1)
    if sign in ("=", r"\approx"):
        return bound
    if isinstance(bound, Number | Expression) and sign in _FLIPPED:
        return _ray(bound, sign)
    return _without([bound]) if isinstance(bound, Number) else Inequality(("x", right.strip()), (sign,))


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
        if scaled and (scaled[1] or scaled[2]) and (plain := plain_value(right)) is not None and signs[0] in _FLIPPED and scaled[2] != "0":
            factor = Fraction(int(f"{scaled[1]}{scaled[2] or 1}"))
            return Named(scaled[3], _ray(Number(plain / factor), signs[0] if factor > 0 else _FLIPPED[signs[0]]))
        if not name_like(left) or has_variables(right):
            return None
        bound = _read(right, depth + 1)
        if signs[0] not in _FLIPPED:
            return Named(compact(left), _without([bound])) if isinstance(bound, Number) else None
        inner = re.fullmatch(r"\|\s*(.*?)\s*\|", left)
        if inner and isinstance(bound, Number):
            return Named(compact(inner[1]), _absolute(bound, signs[0]))
        return Named(compact(left), _ray(bound, signs[0]))
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
        if not closes_at_end(inner):
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
