"""Which rows are held out. Groups move as a whole: rows of one group never stand on two sides."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence, Set

import numpy as np
from numpy.typing import NDArray

from safework_cli.core.artifacts.manifest import HELDOUT
from safework_data.build.config import BuildConfig
from safework_data.build.drops import Candidate
from safework_data.build.text import asked

_NO_LOT = 0


def with_side(candidate: Candidate) -> Candidate:
    """The row with its ``split``, in place, as far as it is known before lots are drawn."""
    if candidate.subset == HELDOUT:
        candidate.row.split = "test"
    elif not candidate.row.split:
        candidate.row.split = "train"
    return candidate


def held_out(candidate: Candidate, labelled: Set[str]) -> Candidate:
    """A row that the lot holds out, changed in place. A row that goes to ``heldout`` becomes a prompt: its reply was for training, and the
    same prompt may come from several subsets.

    Args:
        labelled: subsets whose held-out rows stay, as split "test": labelled replies are not prompts to ask a policy.
    """
    candidate.row.split = "test"
    if candidate.subset not in labelled:
        candidate.subset = HELDOUT
        candidate.row.messages = asked(candidate.row)
    return candidate


def is_held_out(candidate: Candidate) -> bool:
    """Whether a row is for evaluation: of the subset ``heldout``, or of a subset's test split."""
    return candidate.side == "test"


class HoldOut:
    """Draws which groups of each source are held out. It is given every row's rank once, in order (``note``).

    Args:
        share: of each source's groups, in [0, 1); above 0 at least one group goes and one stays.
        seed: picks the groups. A group is picked by its name, so that another row in a file does not move all the others.
    """

    def __init__(self, share: float, seed: int):
        self.share, self.seed = share, seed
        self._ranks = array("Q")
        self._of_source: dict[str, list[slice]] = {}

    @classmethod
    def of(cls, config: BuildConfig) -> HoldOut:
        """As the settings say."""
        return cls(config.heldout, config.seed)

    def rank(self, candidate: Candidate) -> int | None:
        """By what a row's group is picked; None where no lot is drawn for it."""
        if self.share > 0 and not candidate.split_already and not is_held_out(candidate):
            return self._rank(candidate.row.group)
        return None

    def note(self, source: str, ranks: Sequence[int | None]) -> None:
        """Takes the ranks of the rows that come next."""
        if self.share > 0:
            self._of_source.setdefault(source, []).append(slice(len(self._ranks), len(self._ranks) + len(ranks)))
            self._ranks.extend(rank or _NO_LOT for rank in ranks)

    def moved(self) -> NDArray[np.int64]:
        """The places of the rows that are held out, in order, when all ranks are known."""
        rank_N = np.frombuffer(self._ranks, dtype=np.uint64) if self._ranks else np.zeros(0, dtype=np.uint64)
        chosen: list[NDArray[np.uint64]] = [np.zeros(0, dtype=np.uint64)]
        for parts in self._of_source.values():
            groups = np.unique(np.concatenate([rank_N[part] for part in parts]))  # sorted: the lowest ranks go
            groups = groups[groups != _NO_LOT]
            chosen.append(groups[: min(max(1, round(self.share * len(groups))), max(0, len(groups) - 1))])
        return np.flatnonzero(np.isin(rank_N, np.concatenate(chosen)))

    def _rank(self, group: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.seed}\0{group}".encode()).digest()[:8], "big")
