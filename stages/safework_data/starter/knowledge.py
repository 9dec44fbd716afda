"""Short factual questions from fact tables, some with four choices from the same table, and questions under passages that answer them."""

from __future__ import annotations

import re
from random import Random
from typing import Any

from safework_data.starter import reading
from safework_data.starter.tables import BRIEF, Item, Options, Unit, dice, load, upper_first
from safework_data.starter.world import ONE_HOP, Asked, Cluster, aliases, clusters

BRIEFLY = {"en": " Reply with the answer only.", "zh": "简答。"}
BRIEF_SHARE = 0.5
"""Questions under passages that ask for the answer only; the others are answered with the sentence that holds it."""
DRAWS = 3
"""Of wrong options, for each fact and phrasing of the training side; each draw is asked in two orders."""
ASIDE = {"en": 1, "zh": 1}
"""Passages about other things, next to the one with the answer."""
ASKS = {"train": "ask", "dev": "ask_dev", "heldout": "ask_heldout"}


def units(seed: int) -> list[Unit]:
    """Every fact in each phrasing of its table, open and with choices; questions of the search world under its passages, and under short
    passages of scenes (``reading``)."""
    under_passages = [
        [_reading(cluster, asked, dice(seed, "reading", cluster.name, asked.name))]
        for cluster in clusters()
        for asked in ONE_HOP[cluster.language]
    ]
    facts = [
        unit
        for language in ("en", "zh")
        for table in load(f"knowledge_{language}")
        for number, key in enumerate(table["items"])
        for unit in _fact(table, number, key, language, seed)
    ]
    return under_passages + reading.units(seed) + facts


def _names(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _fact(table: dict[str, Any], number: int, key: str, language: str, seed: int) -> list[Unit]:
    """The questions about a fact; one with choices comes twice in training, with the same options in two orders."""
    fact = f"{table['name']}-{number:02d}"
    rng = dice(seed, "knowledge", fact)
    answer, *other_names = _names(table["items"][key])
    recall = upper_first(table["recall"].format(k=key, v=answer, av=f"{'an' if answer[0] in 'aeio' else 'a'} {answer}"))
    found: list[Unit] = []
    for side, asks in ASKS.items():
        for phrasing, frame in enumerate(table.get(asks, ())):
            question = upper_first(frame.format(k=key))
            name = f"{side}-{phrasing}"
            rest: dict[str, Any] = {
                "task": "knowledge",
                "group": f"knowledge-{fact}",
                "category": table["name"].removeprefix("zh-"),
                "language": language,
                "template": f"knowledge-{table['name']}-{name}",
                "side": side,
            }
            # a whole sentence is accepted only where the answer is a word of its own: "H" or "12" would be found by chance
            sentence = phrasing % 2 == 1 and len(answer) > (2 if language == "en" else 1) and not answer.isdigit()
            open_question = Item(
                key=f"{fact}-open-{name}",
                form="open",
                question=question if sentence else question + BRIEFLY[language],
                thought=recall,
                reply=recall if sentence else answer,
                answer=answer,
                meta={"answer_type": "contains" if sentence else "exact", "aliases": other_names},
                **rest,
            )
            found.append([open_question])
            for draw in range(DRAWS if side == "train" else 1):
                brief = dice(seed, "brief", fact, name, draw).random() < BRIEF
                options = Options(question, answer, _wrong(table, key, rng), lead=recall, brief=brief)
                keys = (f"{fact}-choice-{name}-{draw}{order}" for order in ("ab" if side == "train" else "a"))
                found.append([Item(key=copy, form="choice", options=options, **rest) for copy in keys])
    return found


def _wrong(table: dict[str, Any], key: str, rng: Random) -> list[str]:
    """Three wrong answers of the table."""
    right = _names(table["items"][key])
    values = table.get("distractors") or [_names(value)[0] for value in table["items"].values()]
    return rng.sample([value for value in dict.fromkeys(values) if value not in right], 3)


def _reading(cluster: Cluster, asked: Asked, rng: Random) -> Item:
    """A question under a few passages of its cluster, one of which holds the answer; the thought quotes the sentence that does."""
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
        form="world",
        template=f"reading-{cluster.language}-{asked.name}",
        side="train",
        question="\n\n".join([*(passage.text for passage in shown), stem + BRIEFLY[cluster.language] * briefly]),
        thought=sentence,
        reply=answer if briefly else sentence,
        answer=answer,
        meta={"answer_type": "contains", "stem": stem, "aliases": aliases(answer, asked.fact), "passages": [wanted.id]},
    )
