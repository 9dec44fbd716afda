"""Arithmetic with worked steps, and instructions whose keeping a program can check."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from safework_data.starter.tables import Item, Unit, dice, load

FORMS = {"math": 0.65, "instruction": 0.35}
INSTANCES = 20
"""Operand sets drawn for each problem."""

Variant = tuple[str, str, str, list[dict[str, Any]]]
"""Question, thought, reply and constraints of an instruction."""

FORMULAS: dict[str, Callable[[int, int, int], float]] = {
    "a+b": lambda a, b, c: a + b,
    "a-b": lambda a, b, c: a - b,
    "a*b": lambda a, b, c: a * b,
    "b*c": lambda a, b, c: b * c,
    "a/b": lambda a, b, c: a / b,
    "a-b+c": lambda a, b, c: a - b + c,
    "a+b-c": lambda a, b, c: a + b - c,
    "a*b+c": lambda a, b, c: a * b + c,
    "a*b-c": lambda a, b, c: a * b - c,
    "a-b*c": lambda a, b, c: a - b * c,
    "2*(a+b)": lambda a, b, c: 2 * (a + b),
}
"""What ``expr`` and ``first`` of a problem may be."""

BOXED = {"en": " Answer in \\boxed{}.", "zh": "写入\\boxed{}。"}
SOLVED = {"en": "The answer is \\boxed{%d}.", "zh": "答案是\\boxed{%d}。"}


def units(seed: int) -> list[Unit]:
    found: list[Unit] = []
    for language in ("en", "zh"):
        parts = load(f"general_{language}")
        for problem in parts["problems"]:
            found += [[item] for item in _problem_items(problem, parts["names"], language, dice(seed, "general", problem["id"]))]
        write = _english_instructions if language == "en" else _chinese_instructions
        for number, topic in enumerate(parts["topics"]):
            found += [[item] for item in write(topic, f"{language}-{number:02d}")]
    for number, question in enumerate(load("general_en")["questions"]):
        found.append([_yes_no_item(question, number)])
    return found


def _problem_items(problem: dict[str, Any], names: list[str], language: str, rng: Random) -> list[Item]:
    items: list[Item] = []
    seen = set()
    while len(items) < INSTANCES:
        a, b, c = (rng.randint(*problem.get(name, (0, 0))) for name in "abc")
        result = FORMULAS[problem["expr"]](a, b, c)
        first = FORMULAS[problem.get("first", problem["expr"])](a, b, c)
        if (a, b, c) in seen or min(result, first) <= 1 or result != int(result):
            continue
        seen.add((a, b, c))
        values = {"n": rng.choice(names), "a": a, "b": b, "c": c, "f": int(first), "r": int(result)}
        key = "-".join(str(part) for part in (problem["id"], a, b, c)[: 4 if "c" in problem else 3])
        items.append(
            Item(
                key=key,
                task="general",
                group=f"general-{key}",
                category="arithmetic" if problem.get("plain") else "word_problem",
                language=language,
                form="math",
                question=problem["text"].format(**values) + BOXED[language],
                thought=problem["steps"].format(**values),
                reply=SOLVED[language] % result,
                answer=str(int(result)),
                meta={"answer_type": "math"},
            )
        )
    return items


def _instruction(key: str, group: str, language: str, question: str, thought: str, reply: str, constraints: list[dict[str, Any]]) -> Item:
    return Item(
        key=f"instruction-{key}",
        task="general",
        group=f"general-instruction-{group}",
        category="instruction",
        language=language,
        form="instruction",
        question=question,
        thought=thought,
        reply=reply,
        meta={"answer_type": "constraints", "constraints": constraints},
    )


def _english_instructions(topic: dict[str, Any], name: str) -> list[Item]:
    word, sentence = topic["word"], topic["sentence"]
    about = topic["about"]
    three, two = ("\n".join(f"- {line}" for line in topic["bullets"][:count]) for count in (3, 2))
    shout = sentence[:-1] + "!"
    lower, upper, short = {"type": "lowercase"}, {"type": "uppercase"}, {"type": "max_words", "n": 12}
    bang, contains, no_commas = {"type": "ends_with", "text": "!"}, {"type": "contains", "text": word}, {"type": "no_commas"}
    one = f"Write one sentence about {about}"
    lines = "each on a line that starts with '- '."
    variants: list[Variant] = [
        (f"{one} in lowercase letters only.", "All letters must be small, also the first.", sentence.lower(), [lower]),
        (f"{one} in capital letters only.", "Every letter must be a capital.", sentence.upper(), [upper]),
        (f"Describe {about} in at most 12 words.", "A short sentence keeps within 12 words.", sentence, [short]),
        (f"Use the word {word} in one sentence.", f"The word {word} must appear.", sentence, [contains]),
        (f"List three points about {about}, {lines}", "Three short lines, each with a dash.", three, [{"type": "bullets", "n": 3}]),
        (f"List two points about {about}, {lines}", "Two short lines, each with a dash.", two, [{"type": "bullets", "n": 2}]),
        (f"{one} with an exclamation mark at its end.", "The last sign must be an exclamation mark.", shout, [bang]),
        (f"Without any commas, use the word {word} in a sentence.", f"No commas, and {word} must appear.", sentence, [no_commas, contains]),
        (f"Describe {about} in lowercase, in at most 12 words.", "Small letters, and at most 12 words.", sentence.lower(), [lower, short]),
        (
            f"Shout a sentence about {about}: capital letters and a final exclamation mark.",
            "Capitals, then '!'.",
            shout.upper(),
            [upper, bang],
        ),
    ]
    return [_instruction(f"{name}-{number}", name, "en", *variant) for number, variant in enumerate(variants)]


def _chinese_instructions(topic: dict[str, Any], name: str) -> list[Item]:
    word, sentence = topic["word"], topic["sentence"]
    three, two = ("\n".join(f"- {line}" for line in topic["bullets"][:count]) for count in (3, 2))
    contains = {"type": "contains", "text": word}
    variants: list[Variant] = [
        (f"用“{word}”写一句话。", f"句子里要出现“{word}”。", sentence, [contains]),
        (f"写一句话说说{word}，不超过二十字。", "句子要短。", sentence, [{"type": "max_words", "n": 20}]),
        (f"写一句话说说{word}，用“！”结尾。", "最后要用感叹号。", sentence[:-1] + "！", [{"type": "ends_with", "text": "！"}]),
        (f"说说{word}，分三行，用“- ”开头。", "写三行，每行一点。", three, [{"type": "bullets", "n": 3}]),
        (f"说说{word}，分两行，用“- ”开头。", "写两行，每行一点。", two, [{"type": "bullets", "n": 2}]),
        (f"写一句有“{word}”的话，别用逗号。", f"不用逗号，还要有“{word}”。", sentence, [{"type": "no_commas"}, contains]),
    ]
    return [_instruction(f"{name}-{number}", name, "zh", *variant) for number, variant in enumerate(variants)]


def _yes_no_item(question: dict[str, str], number: int) -> Item:
    name, start = f"yes-no-{number:02d}", question["start"]
    asked = f"{question['ask']} Start your reply with the word {start}."
    return _instruction(
        name, name, "en", asked, f"The reply must begin with {start}.", question["reply"], [{"type": "starts_with", "text": start}]
    )
