"""Arithmetic with small numbers, worked step by step: sums and differences by tens and ones, products by the parts of a factor."""

from __future__ import annotations

from random import Random
from typing import Any

from safework_data.starter.tables import Item, Unit, dice, load

INSTANCES = 40
"""Operand sets drawn for each wording of a problem."""
SIGNS = {"en": {"*": "x", "/": "/"}, "zh": {"*": "×", "/": "÷"}}
OPERATIONS = {
    "en": {"+": "Add: ", "-": "Take away: ", "*": "Times: ", "/": "Share: "},
    "zh": {"+": "加：", "-": "减：", "*": "乘：", "/": "除："},
}
"""How the thought of a word problem names each step, whatever the wording: from the words to the operation, and from there to the sum."""
ENDS = {"en": ".", "zh": "。"}
ASKED = {
    "en": (" Answer in \\boxed{}.", " Answer in \\boxed{}.", " Reply with the number only.", ""),
    "zh": ("写入\\boxed{}。", "写入\\boxed{}。"),
}
"""How the answer is asked for; the replies to each are in ``SOLVED``."""
SOLVED = {
    "en": ("The answer is \\boxed{%d}.", "The answer is \\boxed{%d}.", "%d", "The answer is %d."),
    "zh": ("答案是\\boxed{%d}。", "答案是\\boxed{%d}。"),
}


def units(seed: int) -> list[Unit]:
    """The problems; each wording is a group and a template of its own."""
    found: list[Unit] = []
    for language in ("en", "zh"):
        parts = load(f"arithmetic_{language}")
        for problem in parts["problems"]:
            for number, text in enumerate(problem["texts"]):
                name = f"{problem['id']}-{number}"
                found += [[item] for item in _items(name, text, problem, parts["names"], language, dice(seed, "general", name))]
    return found


def _items(name: str, text: str, problem: dict[str, Any], names: list[str], language: str, rng: Random) -> list[Item]:
    items: list[Item] = []
    seen = set()
    for _ in range(100 * INSTANCES):
        if len(items) == INSTANCES:
            break
        operands = {slot: rng.randint(*problem[slot]) for slot in "abc" if slot in problem}
        worked = _worked(problem["do"], operands, language)
        if tuple(operands.values()) in seen or worked is None:
            continue
        seen.add(tuple(operands.values()))
        steps, result = worked
        plain = problem.get("plain", False)
        leads = ["" if plain else OPERATIONS[language][step.split()[1]] for step in problem["do"]]
        thought = (" " if language == "en" else "").join(lead + step + ENDS[language] for lead, step in zip(leads, steps, strict=True))
        form = len(items) % len(ASKED[language])
        key = "-".join(map(str, (name, *operands.values())))
        items.append(
            Item(
                key=key,
                task="general",
                group=f"general-{name}",
                category="arithmetic" if plain else "word_problem",
                language=language,
                form="math" if plain or language == "zh" else "word",
                stratum=problem["id"],
                template=f"general-{name}",
                question=text.format(n=rng.choice(names), **operands) + ASKED[language][form],
                thought=thought,
                reply=SOLVED[language][form] % result,
                answer=str(result),
                meta={"answer_type": "math"},
            )
        )
    return items


def _worked(steps: list[str], operands: dict[str, int], language: str) -> tuple[list[str], int] | None:
    """The worked sum of each step and the last result; None where a result is not a whole number above 1."""
    texts, last = [], 0
    for step in steps:
        left, sign, right = step.split()
        x, y = (last if part == "_" else operands.get(part) or int(part) for part in (left, right))
        if sign == "/" and x % y:
            return None
        last = {"+": x + y, "-": x - y, "*": x * y, "/": x // y}[sign]
        if last <= 1:
            return None
        texts.append(worked_sum(x, sign, y, language))
    return texts, last


def worked_sum(x: int, sign: str, y: int, language: str = "en") -> str:
    """One sum with its result, in parts where it is not a single easy step: ``47 + 38`` by tens and ones is ``47 + 30 = 77, 77 + 8 = 85``.

    Args:
        sign: one of + - * /; a division has no remainder.
    """
    comma = ", " if language == "en" else "，"

    def sums(*parts: tuple[int, str, int]) -> str:
        results = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}
        return comma.join(f"{a} {SIGNS[language].get(s, s)} {b} = {results[s](a, b)}" for a, s, b in parts)

    tens, ones = y - y % 10, y % 10
    if sign == "+" and tens and ones and x > 9:
        return sums((x, "+", tens), (x + tens, "+", ones))
    if sign == "-" and tens and ones:
        return sums((x, "-", tens), (x - tens, "-", ones))
    if sign == "*" and max(x, y) > 12:
        large, small = max(x, y), min(x, y)
        high = large - large % 10
        if high != large and small > 1:
            return sums((high, "*", small), (large - high, "*", small), (high * small, "+", (large - high) * small))
    return sums((x, sign, y))
