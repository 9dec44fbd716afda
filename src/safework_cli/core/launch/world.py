"""Which of a run's processes this one is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class World:
    """A process among those of its run.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        local_rank: its number on its node.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes the result and the run's records."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """The part of ``count`` items that is this process's: consecutive ones, as many as the others' or one more."""
        whole, rest = divmod(count, self.size)
        start = self.rank * whole + min(self.rank, rest)
        return slice(start, start + whole + (self.rank < rest))
