"""Near duplicates: rows whose user turns *and* replies are nearly those of an earlier row that stays.

MinHash proposes the rows to be compared. It is rensa's, weighed against datasketch (`benchmarks/data_build.py` compares this with a script
that uses the latter). The bands of its signatures are compared by sorting numbers, 160 bytes a row, in place of an index of either library
that holds every row.

An instruction that all rows begin with puts all of them into common bands, and comparing each with each would take hours. So a row is
compared only with rows that it must have a rare run of words in common with, on the side of the prompts or on that of the replies: what two
sets share at a given similarity cannot all be among their most frequent members (prefix filtering: Chaudhuri, Ganti and Kaushik, ICDE
2006; the lengths are those of Xiao, Wang, Lin and Yu, WWW 2008). This leaves out no pair that is similar enough. Each of the others is
confirmed by the exact Jaccard similarity, so that nothing is dropped by estimate.

Shapes: N rows, K bands, n members of one set.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from safework_cli.data.row import Row
from safework_data.build.traits import BANDS, Traits, shingles_of

MOST_LOOKED_AT = 1000
"""Places that are looked up for one row at most. Only sets in which every member is frequent reach it: replies put together from a few
dozen phrases, say. Those that share the rarest members come first; a copy beyond them would stay."""
_ROUNDING = 1e-9
"""Of a product of a threshold and a length, which may come out just above the whole number that it is."""


class NearCopies:
    """Finds near duplicates among rows: ``add`` is given all of ``places`` in order, then ``found`` returns those that go.

    User turns and replies must both agree: a stock refusal under another question is another lesson, and so is another reply to the same
    question. Only rows that share subset, side of the split, task, gold and images can be copies.

    Args:
        traits: of all rows.
        threshold: Jaccard similarity of three-word runs, in (0, 1].

    Attributes:
        places: of the rows that may have a copy.
        compared: pairs whose similarity was computed, once ``found`` was called.
        capped: rows for which not all was looked up that might have been a copy.
    """

    def __init__(self, traits: Traits, threshold: float):
        self.threshold = threshold
        self.places = in_shared_bands(traits.bands())
        self.compared = self.capped = 0
        self._bucket_N = traits.column("bucket")
        self._added: list[int] = []
        self._asked: list[NDArray[np.uint64]] = []
        self._replied: list[NDArray[np.uint64]] = []

    def add(self, place: int, row: Row) -> None:
        """Takes the texts of the row at a place as numbers, 8 bytes for each three-word run."""
        if place in self.places:
            self._added.append(place)
            bucket = self._bucket_N[place]  # mixed in: rows of two buckets have nothing in common then
            self._asked.append(numbered(shingles_of(row, "user")) ^ bucket)
            self._replied.append(numbered(shingles_of(row, "assistant")) ^ bucket)

    def found(self) -> dict[int, int]:
        """Place → place of the earlier row that it nearly repeats and that stays."""
        asked, replied = Side(self._asked, self.threshold), Side(self._replied, self.threshold)
        self._asked, self._replied = [], []
        copy_of: dict[int, int] = {}
        for number, place in enumerate(self._added):
            original = self._original(number, asked, replied)
            if original is None:
                asked.keep(number)
                replied.keep(number)
            else:
                copy_of[place] = self._added[original]
        return copy_of

    def _original(self, number: int, asked: Side, replied: Side) -> int | None:
        """The number of the first row that stayed and that this one nearly repeats."""
        fewer, more = sorted((asked, replied), key=lambda side: side.count(number))
        others, is_all = fewer.candidates(number, MOST_LOOKED_AT)
        self.compared += len(others)
        for side in (more, fewer):  # the one that has not sorted out any yet goes first
            others = side.similar(number, others)
        self.capped += not (is_all or others)
        return others[0] if others else None


class Side:
    """The sets of one side, user turns or replies, and those of them that stay, by their rare members.

    Args:
        sets: one array of distinct numbers for each row, none of them empty.
        threshold: Jaccard similarity, in (0, 1].
    """

    def __init__(self, sets: list[NDArray[np.uint64]], threshold: float):
        self.threshold = threshold
        ranked, self._single = by_rarity(sets)
        self._sets = ranked
        self._sizes = [len(each) for each in ranked]
        # member → numbers of the rows that stay and have it among the first of their members: the few that are enough to be found by a
        # set of at least their length, and the more that it takes to be found by a shorter one
        self._few: dict[int, list[int]] = {}
        self._many: dict[int, list[int]] = {}

    def _first(self, number: int, *, by_longer: bool) -> list[int]:
        """The members of which a similar set must share one, rarest first, without those that no other row has.

        Two sets x and y of similarity t share at least t / (1 + t) · (|x| + |y|) members: t · |x|, and 2t / (1 + t) · |x| where y is no
        shorter. Of x, all but so many members, and one more, hold a common one.
        """
        size = self._sizes[number]
        share = 2 * self.threshold / (1 + self.threshold) if by_longer else self.threshold
        first = self._sets[number][: size - math.ceil(share * size - _ROUNDING) + 1]
        return first[np.searchsorted(first, self._single) :].tolist()

    def _lists(self, number: int) -> list[tuple[list[int], bool]]:
        """Rows that stay and share a rare member, member by member, and whether they are the ones that are no longer than this row."""
        shorter = [(self._few[member], True) for member in self._first(number, by_longer=False) if member in self._few]
        return shorter + [(self._many[member], False) for member in self._first(number, by_longer=True) if member in self._many]

    def count(self, number: int) -> int:
        """How many entries ``candidates`` would look at, if it looked at all."""
        return sum(len(others) for others, _ in self._lists(number))

    def candidates(self, number: int, most: int) -> tuple[list[int], bool]:
        """Rows that stay and may be similar, in order, and whether these are all of them.

        Args:
            most: entries to look at.
        """
        size = self._sizes[number]
        least, longest = self.threshold * size - _ROUNDING, size / self.threshold + _ROUNDING
        found: set[int] = set()
        looked_at = 0
        # rarest members first, whichever of the two ways they are found by
        for others, are_shorter in sorted(self._lists(number), key=lambda each: len(each[0])):
            for other in others[: most - looked_at]:
                theirs = self._sizes[other]
                if least <= theirs <= size if are_shorter else size < theirs <= longest:
                    found.add(other)
            looked_at += len(others)
            if looked_at > most:
                return sorted(found), False
        return sorted(found), True

    def similar(self, number: int, others: Sequence[int]) -> list[int]:
        """Those of some rows whose sets are similar enough."""
        if not others:
            return []
        mine = self._sets[number]
        theirs = [self._sets[other] for other in others]
        sizes = np.array([len(each) for each in theirs])
        flat = np.concatenate(theirs)
        is_mine = mine[np.minimum(np.searchsorted(mine, flat), len(mine) - 1)] == flat
        both = np.add.reduceat(is_mine.astype(np.int64), np.r_[0, np.cumsum(sizes)[:-1]])
        enough = both / (len(mine) + sizes - both) >= self.threshold
        return [other for other, so in zip(others, enough.tolist(), strict=True) if so]

    def keep(self, number: int) -> None:
        """Notes that a row stays: those that follow may be copies of it."""
        for index, by_longer in ((self._few, True), (self._many, False)):
            for member in self._first(number, by_longer=by_longer):
                index.setdefault(member, []).append(number)


def by_rarity(sets: Iterable[NDArray[np.uint64]]) -> tuple[list[NDArray[np.uint32]], int]:
    """Sets with their members numbered from the rarest to the most frequent, in this order; and how many of the numbers are of members
    that only one set has. Members that are equally frequent are ordered by what they are, so that the order of the sets does not count."""
    sets = list(sets)
    members, counts = np.unique(np.concatenate(sets), return_counts=True) if sets else (np.zeros(0, np.uint64), np.zeros(0, np.int64))
    rank = np.empty(len(members), dtype=np.uint32)
    rank[np.argsort(counts, kind="stable")] = np.arange(len(members), dtype=np.uint32)
    return [np.sort(rank[np.searchsorted(members, each)]) for each in sets], int((counts == 1).sum())


def numbered(shingles: Iterable[str]) -> NDArray[np.uint64]:
    """A 64-bit digest of each text: the same in every process, which ``hash`` is not."""
    return np.frombuffer(
        b"".join(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in shingles), dtype=np.uint64
    )


def in_shared_bands(bands_NK: NDArray[np.uint64]) -> frozenset[int]:
    """Places of the rows that share a band with some other row."""
    shares_N = np.zeros(len(bands_NK), dtype=bool)
    for band in range(BANDS if len(bands_NK) else 0):
        column_N = bands_NK[:, band]
        order = np.argsort(column_N, kind="stable")
        same = column_N[order[1:]] == column_N[order[:-1]]
        shares_N[order[1:][same]] = True
        shares_N[order[:-1][same]] = True
    return frozenset(np.flatnonzero(shares_N).tolist())
