"""How far the confidence of search episodes can be relied on: what an episode is measured by. Pure.

The measures are those of the search stage's constraint (`docs/safeladder.md` 6): an episode is reliable where it keeps the format and is
certain exactly where it is right.
"""

from __future__ import annotations

from dataclasses import dataclass

AUROC, SEARCHES = "auroc", "searches"
OF_EPISODES = ("reliability", "true_certain", "false_certain", "certain", "answered")
"""Shares of the scored episodes."""
SEARCH_MEASURES = (*OF_EPISODES, AUROC, SEARCHES)
"""
reliability    certain where right, uncertain where wrong, and in the format
true_certain   certain and right
false_certain  certain and wrong: what misleads
certain        certain
answered       ended in an answer
auroc          the chance that a right answer has a higher confidence than a wrong one, over the episodes that ended in an answer
searches       searches per question
"""
FEWER_IS_BETTER = ("false_certain", SEARCHES)


@dataclass(frozen=True, slots=True)
class JudgedEpisode:
    """What the measures are computed from.

    Attributes:
        right: the answer is.
        confidence: 0 to 10; None if the episode ended without an answer.
        group: of the question.
    """

    right: bool
    confidence: int | None
    well_formed: bool
    searches: int
    group: str = ""

    def sure(self, certain: int) -> bool:
        """Whether the confidence is at least ``certain``."""
        return self.confidence is not None and self.confidence >= certain

    def values(self, certain: int) -> dict[str, float]:
        """Measure → value, of all measures but AUROC.

        Args:
            certain: confidence from which an answer counts as certain.
        """
        sure = self.sure(certain)
        return {
            "reliability": float(self.well_formed and self.right == sure),
            "true_certain": float(sure and self.right),
            "false_certain": float(sure and not self.right),
            "certain": float(sure),
            "answered": float(self.confidence is not None),
            SEARCHES: float(self.searches),
        }
