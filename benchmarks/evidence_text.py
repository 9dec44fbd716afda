"""Figures and tables of the evidence as text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from safework_cli.core.formats import points
from safework_cli.statistics.intervals import Estimate


def share(estimate: Estimate, *, interval: bool = True) -> str:
    """A share in per cent, with its interval."""
    value, low, high = estimate.value, estimate.low, estimate.high
    if value is None:
        return "–"
    return f"{100 * value:.0f} %" + ("" if low is None or high is None or not interval else f" ({100 * low:.0f}–{100 * high:.0f})")


def points_between(value: float | None, low: float | None, high: float | None) -> str:
    """A change in points, with its interval."""
    if value is None:
        return "–"
    return points(value) + ("" if low is None or high is None else f" ({points(low)} to {points(high)})")


def flat(measure: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The numbers of a measure by the path of their keys; a value with its n and interval is one of them."""
    if isinstance(measure.get("value"), int | float) and "n" in measure:
        interval = measure.get("interval")
        between = f" ({interval[0]:.3g}–{interval[1]:.3g})" if interval else ""
        rest = {key: value for key, value in measure.items() if key not in ("value", "n", "interval")}
        return {prefix or "value": f"{measure['value']:.3g}{between}, n = {measure['n']}"} | flat(rest, prefix)
    found: dict[str, str] = {}
    for key, value in measure.items():
        name = f"{prefix} {key}".strip().replace("_", " ")
        if isinstance(value, Mapping):
            found |= flat(value, name)
        elif isinstance(value, list):
            found |= flat({str(item.get("name", place)): item for place, item in enumerate(value) if isinstance(item, Mapping)}, name)
        else:
            found[name] = f"{value:.4g}" if isinstance(value, float) else str(value)
    return found


def lines(text: str) -> str:
    """A paragraph."""
    return textwrap.fill(text, width=100, break_long_words=False, break_on_hyphens=False) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    written = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in written) + "\n"
