"""How many tokens rows have, without a model: by the tokenizer's file, on a few of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CHARACTERS_PER_TOKEN = 4.0
"""Where a folder has no tokenizer.json."""
SAMPLED = 24
"""Texts that are encoded."""


def characters_per_token(folder: Path, texts: Sequence[str]) -> float:
    """Characters of a token in such texts, by a folder's own tokenizer."""
    file = folder / "tokenizer.json"
    if not file.exists() or not texts:
        return CHARACTERS_PER_TOKEN
    from tokenizers import Tokenizer

    sampled = texts[:: max(1, len(texts) // SAMPLED)][:SAMPLED]
    try:
        encoded = Tokenizer.from_file(str(file)).encode_batch(list(sampled), add_special_tokens=False)
    except Exception:  # whatever is wrong with the file, the run says it by name
        return CHARACTERS_PER_TOKEN
    return sum(map(len, sampled)) / max(1, sum(len(one.ids) for one in encoded))


@dataclass(frozen=True, slots=True)
class Passes:
    """Tokens of the forward passes of one process.

    Attributes:
        longest: of a row; largest: of a pass; per_step: of an update, on average.
    """

    longest: int
    largest: float
    per_step: float


def passes_of(lengths: Sequence[float], rows: int, passes: int, processes: int, *, padded: bool) -> Passes:
    """The passes that rows of these lengths make: each update takes rows at random and sorts them by length, as in training.

    Args:
        rows: of a pass.
        passes: of an update, in each process.
        padded: a pass is as wide as its longest row; without padding its rows follow each other.
    """
    drawn = list(lengths)
    random.Random(0).shuffle(drawn)
    size = rows * passes * processes
    drawn += drawn[: -len(drawn) % size] if len(drawn) >= size else []
    costs: list[float] = []
    for start in range(0, len(drawn), size):
        step = sorted(drawn[start : start + size], reverse=True)
        for first in range(0, len(step), rows):
            chunk = step[first : first + rows]
            costs.append(chunk[0] * len(chunk) if padded else sum(chunk))
    steps = max(1, -(-len(drawn) // size))
    return Passes(round(max(drawn, default=0)), max(costs, default=0.0), sum(costs) / steps / processes)
