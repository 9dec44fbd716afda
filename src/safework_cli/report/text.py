"""Text of models and data sets on its way to a person: nothing invisible, nothing that acts, nothing without end."""

from __future__ import annotations

import unicodedata
from typing import Any

from safework_cli.core.terminal import visible

LONGEST = 3000
"""Characters of a reply that are shown."""

_MARKDOWN = set("\\`*_{}[]()<>#+-.!|~&@:/$'\"=^")


def escaped(text: str) -> str:
    """Text from outside as Markdown that shows it and does nothing: no markup, links, HTML, line breaks or invisible characters."""
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    if character in _MARKDOWN:
        return f"&#{ord(character)};"
    if character in "\n\r\t":
        return {"\n": "⏎", "\r": "␍", "\t": "␉"}[character]
    # Cc control, Cf format (bidirectional overrides, zero width), Cs surrogates, Zl and Zp line breaks that are not newlines
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return f"&#92;u{ord(character):04x}"
    return character


def shortened(text: str, limit: int = LONGEST) -> str:
    """Cuts a long text and says how much was cut."""
    return text if len(text) <= limit else f"{text[:limit]}\n… ({len(text) - limit:,} more characters)"


def percent(value: float, n: int) -> str:
    """A share with as many digits as its sample carries."""
    return f"{100 * value:.{1 if n >= 200 else 0}f}%"


def points(value: float) -> str:
    """A change in percentage points, signed."""
    return f"{100 * value:+.1f}".replace("-", "−")


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


__all__ = ["escaped", "percent", "plain", "points", "shortened", "visible"]
