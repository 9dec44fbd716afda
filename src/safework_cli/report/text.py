"""Text of models and data sets on its way to a person: nothing invisible, nothing that acts, nothing without end."""

from __future__ import annotations

import unicodedata

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
