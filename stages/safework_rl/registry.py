"""Losses, rewards and objectives by name: the groups of entry points, and what identifies another package's entry. Torch-free."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from safework_cli.core.artifacts.manifest import canonical_digest
from safework_cli.core.errors import nearest
from safework_cli.core.registry import entries

LOSSES, REWARDS, OBJECTIVES = "safework.losses", "safework.rewards", "safework.objectives"
"""A loss: a class derived from ``losses.contract.Loss``. A reward: a function of (rows, replies) that returns a score in [0, 1] for each
reply, or None for a reply that it cannot score. An objective: a function of (config, rewards) that returns an ``objectives.Objective``."""


def check_name(group: str, name: str, what: str, without: Collection[str] = ()) -> str:
    """The name, where the group has it.

    Args:
        what: what the group holds, for the message ("loss").
        without: names that cannot be selected here.

    Raises:
        ValueError: it has not; the message gives the nearest name.
    """
    known = [entry for entry in entries(group) if entry not in without]
    if name not in known:
        raise ValueError(f"'{name}' is not a registered {what}{nearest(name, known)} (registered: {', '.join(known) or 'none'})")
    return name


def package_digests(named: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Digests of the packages that registered entries come from, by "GROUP:NAME": another version of one may compute something else.
    Ours are not among them: the stage's own version identifies them.

    Args:
        named: (group, name).
    """
    digests = {}
    for group, name in named:
        entry = entries(group).get(name)
        if entry is not None and entry.dist is not None and entry.dist.name != "safework":
            digests[f"{group.rpartition('.')[2]}:{name}"] = canonical_digest([entry.value, entry.dist.name, entry.dist.version])
    return digests
