"""Multiple choice: which letter a reply chose, read strictly."""

from __future__ import annotations

import re
from collections.abc import Sequence

from safework_cli.verifiers.contract import Exchange, Verdict
from safework_cli.verifiers.rules.text import last_boxed, tokens_of

LETTERS = "ABCDEFGHIJ"
_WRAP = r"[\s*_\"'“”`(（\[【$]*"
_END = r"(?=[\s*_\"'“”`)）\]】$.,;:，。；：、!！?？—-]|$|[\u4e00-\u9fff])"
_LETTER = rf"{_WRAP}([A-J]){_END}"
_EXPLICIT = re.compile(
    r"(?:\b(?i:answer|option|choice)\b[*_ ]*(?:\b(?i:is|was)\b|[:：])|答案[*_ ]*(?:应该是|应为|是|为|[:：])"
    rf"|(?<![不没])(?:应选|应该选|选择|选)[:：]?){_LETTER}"
)
_LEADING = re.compile(rf"^{_WRAP}([A-J])(?:[*_ ]*[)）\].。:：、]|[*_ ]*$|\s*\n)")
_LONE = re.compile(r"^[\s*_\"'`(（\[【$]*([A-Ja-j])[\s*_\"'`)）\]】$.。]*$")
_AND_ANOTHER = re.compile(r"^[\s*_)）\]】]*(?:or|and|and/or|,|/|&|、|，|和|或|与)[\s*_(（\[【]*(?:option\s+)?[A-J](?![A-Za-z])")
_ARTICLE = re.compile(r"^\s+(?!because|since|as\b|for\b)[a-z]")
_LISTED = re.compile(rf"(?:^|\n){_WRAP}([A-J])[*_ ]*[)）\].:：、]")


def chosen_letter(final: str, choices: Sequence[str]) -> str | None:
    r"""The letter that a final answer chose, or None where it chose none or more than one.

    Tried in this order, the first that speaks decides: ``\boxed{B}``; the last explicit statement ("Answer: B", "the answer is (B)",
    "答案是B", "选B"); a leading letter ("B. Paris"), unless several choices are listed; a lone letter; the full text of exactly one choice.

    Args:
        choices: the choices' texts in order; empty where unknown, then the letters A to J count and texts cannot be recognised.
    """
    valid = LETTERS[: len(choices)] if choices else LETTERS
    boxed = last_boxed(final)
    if boxed is not None:
        inner = re.sub(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", boxed)
        lone = _LONE.match(inner) or _LEADING.match(inner)
        return _checked(lone.group(1).upper(), valid) if lone else _by_text(inner, choices)
    explicit = [m for m in _EXPLICIT.finditer(final) if not (m.group(1) in "AI" and _ARTICLE.match(final[m.end() :]))]
    if explicit:
        last = explicit[-1]
        return None if _AND_ANOTHER.match(final[last.end() :]) else _checked(last.group(1), valid)
    lone = _LONE.match(final)
    if lone:
        return _checked(lone.group(1).upper(), valid)
    leading = _LEADING.match(final)
    if leading and len(set(_LISTED.findall(final))) <= 1 and not _AND_ANOTHER.match(final[leading.end(1) :]):
        return _checked(leading.group(1), valid)
    return None if leading else _by_text(final, choices)


def _checked(letter: str, valid: str) -> str | None:
    return letter if letter in valid else None


def _by_text(text: str, choices: Sequence[str]) -> str | None:
    """The letter of the one choice whose whole text is, or occurs in, the text."""
    have, options = tokens_of(text), [tokens_of(str(choice)) for choice in choices]
    same = [i for i, option in enumerate(options) if option and option == have]
    if not same:
        same = [i for i, option in enumerate(options) if option and _occurs(option, have)]
        # "New York City" contains "New York": the longer choice is meant where it swallows the shorter
        same = [i for i in same if not any(j != i and len(options[j]) > len(options[i]) and _occurs(options[i], options[j]) for j in same)]
    return LETTERS[same[0]] if len(same) == 1 else None


def _occurs(part: list[str], whole: list[str]) -> bool:
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


class ChoiceRule:
    """1 where the chosen letter is the gold letter, else 0. Labels: "correct", "wrong", "unparsed" (none, or ambiguous: score 0)."""

    name = "choice"
    version = 1

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        return [self._judge(e) for e in exchanges]

    def _judge(self, exchange: Exchange) -> Verdict:
        choices = list(exchange.meta.get("choices") or [])
        gold = (exchange.answer or "").strip().strip("().").upper()
        valid = LETTERS[: len(choices)] if choices else LETTERS
        if len(gold) != 1 or gold not in valid:
            return Verdict(None, error=f"the gold answer {exchange.answer!r} is not a letter among {valid[0]}–{valid[-1]}")
        chosen = chosen_letter(exchange.final, choices)
        if chosen is None:
            return Verdict(0.0, "unparsed")
        return Verdict(float(chosen == gold), "correct" if chosen == gold else "wrong")
