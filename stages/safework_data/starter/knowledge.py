"""Short factual questions from fact tables, half of them with four choices from the same table."""

from __future__ import annotations

from random import Random
from typing import Any

from safework_data.starter.tables import LETTERS, Item, Unit, ask_choice, dice, load, upper_first

FORMS = {"choice": 0.5, "open": 0.5}

BRIEFLY = {"en": " Reply with the answer only.", "zh": "简答。"}
CHOSEN = {"en": " That is {letter}.", "zh": "选{letter}。"}


def units(seed: int) -> list[Unit]:
    """Every fact in each phrasing of its table, open and with choices."""
    return [
        [item]
        for language in ("en", "zh")
        for table in load(f"knowledge_{language}")
        for number, key in enumerate(table["items"])
        for item in _items(table, number, key, language, seed)
    ]


def _names(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _items(table: dict[str, Any], number: int, key: str, language: str, seed: int) -> list[Item]:
    fact = f"{table['name']}-{number:02d}"
    rng = dice(seed, "knowledge", fact)
    answer, *aliases = _names(table["items"][key])
    recall = upper_first(table["recall"].format(k=key, v=answer))
    rest: dict[str, Any] = {
        "task": "knowledge",
        "group": f"knowledge-{fact}",
        "category": table["name"].removeprefix("zh-"),
        "language": language,
    }
    items = []
    for phrasing, frame in enumerate(table["ask"]):
        question = frame.format(k=key)
        # a whole sentence is accepted only where the answer is a word of its own: "H" or "12" would be found by chance
        sentence = phrasing % 2 == 1 and len(answer) > (2 if language == "en" else 1) and not answer.isdigit()
        items.append(
            Item(
                key=f"{fact}-open-{phrasing}",
                form="open",
                question=question if sentence else question + BRIEFLY[language],
                thought=recall,
                reply=recall if sentence else answer,
                answer=answer,
                meta={"answer_type": "contains" if sentence else "exact", "aliases": aliases},
                **rest,
            )
        )
        choices = _choices(table, key, rng)
        letter = LETTERS[choices.index(answer)]
        items.append(
            Item(
                key=f"{fact}-choice-{phrasing}",
                form="choice",
                question=ask_choice(question, choices, language),
                thought=recall + CHOSEN[language].format(letter=letter),
                reply=letter,
                answer=letter,
                meta={"answer_type": "choice", "choices": choices},
                **rest,
            )
        )
    return items


def _choices(table: dict[str, Any], key: str, rng: Random) -> list[str]:
    """The answer among three wrong ones of its table, in random order."""
    right = _names(table["items"][key])
    values = table.get("distractors") or [_names(value)[0] for value in table["items"].values()]
    wrong = [value for value in dict.fromkeys(values) if value not in right]
    choices = [right[0], *rng.sample(wrong, 3)]
    rng.shuffle(choices)
    return choices
