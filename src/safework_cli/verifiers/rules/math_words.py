r"""Words that compare or deny in a mathematical answer, as the relation that they say: "at least 3" is ``\ge 3`` and never 3."""

from __future__ import annotations

import re

from safework_cli.verifiers.rules.math_notation import balanced_end

_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|normal|tt|sf|sc|up)?|mathrm|mathbf|mathit|mbox|hbox)\s*\{")
_MORE = r"(?:more|greater|larger|higher|bigger|above|over|up)"
_LESS = r"(?:less|fewer|smaller|lower|below|under)"
_COMPARES = re.compile(
    r"(?<!\\)\b(?:not|never|except|excluding|but|other than|at least|at most|up to|more|greater|larger|higher|bigger|less|fewer|smaller"
    rf"|lower|exceed\w*)\b|n't\b|^\W*(?:above|over|below|under)\s|\b(?:or|and) (?:{_MORE}|{_LESS})\b|不等于|不是|大于|小于",
    re.IGNORECASE,
)
_BEFORE = (
    (r"\ge", rf"at least|no {_LESS} than|not {_LESS} than|{_MORE} than or equal to"),
    (r"\le", rf"at most|up to|no {_MORE} than|not {_MORE} than|{_LESS} than or equal to"),
    ("<", rf"{_LESS} than|below|under|小于"),
    (">", rf"{_MORE} than|above|over|exceeds|exceeding|大于"),
    (r"\ne", r"not equal to|not|(?:all|any|every)(?: of the)?(?: real)? numbers? (?:except|excluding|but|other than)(?: for)?|不等于|不是"),
)
_AFTER = ((r"\ge", rf"(?:or|and) {_MORE}"), (r"\le", rf"(?:or|and) {_LESS}"))
_DIFFERENCE = re.compile(
    r"(.*[\d}%)])\s+(?:more|fewer|less|greater|larger|higher|smaller|lower)((?:\s+(?!than\b)[A-Za-z]+)*)", re.IGNORECASE
)
NEXT_TO_NUMBER = re.compile(
    rf"\W*(?:[A-Za-z]+\s+){{0,4}}?(?:except|but|other than|at least|at most|(?:{_MORE}|{_LESS})\s+than)\s+\W{{0,3}}\d"
    rf"|\W*[$€£]?[-−]?\d[\d,.]*\s*(?:[A-Za-z]+\s+)?(?:or|and)\s+(?:{_MORE}|{_LESS})\b",
    re.IGNORECASE,
)
"""A statement that begins by a number which it compares or excludes."""


def in_signs(text: str) -> str | None:
    r"""A cleaned text with the sign of a relation for words that compare or deny; the text itself where there are none.

    "3 more apples" is a difference, and so 3 apples. None where such words are not understood.
    """
    plain = _without_fonts(text)
    if not _COMPARES.search(plain) or not re.search(r"\d|\\[A-Za-z]", plain):
        return text
    said = re.sub(r"\s+", " ", plain).strip(" .")
    remark = re.fullmatch(r"(.*[\d}%)][^()]*?)\s*\([^()]*[A-Za-z]{2}[^()]*\)", said)
    if remark and not _COMPARES.search(remark[1]):
        return remark[1]  # "5 (not 6)"
    for sign, words in _BEFORE:
        found = re.fullmatch(rf"(?:{words})\s*(.+)", said, re.IGNORECASE)
        if found and not _COMPARES.search(found[1]):
            return f"{sign} {found[1]}"
    for sign, words in _AFTER:
        found = re.fullmatch(rf"(.*[\d}}%)].*?)\s+(?:{words})(\s+[A-Za-z]+)?", said, re.IGNORECASE)
        if found and not _COMPARES.search(found[1]):
            return f"{sign} {found[1]}{found[2] or ''}"
    difference = _DIFFERENCE.fullmatch(said)
    return difference[1] + difference[2] if difference and not _COMPARES.search(difference[1] + difference[2]) else None


def _without_fonts(text: str) -> str:
    r"""A text with ``\text{…}`` opened."""
    parts, place = [], 0
    for match in _TEXT.finditer(text):
        end = balanced_end(text, match.end() - 1)
        if match.start() < place or end < 0:
            continue
        parts += [text[place : match.start()], " ", text[match.end() : end], " "]
        place = end + 1
    return "".join(parts) + text[place:]
