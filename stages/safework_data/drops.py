"""What did not make it, by name: every dropped row is written down with its reason, and the first few of each reason are shown."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from safework_cli.rows import Row

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
        fault: why the source could not make a sound row of its record; such a row is dropped by the first check.
    """

    row: Row
    subset: str
    source: str
    split_already: bool = False
    fault: str | None = None


class Drop(NamedTuple):
    """One dropped row. ``detail`` says what exactly; ``suite`` names the evaluation set that a contaminated row holds."""

    id: str
    source: str
    subset: str
    reason: str
    detail: str = ""
    suite: str = ""


class Example(NamedTuple):
    """What the data card shows of a drop. The text is untrusted: it may be harmful, and it may be Markdown."""

    id: str
    detail: str
    excerpt: str


class Drops:
    """Collects dropped rows."""

    def __init__(self) -> None:
        self.all: list[Drop] = []
        self.examples: dict[str, list[Example]] = {}

    def add(self, candidate: Candidate, reason: str, detail: str = "", suite: str = "") -> None:
        """Drops a row for a reason."""
        row = candidate.row
        self.all.append(Drop(row.id, candidate.source, candidate.subset, reason, detail, suite))
        shown = self.examples.setdefault(reason, [])
        if len(shown) < SHOWN_EXAMPLES:
            text = next((m["content"] for m in reversed(row.messages) if m["role"] == "user"), "")
            shown.append(Example(row.id, detail, text[:EXCERPT_CHARACTERS]))

    def counts(self) -> dict[str, int]:
        """Reason → rows, the most frequent first."""
        return dict(Counter(drop.reason for drop in self.all).most_common())

    def biggest(self, subset: str | None = None, show: int = 3) -> str:
        """The most frequent reasons (of one subset) in words: "near duplicate 12, no reply 3"."""
        counted = Counter(drop.reason for drop in self.all if subset in (None, drop.subset))
        return ", ".join(f"{reason} {count:,}" for reason, count in counted.most_common(show))

    def write(self, path: Path) -> None:
        """Writes one JSON object a dropped row; its text stays out."""
        with path.open("w", encoding="utf-8") as handle:
            for drop in self.all:
                record = {key: value for key, value in drop._asdict().items() if value}
                # ASCII: an id may hold a lone surrogate, which no UTF-8 file can
                handle.write(json.dumps(record) + "\n")
