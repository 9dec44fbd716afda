"""What a thought does: cognitive operations, detected by their words, and how evenly a set of thoughts uses them. Torch-free and pure.

SafeWork-R1 validates its cold-start data by "cognitive diversity" and says no more (`docs/safeladder.md` 2). This stand-in tags a thought
with six operations: those that studies of self-improving reasoners count (Gandhi et al., arXiv 2503.01307: verification, backtracking,
subgoals), and what reasoning about safety needs (risk, people, reflection). It reports their histogram and entropy by task, and draws a
flatter sample.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from safework_cli.core.yaml_text import parse_yaml

T = TypeVar("T")

LEXICON = Path(__file__).with_name("operations.yaml")


def _patterns() -> dict[str, re.Pattern[str]]:
    found = {}
    for name, words in parse_yaml(LEXICON.read_text(encoding="utf-8"), str(LEXICON)).items():
        found[name] = re.compile(rf"\b(?:{'|'.join(words['en'])})\b|{'|'.join(words['zh'])}", re.IGNORECASE)
    return found


_FIND = _patterns()
OPERATIONS = tuple(_FIND)


def operations_of(thought: str) -> list[str]:
    """The operations that occur in a thought, in the order in which they are first met."""
    text = thought.replace("’", "'")
    met = [(match.start(), name) for name, pattern in _FIND.items() if (match := pattern.search(text))]
    return [name for _, name in sorted(met)]


def entropy(counts: Sequence[float]) -> float:
    """Shannon entropy of a histogram over its maximum, in [0, 1]: 1 where all are alike, 0 where one has everything or none has any."""
    whole = sum(counts)
    if whole <= 0 or len(counts) < 2:
        return 0.0
    return sum(c / whole * math.log(whole / c) for c in counts if c > 0) / math.log(len(counts))


def histogram(of: Sequence[Sequence[str]]) -> dict[str, int]:
    """How many thoughts hold each operation; every operation is named."""
    counted = Counter(name for found in of for name in found)
    return {name: counted[name] for name in OPERATIONS}


def balanced(items: Sequence[T], operations: Callable[[T], Sequence[str]], count: int, seed: int) -> list[T]:
    """``count`` items whose operations are spread as evenly as a greedy choice makes them, in their own order.

    Each draw takes the item that raises the entropy of the histogram most; ties fall by a seeded shuffle. Items without any operation come
    last. Items of one set of operations are alike to the choice, so that its cost is draws × sets (at most 64).
    """
    if count >= len(items):
        return list(items)
    places = list(range(len(items)))
    random.Random(f"{seed}/balanced").shuffle(places)
    piles: dict[frozenset[str], list[int]] = {}
    for place in places:
        piles.setdefault(frozenset(operations(items[place])), []).append(place)
    counts = dict.fromkeys(OPERATIONS, 0)
    chosen: list[int] = []
    while len(chosen) < count:
        best = max(piles, key=lambda pile: (bool(pile), _with(counts, pile), -piles[pile][-1]))
        chosen.append(piles[best].pop())
        if not piles[best]:
            del piles[best]
        for name in best:
            counts[name] += 1
    return [items[place] for place in sorted(chosen)]


def _with(counts: dict[str, int], more: frozenset[str]) -> float:
    return entropy([count + (name in more) for name, count in counts.items()])
