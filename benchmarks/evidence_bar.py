"""A bar of the evidence, and what the records say about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evidence_records import Record

Runs = Mapping[str, Sequence[Record]]
Measure = Callable[[Sequence[Record]], "Measured"]


@dataclass(frozen=True)
class Measured:
    """What was measured for a bar.

    Attributes:
        value: None where the records do not hold it.
        holds: whether the value meets the bar.
    """

    value: float | None
    holds: bool
    n: int | None = None
    interval: tuple[float, float] | None = None
    note: str = ""


@dataclass(frozen=True)
class Bar:
    """A bar.

    Attributes:
        run: whose records it is about; empty for one that is measured elsewhere.
        bar: the bar in words.
        measure: from the run's records; called only where there is at least one.
    """

    name: str
    run: str
    bar: str
    measure: Measure


FINAL = "FINAL"
"""Stands for the model that a run's definition names as its final one."""
NOT_THERE = Measured(None, False, note="the records of this run do not hold it")


def judged(bar: Bar, runs: Runs, seeds: Sequence[int]) -> dict[str, Any]:
    """One line of ``evidence.py --json``.

    Args:
        seeds: that the bar's run is defined for.
    """
    records = runs.get(bar.run, ()) if bar.run else ()
    recorded = [record.seed for record in records]
    missing = [seed for seed in seeds if seed not in recorded]
    result = bar.measure(records) if records else Measured(None, False, note="not run" if bar.run else "measured outside this repository")
    notes = [result.note] if result.note else []
    by_seed = {record.seed: bar.measure([record]).value for record in records}
    if lacking := [seed for seed, value in by_seed.items() if value is None and result.value is not None]:
        notes.append(f"the records of seeds {', '.join(map(str, lacking))} do not hold it")
    if records and missing:
        notes.append(f"seeds {', '.join(map(str, missing))} not run")
    return {
        "name": bar.name,
        "value": None if result.value is None else round(result.value, 4),
        "bar": bar.bar,
        "holds": bool(records) and not missing and not lacking and result.value is not None and result.holds,
        "interval": None if result.interval is None else [round(end, 4) for end in result.interval],
        "n": result.n,
        "run": bar.run,
        "seeds": recorded,
        "by_seed": {seed: None if value is None else round(value, 4) for seed, value in by_seed.items()},
        "note": "; ".join(notes),
    }


def named(records: Sequence[Record], model: str) -> str:
    """A model of the records; for ``FINAL`` the one that they name."""
    return records[0].final if model == FINAL else model


def in_points(low: float | None, high: float | None) -> tuple[float, float] | None:
    """An interval of shares in percentage points; None where an end is missing."""
    return None if low is None or high is None else (100 * low, 100 * high)
