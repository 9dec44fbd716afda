"""Which rows are held out. Groups move as a whole: rows of one group never stand on two sides."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Set

import numpy as np

from safework_cli.core.artifacts.manifest import HELDOUT
from safework_data.build.config import BuildConfig
from safework_data.build.drops import Candidate
from safework_data.build.text import asked


def is_held_out(candidate: Candidate) -> bool:
    """Whether a row is for evaluation: of the subset ``heldout``, or of a subset's test split."""
    return candidate.subset == HELDOUT or candidate.row.split == "test"


class HoldOut:
    """Holds out a share of each source's groups. It is told every row's rank once (``note``), and then moves rows (``place``), in any
    order.

    Args:
        share: of each source's groups, in [0, 1); above 0 at least one group goes and one stays.
        labelled: subsets whose held-out rows stay, as split "test": labelled replies are no prompts to ask a policy.
        seed: picks the groups. A group is picked by its name, so that another row in a file does not move all the others.
    """

    def __init__(self, share: float, labelled: Set[str], seed: int):
        self.share, self.labelled, self.seed = share, labelled, seed
        self._groups: dict[str, array[int]] = {}
        self._chosen: set[int] = set()

    @classmethod
    def of(cls, config: BuildConfig) -> HoldOut:
        """As the settings say."""
        return cls(config.heldout, set(config.require_label), config.seed)

    def rank(self, candidate: Candidate) -> int | None:
        """By what a row's group is picked; None where no lot is drawn for it."""
        if self.share > 0 and not candidate.split_already and not is_held_out(candidate):
            return self._rank(candidate.row.group)
        return None

    def note(self, source: str, ranks: Iterable[int | None]) -> None:
        """Takes the ranks of a source's rows."""
        self._groups.setdefault(source, array("Q")).extend(rank for rank in ranks if rank is not None)

    def choose(self) -> None:
        """Picks the groups, when all ranks are known."""
        self._chosen = self._choose()
        self._groups.clear()

    def place(self, candidate: Candidate) -> Candidate:
        """Gives the row its ``split``, in place. A row that goes to ``heldout`` becomes a prompt: its reply was for training, and the same
        prompt may come from several subsets."""
        row = candidate.row
        if self._chosen and not candidate.split_already and not is_held_out(candidate) and self._rank(row.group) in self._chosen:
            row.split = "test"
            if candidate.subset not in self.labelled:
                candidate.subset = HELDOUT
                row.messages = asked(row)
        elif candidate.subset == HELDOUT:
            row.split = "test"
        elif not row.split:
            row.split = "train"
        return candidate

    def _rank(self, group: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.seed}\0{group}".encode()).digest()[:8], "big")

    def _choose(self) -> set[int]:
        chosen: set[int] = set()
        for ranks in self._groups.values():
            groups = np.unique(np.frombuffer(ranks, dtype=np.uint64))  # sorted: the lowest ranks go
            count = min(max(1, round(self.share * len(groups))), len(groups) - 1)
            chosen.update(groups[:count].tolist())
        return chosen
