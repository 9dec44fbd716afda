"""Questions under short passages: scenes with names, things and numbers drawn anew, so that only the passage holds the answer."""

from __future__ import annotations

import re
from typing import Any

from safework_data.starter.tables import Item, Unit, dice, load, upper_first

DRAWS = 40
"""Passages drawn for each scene, with one question each."""
BRIEFLY = " Reply with the answer only."


def units(seed: int) -> list[Unit]:
    """The scenes, each a group and a template of its own; its questions take turns."""
    parts = load("reading_en")
    return [[_item(scene, parts["pools"], draw, seed)] for scene in parts["scenes"] for draw in range(DRAWS)]


def _item(scene: dict[str, Any], pools: dict[str, list[str]], draw: int, seed: int) -> Item:
    rng = dice(seed, "scene", scene["id"], draw)
    slots = sorted(set(re.findall(r"{(\w+)}", " ".join(scene["text"]))))
    words = {pool: rng.sample(values, len(values)) for pool, values in sorted(pools.items())}
    values = {slot: words[slot.rstrip("0123456789")][int(slot[-1]) - 1] for slot in slots}
    sentences = [upper_first(_with_article(text.format(**values))) for text in scene["text"]]
    ask, answer, place = scene["asks"][draw % len(scene["asks"])]
    stem, answer = ask.format(**values), answer.format(**values)
    briefly = draw // len(scene["asks"]) % 2 == 0
    return Item(
        key=f"scene-{scene['id']}-{draw:02d}",
        task="knowledge",
        group=f"knowledge-scene-{scene['id']}",
        category="reading",
        language="en",
        form="scene",
        template=f"reading-scene-{scene['id']}",
        question=" ".join(sentences) + "\n\n" + stem + BRIEFLY * briefly,
        thought=sentences[place],
        reply=answer if briefly else sentences[place],
        answer=answer,
        meta={"answer_type": "contains", "stem": stem},
    )


def _with_article(text: str) -> str:
    """ "a" before a vowel becomes "an"."""
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
