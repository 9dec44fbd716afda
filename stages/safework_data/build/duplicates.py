"""Exact copies, and ids that come twice. Subsets are looked at one by one: the same prompt may well be in two of them. So are the two sides
of a split: a training row that repeats a held-out one is a leak, and goes as such (``batches.py``); the held-out row stays.

Near copies are found in ``near_duplicates.py``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from safework_data.build.traits import Traits

SHOWN_COPIES = 4


class Copy(NamedTuple):
    """Why a row goes: it is a copy of the first of ``others``, or all of these contradict each other."""

    reason: str
    others: tuple[int, ...]


def repeated_ids(traits: Traits) -> set[int]:
    """Places of rows whose id an earlier row has."""
    ids_N = traits.column("id")
    _, first = np.unique(ids_N, return_index=True)
    again = np.ones(len(ids_N), dtype=bool)
    again[first] = False
    return set(np.flatnonzero(again).tolist())


def exact_copies(traits: Traits, gone: set[int]) -> dict[int, Copy]:
    """Place → why, for every row that goes: the first of equal conversations stays, unless their gold answers, flags or labels contradict
    each other: then all go.

    Args:
        gone: places that are out already.
    """
    keys = np.stack([traits.column("exact"), traits.column("exact2")], 1)
    order = np.lexsort((np.arange(len(keys)), keys[:, 1], keys[:, 0]))
    sorted_N2 = keys[order]
    starts = np.flatnonzero(np.r_[True, (sorted_N2[1:] != sorted_N2[:-1]).any(1)]) if len(keys) else np.zeros(0, dtype=np.int64)
    ends = np.r_[starts[1:], len(keys)]
    found: dict[int, Copy] = {}
    several = np.flatnonzero(ends - starts > 1)
    golds = [traits.column(f"gold{number}") for number in range(4)]
    for run in several.tolist():
        places = [place for place in order[starts[run] : ends[run]].tolist() if place not in gone]
        if len(places) < 2:
            continue
        if any(len(set(column[places].tolist()) - {0}) > 1 for column in golds):
            copy = Copy("contradicting copies", tuple(places[:SHOWN_COPIES]))
            found.update(dict.fromkeys(places, copy))
        else:
            found.update(dict.fromkeys(places[1:], Copy("exact duplicate", (places[0],))))
    return found
