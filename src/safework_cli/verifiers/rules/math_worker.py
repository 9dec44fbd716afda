r"""The process that compares single expressions. Run as a script; imports nothing of safework, so that it starts from any folder.

One JSON object a line in, one a line out: ``{"relation", "a", "b", "within", "limit"}`` → ``{"same": bool}``, ``{"large": why}`` where a
comparison would take more than a bounded number of operations, or ``{"error": why}``. It announces itself with ``{"ready": true}`` once
its imports are done, so that they do not count against a time limit.

math-verify's parser (latex2sympy) reads LaTeX into a tree. math-verify then simplifies the difference, which has no bound in time and
rounds to six decimals, so that all small numbers are equal. Here both trees are evaluated at fixed points with 60 digits: two expressions
are equal where they agree, relatively, at every point at which both have a value. What cannot be evaluated is equal if the trees are.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import signal
import sys
from fractions import Fraction
from functools import lru_cache
from typing import Any

MEMORY_LIMIT_BYTES = 4 << 30
MAX_CHARACTERS, MAX_ROUND, MAX_NESTED = 400, 5, 16
"""Of an expression: its length, round brackets within one another (the grammar's time grows fast with them), and all brackets."""
MAX_BITS = 2**36
"""Of a power: a number of more bits than this is not computed."""
MAX_FACTORIAL = 10**6
MAX_STEPS = 20_000
DIGITS = 60


class TooLarge(Exception):
    """Evaluating it would take more than a bounded number of operations."""


class NoValue(Exception):
    """It has no value at this point."""


class Unsupported(Exception):
    """The tree holds what is not evaluated: an integral, a limit, an unbounded sum."""


def checked(latex: str) -> str:
    """The text, brackets that only repeat taken out. Raises TooLarge where parsing it would take long."""
    while True:
        shorter = re.sub(r"\(\(([^()]*)\)\)", r"(\1)", latex)
        if shorter == latex:
            break
        latex = shorter
    if latex.count("\\begin") and re.search(r"\^", latex):
        raise TooLarge("too large: a power of a matrix")
    if len(latex) > MAX_CHARACTERS:
        raise TooLarge(f"too large: an expression of {len(latex)} characters")
    round_depth = depth = 0
    for char in latex:
        round_depth += (char == "(") - (char == ")")
        depth += (char in "([{") - (char in ")]}")
        if round_depth > MAX_ROUND or depth > MAX_NESTED:
            raise TooLarge("too large: an expression of too many brackets in one another")
    if re.search(r"\\(?:binom|gcd|lcm|bmod|pmod|det)", latex) and re.search(r"\d{5}|[!^]", latex):
        raise TooLarge("too large: a function that the parser evaluates, of large numbers")  # these are computed while parsing
    return latex


@lru_cache(maxsize=256)
def parsed(latex: str) -> Any:
    """The tree of an expression; letters keep their case, and nothing is evaluated."""
    from dataclasses import replace

    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy, normalize_latex
    from math_verify.parser import LatexExtractionConfig

    config = replace(LatexExtractionConfig().normalization_config, boxed="none", units=False)
    text = normalize_latex(re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", latex), config)
    return latex2sympy(
        text, is_real=True, convert_degrees=False, normalization_config=None, conversion_config=ConversionConfig(lowercase_symbols=False)
    )


def places(symbols: list[str]) -> list[dict[str, Any]]:
    """Fixed points: for each symbol, values that depend on its name; positive ones first, then of both signs."""
    import mpmath

    points = []
    for number in range(8):
        point = {}
        for name in symbols:
            seed = int.from_bytes(hashlib.sha256(f"{number}/{name}".encode()).digest()[:8], "big")
            value = mpmath.mpf(seed) / 2**64 * 3 + mpmath.mpf(1) / 7
            point[name] = -value if number >= 4 and seed % 2 else value
        points.append(point)
    return points if symbols else points[:1]


class Evaluator:
    """The value of a tree at a point, or TooLarge, NoValue, Unsupported. ``ten`` reads a bare ``\\log`` as the decimal one."""

    def __init__(self, point: dict[str, Any], *, ten: bool, complex_numbers: bool):
        self.point, self.ten, self.complex = point, ten, complex_numbers
        self.steps = 0

    def __call__(self, tree: Any) -> Any:
        import mpmath
        import sympy

        self.steps += 1
        if self.steps > MAX_STEPS:
            raise TooLarge("too large: too many operations")
        kind = type(tree).__name__
        if isinstance(tree, sympy.Integer):
            return mpmath.mpf(int(tree))
        if isinstance(tree, sympy.Rational):
            return mpmath.mpf(int(tree.p)) / int(tree.q)
        if isinstance(tree, sympy.Float):
            value = Fraction(str(tree))
            return mpmath.mpf(value.numerator) / value.denominator
        if isinstance(tree, sympy.Symbol):
            return mpmath.mpc(0, 1) if tree.name == "i" and self.complex else self.point[tree.name]
        constants = {"Pi": mpmath.pi, "Exp1": mpmath.e, "EulerGamma": mpmath.euler, "GoldenRatio": mpmath.phi}
        if kind in constants:
            return +constants[kind]
        if kind == "ImaginaryUnit":
            return mpmath.mpc(0, 1)
        if kind in ("Infinity", "NegativeInfinity"):
            return mpmath.inf if kind == "Infinity" else -mpmath.inf
        if kind in ("Sum", "Product"):
            return self._series(tree, kind)
        if not isinstance(tree, sympy.Expr):
            raise Unsupported(kind)
        parts = [self(part) for part in tree.args]
        return self._applied(tree, kind, parts)

    def _applied(self, tree: Any, kind: str, parts: list[Any]) -> Any:
        import mpmath

        if kind == "Add":
            return sum(parts[1:], parts[0])
        if kind == "Mul":
            value = parts[0]
            for part in parts[1:]:
                value = value * part
            return value
        if kind == "UnevaluatedExpr":
            return parts[0]
        if kind == "Pow":
            return self._power(parts[0], parts[1])
        if kind == "exp":
            return self._power(+mpmath.e, parts[0])
        if kind == "log":
            base = parts[1] if len(parts) > 1 else +mpmath.e
            if len(parts) > 1 and not self.ten and tree.args[1] == 10:
                base = +mpmath.e
            return self._real(mpmath.log, parts[0]) / self._real(mpmath.log, base)
        if kind == "factorial":
            if not self._is_small(parts[0], MAX_FACTORIAL):
                raise TooLarge("too large: the factorial of a large number")
            if mpmath.isint(parts[0]) and parts[0] < 0:
                raise NoValue
            return mpmath.factorial(parts[0])
        if kind == "binomial":
            if not all(self._is_small(part, MAX_FACTORIAL) for part in parts):
                raise TooLarge("too large: a binomial coefficient of large numbers")
            return mpmath.binomial(*parts)
        if kind in ("floor", "ceiling"):
            return getattr(mpmath, {"floor": "floor", "ceiling": "ceil"}[kind])(parts[0]) if self._is_small(parts[0], 10**30) else parts[0]
        if kind == "Mod":
            if not all(self._is_small(part, 10**30) for part in parts) or parts[1] == 0:
                raise TooLarge("too large: a remainder of large numbers")
            return mpmath.fmod(*parts)
        if kind in ("Max", "Min"):
            return (max if kind == "Max" else min)(parts)
        if kind == "Abs":
            return abs(parts[0])
        names = {"asin": "asin", "acos": "acos", "atan": "atan", "acot": "acot", "asec": "asec", "acsc": "acsc", "sinh": "sinh",
                 "cosh": "cosh", "tanh": "tanh", "sin": "sin", "cos": "cos", "tan": "tan", "cot": "cot", "sec": "sec", "csc": "csc",
                 "conjugate": "conj", "re": "re", "im": "im", "arg": "arg", "sign": "sign", "coth": "coth", "asinh": "asinh",
                 "acosh": "acosh", "atanh": "atanh"}  # fmt: skip
        if kind in names:
            if not self._is_small(parts[0], 10**30 if "h" not in kind else 10**9):
                raise TooLarge(f"too large: {kind} of a large number")
            return self._real(getattr(mpmath, names[kind]), parts[0])
        if type(type(tree)).__name__ == "UndefinedFunction":  # any function: a fixed one for each name
            seed = int.from_bytes(hashlib.sha256(kind.encode()).digest()[:4], "big") / mpmath.mpf(2**32)
            if not all(self._is_small(part, 10**30) for part in parts):
                raise TooLarge("too large: a function of a large number")
            return 2 + seed + sum(mpmath.cos((seed + place + 1) * part) for place, part in enumerate(parts))
        raise Unsupported(kind)

    def _power(self, base: Any, exponent: Any) -> Any:
        import mpmath

        if base == 0:
            if mpmath.re(exponent) <= 0:
                raise NoValue
            return mpmath.mpf(0)
        bits = abs(mpmath.log(abs(base), 2) * abs(exponent)) if abs(base) != 1 and not mpmath.isinf(base) else 0
        if not bits < MAX_BITS or abs(exponent) > MAX_BITS:
            raise TooLarge("too large: a power of very many digits")
        if isinstance(base, mpmath.mpf) and base < 0 and not self.complex and not mpmath.isint(exponent):
            third = 1 / exponent if exponent else exponent
            if isinstance(exponent, mpmath.mpf) and abs(third - mpmath.nint(third)) < mpmath.mpf(10) ** -30 and int(mpmath.nint(third)) % 2:
                return -((-base) ** exponent)  # an odd root, of a negative number, as a real one
            raise NoValue
        if mpmath.isint(exponent) and isinstance(exponent, mpmath.mpf):
            return base ** int(exponent)
        return base**exponent

    def _real(self, function: Any, argument: Any) -> Any:
        import mpmath

        try:
            value = function(argument)
        except (ValueError, ZeroDivisionError):
            raise NoValue from None
        if isinstance(value, mpmath.mpc) and isinstance(argument, mpmath.mpf) and not self.complex:
            raise NoValue
        return value

    @staticmethod
    def _is_small(value: Any, bound: int) -> bool:
        return bool(abs(value) <= bound)

    def _series(self, tree: Any, kind: str) -> Any:
        import mpmath
        import sympy

        term, *ranges = tree.args
        if len(ranges) != 1 or len(ranges[0]) != 3 or not isinstance(ranges[0][0], sympy.Symbol):
            raise Unsupported(kind)
        name, low, high = ranges[0][0].name, self(ranges[0][1]), self(ranges[0][2])
        if not (mpmath.isint(low) and mpmath.isint(high)):
            raise Unsupported(kind)
        if high - low > 1_000:
            raise TooLarge("too large: a sum of many terms")
        kept = self.point.get(name)
        value = mpmath.mpf(0 if kind == "Sum" else 1)
        for index in range(int(low), int(high) + 1):
            self.point[name] = mpmath.mpf(index)
            value = value + self(term) if kind == "Sum" else value * self(term)
        if kept is not None:
            self.point[name] = kept
        return value


def values(tree: Any, names: list[str], *, ten: bool, complex_numbers: bool) -> list[Any]:
    """Of a tree at every point; None where it has none."""
    values: list[Any] = []
    for point in places(names):
        try:
            values.append(Evaluator(dict(point), ten=ten, complex_numbers=complex_numbers)(tree))
        except (NoValue, ZeroDivisionError):
            values.append(None)
    return values


def canonical(tree: Any) -> Any:
    """A tree as nested tuples, the terms of sums and the factors of products in one order."""
    parts = [canonical(part) for part in getattr(tree, "args", ())]
    kind = type(tree).__name__
    if kind in ("Add", "Mul"):
        flat: list[Any] = []
        for part in parts:  # a sum in a sum is one sum
            flat += part[1] if isinstance(part, tuple) and part[0] == kind else [part]
        parts = sorted(flat, key=repr)
    return (kind, parts) if parts else str(tree)


def _same_matrices(a: Any, b: Any) -> bool:
    """Sums and products of small matrices of numbers, computed."""
    cells = sum(getattr(part, "rows", 0) * getattr(part, "cols", 0) for tree in (a, b) for part in _preorder(tree) if hasattr(part, "flat"))
    if cells > 100:
        raise TooLarge("too large: matrices of many cells")
    a, b = a.doit(), b.doit()
    return bool(
        a.shape == b.shape and all(canonical(x) == canonical(y) or (x - y).is_zero for x, y in zip(a.flat(), b.flat(), strict=True))
    )


def _preorder(tree: Any) -> list[Any]:
    nodes: list[Any] = []
    rest = [tree]
    while rest and len(nodes) < MAX_STEPS:
        nodes.append(rest.pop())
        rest += getattr(nodes[-1], "args", ())
    return nodes


def same(relation: str, a: str, b: str, within: str | None) -> bool:
    """Raises TooLarge; what cannot be parsed is not the same."""
    import mpmath
    import sympy

    texts = [checked(a), checked(b)]
    trees = []
    for text in texts:
        try:
            trees.append(parsed(text))
        except MemoryError:  # not a property of the reply
            raise
        except Exception:  # the parser raises anything
            return False
    if relation == "evaluate":  # only whether it can be evaluated
        trees = trees[:1]
    if relation == "equal" and (trees[0] == trees[1] or canonical(trees[0]) == canonical(trees[1])):
        return True
    if all(isinstance(tree, sympy.MatrixBase | sympy.MatrixExpr) for tree in trees):
        return len(trees) == 1 or _same_matrices(*trees)
    if not all(isinstance(tree, sympy.Expr) for tree in trees):
        return False
    digits = DIGITS + max((len(run) for text in texts for run in re.findall(r"\d+", text)), default=0)
    names = sorted({symbol.name for tree in trees for symbol in tree.free_symbols})
    complex_numbers = any(re.search(r"(?<![A-Za-z\\])i(?![A-Za-z])", text) for text in texts)
    forms = [(False, False)]
    if any("\\log" in text for text in texts):  # a bare log is the natural or the decimal one, on either side
        forms += [(True, True), (True, False), (False, True)] if len(trees) > 1 else []
    for tens in forms:

        def evaluated(more: int, tens: tuple[bool, bool] = tens) -> list[list[Any]]:
            with mpmath.workdps(digits + more):
                return [values(tree, names, ten=ten, complex_numbers=complex_numbers) for tree, ten in zip(trees, tens, strict=False)]

        sides = evaluated(0)
        if len(sides) == 1:
            return True
        left, right = sides
        with mpmath.workdps(digits):
            agree = _agree(relation, left, right, _exactness(trees, digits), within)
        if agree and _zeros_hold(left, right, evaluated):
            return True
    return False


def _zeros_hold(left: list[Any], right: list[Any], evaluated: Any) -> bool:
    """Whether what was taken for 0 is rounding: with 40 digits more it must shrink, which a small number does not."""
    suspects = [
        place for place, (x, y) in enumerate(zip(left, right, strict=True)) if x is not None and y is not None and x != y and 0 in (x, y)
    ]
    if not suspects:
        return True
    more = evaluated(40)
    return all(max(abs(more[0][place]), abs(more[1][place])) * 10**20 < max(abs(left[place]), abs(right[place])) for place in suspects)


def _exactness(trees: list[Any], digits: int) -> Any:
    """The relative difference up to which values are equal: that of doubles where a decimal is in the tree, else of the precision."""
    import mpmath
    import sympy

    decimal = any(tree.has(sympy.Float) for tree in trees)
    return mpmath.mpf(10) ** (-12 if decimal else 20 - digits)


def _agree(relation: str, left: list[Any], right: list[Any], exact: Any, within: str | None) -> bool:
    import mpmath

    pairs = [(x, y) for x, y in zip(left, right, strict=True) if x is not None and y is not None]
    positive = list(zip(left, right, strict=True))[:4]
    if not pairs or any((x is None) != (y is None) for x, y in positive):
        return False
    if relation == "equal":
        if within is not None:
            bound = Fraction(within)
            limit = mpmath.mpf(bound.numerator) / bound.denominator
            return all(abs(x - y) < limit for x, y in pairs)
        return all(
            x == y or (mpmath.isfinite(x) and mpmath.isfinite(y) and abs(x - y) <= exact * max(abs(x), abs(y))) or _nothing(x, y)
            for x, y in pairs
        )
    ratios = [x / y for x, y in pairs if y != 0]
    if not ratios or len(ratios) < len(pairs) or any(not mpmath.isfinite(ratio) or ratio == 0 for ratio in ratios):
        return False
    if relation == "positive multiple" and not (isinstance(ratios[0], mpmath.mpf) and ratios[0] > 0):
        return False
    return all(abs(ratio - ratios[0]) <= exact * abs(ratios[0]) for ratio in ratios)


def _nothing(x: Any, y: Any) -> bool:
    """Whether one is 0 and the other at most the rounding error of terms that cancel."""
    import mpmath

    return bool(min(abs(x), abs(y)) == 0 and max(abs(x), abs(y)) < mpmath.mpf(10) ** (10 - mpmath.mp.dps))


def answer(job: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"same": same(job["relation"], job["a"], job["b"], job.get("within"))}
    except TooLarge as error:
        return {"large": str(error)}
    except Unsupported:
        return {"same": False}
    except (OverflowError, RecursionError, MemoryError) as error:
        return {"large": f"too large: {type(error).__name__}"}


def main() -> None:
    logging.disable(logging.WARNING)
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    except (ImportError, ValueError, OSError):
        pass  # no such limit on this system
    for latex in (r"\frac{1}{2}", r"(x+1)^{2}", r"2\sqrt{3}\pi", r"\sin(2x)"):  # imports, and the grammar's tables
        answer({"relation": "equal", "a": latex, "b": "x"})
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        # if the parent dies, nothing kills this process: the alarm's default action ends it even inside C code
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(job["limit"]) + 5)
        try:
            result = answer(job)
        except Exception as error:
            result = {"error": f"comparison failed: {type(error).__name__}: {error}"}
        signal.alarm(0)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
