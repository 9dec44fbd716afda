"""Short factual questions from fact tables, some with four choices from the same table, and questions under passages that answer them."""

from __future__ import annotations

import re
from random import Random
from typing import Any

from safework_data.starter.tables import LETTERS, Item, Unit, ask_choice, dice, load, upper_first
from safework_data.starter.world import ONE_HOP, Asked, Cluster, aliases, clusters

FORMS = {"choice": 0.375, "open": 0.375, "reading": 0.25}

BRIEFLY = {"en": " Reply with the answer only.", "zh": "简答。"}
BRIEF_SHARE = 0.5
"""Questions under passages that ask for the answer only; the others are answered with the sentence that holds it."""
CHOSEN = {"en": " That is {letter}.", "zh": "选{letter}。"}


QUOTED = {
    "en": ('The text says: "{sentence}"', 'I look for it in the text and find: "{sentence}"', 'This sentence tells: "{sentence}"'),
    "zh": ("文中说：“{sentence}”", "在文中找到：“{sentence}”"),
}
ASIDE = {"en": 2, "zh": 1}
"""Passages about other things, next to the one with the answer."""


def units(seed: int) -> list[Unit]:
    """Every fact in each phrasing of its table, open and with choices; every one-hop question of the search world under its passages."""
    reading = [
        [_reading(cluster, asked, dice(seed, "reading", cluster.name, asked.name))]
        for cluster in clusters()
        for asked in ONE_HOP[cluster.language]
    ]
    return reading + [
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


def _reading(cluster: Cluster, asked: Asked, rng: Random) -> Item:
    """A question under a few passages of its cluster, one of which holds the answer."""
    answer, wanted = cluster.facts[asked.fact], cluster.passages[asked.subject]
    others = [passage for passage in cluster.passages.values() if passage is not wanted]
    shown = [wanted, *rng.sample(others, ASIDE[cluster.language])]
    rng.shuffle(shown)
    stem = asked.text.format(**cluster.facts)
    briefly = rng.random() < BRIEF_SHARE
    sentence = next(part for part in re.split(r"(?<=[.。])\s*", wanted.text) if answer in part)
    return Item(
        key=f"{cluster.name}-{asked.name}",
        task="knowledge",
        group=f"search-{cluster.name}",
        category="reading",
        language=cluster.language,
        form="reading",
        question="\n\n".join([*(passage.text for passage in shown), stem + BRIEFLY[cluster.language] * briefly]),
        thought=rng.choice(QUOTED[cluster.language]).format(sentence=sentence),
        reply=answer if briefly else sentence,
        answer=answer,
        meta={"answer_type": "contains", "stem": stem, "aliases": aliases(answer, asked.fact), "passages": [wanted.id]},
    )
