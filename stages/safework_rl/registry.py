"""Losses, rewards and objectives by name: the groups of entry points, and what identifies another package's entry. Torch-free."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from safework_cli.core.artifacts.manifest import canonical_digest
from safework_cli.core.errors import nearest
from safework_cli.core.registry import entries
from safework_cli.core.settings import Settings

LOSSES, REWARDS, OBJECTIVES = "safework.losses", "safework.rewards", "safework.objectives"
"""A loss: a class derived from ``losses.contract.Loss``. A reward: a function of (rows, replies) that returns a score in [0, 1] for each
reply, or None for a reply that it cannot score. An objective: a function of (config, rewards) that returns an
``objectives.Objective``; its attribute ``Settings``, where it has one, is the block that ``config.objective_settings`` then holds."""


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


def settings_of(block: type[Settings], given: Any, key: str, owner: str) -> Settings:
    """The settings of a registered loss or objective.

    Args:
        block: the settings that it declares.
        given: what the recipe holds; where it is a block already, what was given in it; None for the defaults, in place of an earlier
            recipe's settings of another owner.
        key: of the setting that holds the block ("loss").
        owner: what declares it ("algorithm=cpgd"), for the message.

    Raises:
        ValueError: a key that the block has not, with the nearest one; or what pydantic says of a value.
    """
    values = given.model_dump(include=given.model_fields_set) if isinstance(given, Settings) else given
    if values is None:
        values = {}
    if isinstance(values, dict):
        for name in values.keys() - block.model_fields.keys():
            has = ", ".join(block.model_fields) or "none"
            raise ValueError(f"{owner} has no setting {key}.{name}{nearest(str(name), block.model_fields)} (it has {has})")
    return block.model_validate(values)


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
