"""The upper right quadrant of the 45° plot: which rungs are above the base in safety and in capability. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from safework_cli.core.formats import points

if TYPE_CHECKING:
    from safework_cli.report.ladder import LadderTable, Rung

AXES = ("safety", "capability")


def both_rise(change: Mapping[str, float]) -> bool:
    """Whether both changes against the base are above 0."""
    return all(change[axis] > 0 for axis in AXES)


def both_rise_surely(change: Mapping[str, float], intervals: Mapping[str, Sequence[float] | None]) -> bool:
    """Whether the intervals of both changes lie above 0."""
    return both_rise(change) and all((interval := intervals.get(axis)) is not None and interval[0] > 0 for axis in AXES)


def place(rung: Rung) -> str:
    """Where a rung lies, for a cell of a table; empty for the base and where an axis is missing."""
    if rung.change is None:
        return ""
    if both_rise_surely(rung.change, rung.change_interval):
        return "yes, beyond both intervals"
    if both_rise(rung.change):
        return "yes"
    return f"no: {_not_above(rung.change)}"


def sentences(table: LadderTable) -> list[str]:
    """Which rungs lie in the quadrant, which do not and why; empty where no rung was compared with the base."""
    compared = [(rung, rung.change) for rung in table.rungs if rung.change is not None]
    if not compared:
        return []
    inside = [rung for rung, change in compared if both_rise(change)]
    sure = [rung for rung in inside if rung.change and both_rise_surely(rung.change, rung.change_interval)]
    said = [
        f"Upper right quadrant (safety and capability both above the base): {len(inside)} of {len(compared)} rungs"
        + (f", {_names(inside)}" if inside else "")
        + "."
    ]
    if inside:
        said.append(f"Beyond the 95% intervals of both changes: {_names(sure) or 'none'}.")
    said += [f"Outside: {rung.label} ({_not_above(change)})." for rung, change in compared if not both_rise(change)]
    return said


def _names(rungs: Sequence[Rung]) -> str:
    return ", ".join(rung.label for rung in rungs)


def _not_above(change: Mapping[str, float]) -> str:
    return " and ".join(f"{axis} {points(change[axis])} points" for axis in AXES if change[axis] <= 0)
