"""Which rows are held out. Groups move as a whole: rows of one group never stand on two sides."""

from __future__ import annotations

import hashlib
from collections import defaultdict

from safework_data.drops import Candidate, Drops
from safework_data.settings import HELDOUT


def is_held_out(candidate: Candidate) -> bool:
    """Whether a row is for evaluation: of the subset ``heldout``, or of a subset's test split."""
    return candidate.subset == HELDOUT or candidate.row.split == "test"


def hold_out(candidates: list[Candidate], share: float, labelled: set[str], seed: int) -> None:
    """Moves a share of each source's groups to the held-out side, in place; every row gets its ``split``.

    A row that goes to ``heldout`` becomes a prompt: its reply was for training, and the same prompt may come from several subsets.

    Args:
        share: of each source's groups, in [0, 1); above 0 at least one group goes and one stays.
        labelled: subsets whose held-out rows stay, as split "test": labelled replies are no prompts to ask a policy.
        seed: picks the groups. A group is picked by its name, so that another row in a file does not move all the others.
    """
    groups: dict[str, set[str]] = defaultdict(set)
    for candidate in candidates:
        if not candidate.split_already and not is_held_out(candidate):
            groups[candidate.source].add(candidate.row.group)
    chosen: set[str] = set()
    if share > 0:
        for names in groups.values():
            count = min(max(1, round(share * len(names))), len(names) - 1)
            chosen.update(sorted(names, key=lambda name: hashlib.sha256(f"{seed}\0{name}".encode()).digest())[:count])
    for candidate in candidates:
        if not candidate.split_already and candidate.row.group in chosen and not is_held_out(candidate):
            candidate.row.split = "test"
            if candidate.subset not in labelled:
                candidate.subset = HELDOUT
                candidate.row.messages = candidate.row.prompt
        elif candidate.subset == HELDOUT:
            candidate.row.split = "test"
        elif not candidate.row.split:
            candidate.row.split = "train"


def without_held_out_groups(candidates: list[Candidate], drops: Drops) -> list[Candidate]:
    """Drops training rows whose group is held out by some other source: what guards the split when sources overlap."""
    held = {candidate.row.group for candidate in candidates if is_held_out(candidate)}
    kept = []
    for candidate in candidates:
        if not is_held_out(candidate) and candidate.row.group in held:
            drops.add(candidate, "group is held out", candidate.row.group)
        else:
            kept.append(candidate)
    return kept
