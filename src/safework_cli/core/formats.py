"""Numbers as people read them: sizes, shares, intervals, changes, durations. The only place that formats them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

NOTHING = "–"
"""In place of a number that was not measured."""


def size(count: float | None) -> str:
    """Bytes in the largest binary unit that leaves at least 1."""
    if count is None:
        return "unknown"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds in two units: ``3 min 20 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def percent(value: float | None, n: int | None = None) -> str:
    """A share, with one decimal.

    Args:
        n: the number of samples; below 200 the decimal would be noise and is left out. Where not given, it stays.
    """
    return NOTHING if value is None else f"{100 * value:.{1 if n is None or n >= 200 else 0}f}%"


def points(value: float) -> str:
    """A change in percentage points, signed."""
    return f"{100 * value:+.1f}".replace("-", "−")


def percent_interval(interval: Sequence[float] | None) -> str:
    """Both ends of an interval of a share, in percent."""
    return NOTHING if interval is None else f"{100 * interval[0]:.1f} – {100 * interval[1]:.1f}"


def interval(bounds: Sequence[float] | None) -> str:
    """Both ends of an interval, with three decimals."""
    return NOTHING if bounds is None else f"{bounds[0]:.3f} – {bounds[1]:.3f}"


def plain(value: Any) -> str:
    """A setting or metric in a few characters."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(plain(item) for item in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items()) or "none"
    return str(value)


def counts(value: Any) -> str:
    """A number of things, or several by name: ``1,253``, ``train 1,253, test 80``."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {counts(item)}" for key, item in value.items()) or "none"
    return f"{value:,}" if isinstance(value, int) else plain(value)


def age(seconds: float) -> str:
    """How long ago something was, in one unit: ``3 min``."""
    for limit, unit, step in ((60, "s", 1), (3600, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{max(seconds, 0) // step:.0f} {unit}"
    return f"{seconds // 86_400:.0f} days"
