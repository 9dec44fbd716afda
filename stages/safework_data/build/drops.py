"""What did not make it, by name: every dropped row is written down with its reason, and the first few of each reason are shown."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from safework_cli.core.artifacts.manifest import HELDOUT
from safework_cli.data.row import Row

SHOWN_EXAMPLES = 3
EXCERPT_CHARACTERS = 240
DROPS = "drops.jsonl"


@dataclass(slots=True)
class Candidate:
    """A row on its way into the dataset.

    Attributes:
        row: the row.
        subset: where it goes.
        source: the source's name, which need not be ``row.source``.
        split_already: the source says itself what is held out.
        problem: why the source could not make a sound row of its record; such a row is dropped by the first check.
        remarks: what of the record was changed or left out, in words that rows share: they are counted.
        chosen: an answer that names one of the choices by its place: the number as it came, and how many choices there are.
    """

    row: Row
    subset: str
    source: str
    split_already: bool = False
    problem: str | None = None
    remarks: tuple[str, ...] = ()
    chosen: tuple[int, int] | None = None

    @property
    def side(self) -> str:
        """The side of the split that the row is on: "train" or "test"."""
        return "test" if self.subset == HELDOUT or self.row.split == "test" else "train"


class Example(NamedTuple):
    """What the data card shows of a drop. The text is untrusted: it may be harmful, and it may be Markdown."""

    id: str
    detail: str
    excerpt: str


class Drops:
    """Writes dropped rows down as they fall, one JSON object each without its text, and counts them.

    Args:
        path: the list.
    """

    def __init__(self, path: Path):
        self._handle = path.open("w", encoding="utf-8")
        self.by_reason: Counter[str] = Counter()
        self.by_suite: Counter[str] = Counter()
        self.examples: dict[str, list[Example]] = {}
        self._by_subset: Counter[tuple[str, str, str, str]] = Counter()

    def __len__(self) -> int:
        return self.by_reason.total()

    def add(self, candidate: Candidate, reason: str, detail: str = "", suite: str = "") -> None:
        """Drops a row for a reason. ``detail`` says what exactly; ``suite`` names the evaluation set that a contaminated row holds."""
        row = candidate.row
        record = {"id": row.id, "source": candidate.source, "subset": candidate.subset, "reason": reason, "detail": detail, "suite": suite}
        # ASCII: an id may hold a lone surrogate, which no UTF-8 file can
        self._handle.write(json.dumps({key: value for key, value in record.items() if value}) + "\n")
        self.by_reason[reason] += 1
        self._by_subset[candidate.subset, candidate.source, candidate.side, reason] += 1
        if suite:
            self.by_suite[suite] += 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < SHOWN_EXAMPLES:
            text = next((m["content"] for m in reversed(row.messages) if m["role"] == "user"), "")
            shown.append(Example(row.id, detail, text[:EXCERPT_CHARACTERS]))

    def counts(self, subset: str | None = None) -> dict[str, int]:
        """Reason → rows (of one subset), the most frequent first."""
        return dict((self.by_reason if subset is None else self._counted(subset)).most_common())

    @property
    def subsets(self) -> list[str]:
        """Subsets that lost rows."""
        return list(dict.fromkeys(subset for subset, _, _, _ in self._by_subset))

    def of_subset(self, subset: str) -> int:
        return sum(count for (name, _, _, _), count in self._by_subset.items() if name == subset)

    def biggest(self, subset: str | None = None, source: str | None = None, side: str | None = None, show: int = 3) -> str:
        """The most frequent reasons (of one subset, source, side of the split) in words: "near duplicate 12, no reply 3"."""
        return ", ".join(f"{reason} {count:,}" for reason, count in self._counted(subset, source, side).most_common(show))

    def most_frequent(self, subset: str | None = None, source: str | None = None, side: str | None = None) -> str:
        """The most frequent reason; empty where nothing was dropped."""
        return next((reason for reason, _ in self._counted(subset, source, side).most_common(1)), "")

    def _counted(self, subset: str | None, source: str | None = None, side: str | None = None) -> Counter[str]:
        counted: Counter[str] = Counter()
        for (of_subset, of_source, of_side, reason), count in self._by_subset.items():
            if subset in (None, of_subset) and source in (None, of_source) and side in (None, of_side):
                counted[reason] += count
        return counted

    def close(self) -> None:
        self._handle.close()
