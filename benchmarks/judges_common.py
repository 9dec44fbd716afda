"""What the subjects of ``judges.py`` share: a bar, and the tables of replies."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of the table.

    Attributes:
        name: what was measured.
        value: the figure, or None where it could not be measured (``note`` says why).
        bar: the condition: "≥ 0.97", "= 0", "reported".
        holds: whether the condition holds; False where the figure could not be measured.
        peer: the peer's figure in the same run, or "peer not given".
        note: counts, and what else a reader needs.
    """

    name: str
    value: float | None
    bar: str
    holds: bool
    peer: str = ""
    note: str = ""


def at_least(name: str, value: float, bar: float, *, peer: str = "", note: str = "") -> Bar:
    return Bar(name, value, f"≥ {bar:g}", value >= bar, peer, note)


def at_most(name: str, value: float, bar: float, *, peer: str = "", note: str = "") -> Bar:
    return Bar(name, value, f"≤ {bar:g}", value <= bar, peer, note)


def reported(name: str, value: float, *, peer: str = "", note: str = "") -> Bar:
    """A figure without a bar."""
    return Bar(name, value, "reported", True, peer, note)


def missing(name: str, bar: str, why: str) -> Bar:
    """A bar that could not be measured: it does not hold."""
    return Bar(name, None, bar, False, note=why)


def table(args: argparse.Namespace, name: str) -> list[dict[str, Any]] | None:
    """The records of a table in the folder of trials, or None where the folder or the table is missing."""
    path = Path(args.trials) / name if args.trials else None
    if path is None or not path.is_file():
        return None
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
