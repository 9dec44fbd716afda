"""Exact and near duplicates. Subsets are looked at one by one: the same prompt may well be in two of them.

MinHash is rensa's, weighed against datasketch (`benchmarks/data_build.py` compares this with a script that uses the latter). The bands of
its signatures are compared by sorting numbers, 160 bytes a row, in place of an index of either library that holds every row.
Every pair that shares a band is confirmed by the exact Jaccard similarity, so that nothing is dropped by estimate.

Shapes: N rows, K bands.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from safework_cli.data.row import Row
from safework_data.build.traits import BANDS, Traits, shingles_of

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


class NearCopies:
    """Finds near duplicates while rows go by in order: a row whose user turns *and* replies are nearly those of an earlier one that stayed.

    Both must agree: a stock refusal under another question is another lesson, and so is another reply to the same question. Only rows that
    share subset, task, gold and images can be copies.

    Args:
        traits: of all rows.
        threshold: Jaccard similarity of three-word runs, in (0, 1].
    """

    def __init__(self, traits: Traits, threshold: float):
        self.threshold = threshold
        self._runs = shared_bands(traits.bands())
        self._kept: dict[int, list[int]] = defaultdict(list)
        self._texts: dict[int, tuple[set[str], set[str]]] = {}

    @property
    def places(self) -> set[int]:
        """Rows that may have a copy: all that ``find`` has to be asked about, in order."""
        return set(self._runs)

    def find(self, place: int, row: Row) -> int | None:
        """The place of the earlier row that this one nearly repeats; None where it stays, and is compared with those that follow."""
        runs = self._runs.get(place)
        if runs is None:
            return None
        asked, replied = shingles_of(row, "user"), shingles_of(row, "assistant")
        earlier = sorted({other for run in runs for other in self._kept[run]})
        for other in earlier:
            their_asked, their_replied = self._texts[other]
            if jaccard(asked, their_asked) >= self.threshold and jaccard(replied, their_replied) >= self.threshold:
                return other
        self._texts[place] = (asked, replied)
        for run in runs:
            self._kept[run].append(place)
        return None


def shared_bands(bands_NK: NDArray[np.uint64]) -> dict[int, list[int]]:
    """Place → the numbers of the bands that it shares with some other row; rows that share none are left out."""
    found: dict[int, list[int]] = defaultdict(list)
    number = 0
    for band in range(BANDS if len(bands_NK) else 0):
        column_N = bands_NK[:, band]
        order = np.argsort(column_N, kind="stable")
        same = column_N[order[1:]] == column_N[order[:-1]]
        shares = np.r_[same, False] | np.r_[False, same]
        run_N = number + np.cumsum(np.r_[True, ~same])
        number = int(run_N[-1]) + 1
        for place, run in zip(order[shares].tolist(), run_N[shares].tolist(), strict=True):
            found[place].append(run)
    return dict(found)


def jaccard(a: set[str], b: set[str]) -> float:
    """|a ∩ b| / |a ∪ b|; 1 for two empty sets."""
    if not a and not b:
        return 1.0
    both = len(a & b)
    return both / (len(a) + len(b) - both)
