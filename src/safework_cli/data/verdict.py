"""The word of a reply that states the decision ("Yes", "No"): where it is, what the words mean, what comes before it. Torch-free.

A row carries the mark as ``meta.verdict = [start, end]``, character offsets into the content of its last assistant message; or a pattern
with one group finds the word. Replies are never changed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from safework_cli.core.errors import InputError
from safework_cli.data.reply import language_of
from safework_cli.data.row import Message, Row

KEY = "verdict"
FINAL_MARKS = "?!.？！。…"
COMMON = 0.9
"""Share of a language's marked rows that must have the same text before the verdict, for that text to be used with other prompts."""

Words = dict[str, dict[str, bool]]
"""Language → word → whether it means harmful."""


@dataclass(frozen=True, slots=True)
class Mark:
    """The word that states a reply's decision.

    Attributes:
        start, end: character offsets into the last assistant message; the word is ``content[start:end]``.
        word: the text itself.
        language: of the row, "en" or "zh".
    """

    start: int
    end: int
    word: str
    language: str


def mark_of(row: Row, pattern: str | None = None) -> Mark | None:
    """The mark of a row, or None where it has none.

    Args:
        pattern: a regular expression with one group, which is then used instead of ``meta.verdict``.

    Raises:
        InputError: ``meta.verdict`` does not name a word of the reply.
    """
    reply = row.reply
    if pattern is not None:
        match = None if reply is None else re.search(pattern, reply)
        span = None if match is None or match.start(1) == match.end(1) else match.span(1)
    elif (given := row.meta.get(KEY)) is None:
        span = None
    else:
        span = _checked(row, given)
    if span is None or reply is None:
        return None
    return Mark(*span, reply[span[0] : span[1]], language_of_row(row))


def language_of_row(row: Row) -> str:
    """The language that a row names, or that of its question."""
    return str(row.meta.get("language") or language_of(row.question))


def _checked(row: Row, given: object) -> tuple[int, int]:
    reply = row.reply or ""
    numbers = isinstance(given, list | tuple) and len(given) == 2 and all(type(one) is int for one in given)
    if not numbers or not 0 <= given[0] < given[1] <= len(reply):  # type: ignore[index]
        raise InputError(
            f"meta.verdict of row '{row.id}' is {str(given)[:40]}",
            f"it must be the start and the end of a word in the last assistant message, which has {len(reply)} characters",
            "correct the row, or find the word with verdict.pattern",
        )
    word = reply[given[0] : given[1]]  # type: ignore[index]
    if word != word.strip():
        what = f"meta.verdict of row '{row.id}' marks {word!r}"
        raise InputError(what, "the mark is the word without spaces around it", "correct the row")
    return given[0], given[1]  # type: ignore[index]


def marked(rows: Iterable[Row], pattern: str | None = None) -> list[tuple[Row, Mark]]:
    """The rows that carry a mark, with it."""
    return [(row, mark) for row in rows if (mark := mark_of(row, pattern)) is not None]


def verdict_words(marks: Sequence[tuple[Row, Mark]], positive: Sequence[str] = ()) -> Words:
    """What the words of marked rows mean: those on rows with ``harmful: true`` mean harmful, or those that are named.

    Args:
        positive: words that mean harmful, in place of the rows' own ``harmful``.

    Raises:
        InputError: no row is marked, or a language has not exactly one word of each meaning.
    """
    if not marks:
        raise InputError(
            "no training row carries a verdict mark",
            "verdict needs rows whose meta.verdict gives the place of the word that states the decision",
            "build the data with a source that marks it (verdict: REGEX), give verdict.pattern, or leave verdict out",
        )
    harmful = {(mark.language, mark.word) for row, mark in marks if (mark.word in positive if positive else row.harmful is True)}
    harmless = {(mark.language, mark.word) for row, mark in marks if (mark.word not in positive if positive else row.harmful is False)}
    if unknown := [word for word in positive if all(mark.word != word for _, mark in marks)]:
        has = f"the marked words are {_list(mark.word for _, mark in marks)}"
        raise InputError(f"verdict.positive names '{unknown[0]}', and no row is marked with it", has, "correct verdict.positive")
    if both := sorted(harmful & harmless):
        row = next(row for row, mark in marks if (mark.language, mark.word) == both[0] and row.harmful is False)
        raise InputError(
            f"the verdict '{both[0][1]}' is on harmful and on harmless rows, such as row '{row.id}'",
            "the same word would have to mean both",
            "correct these rows, or name the words that mean harmful: verdict.positive=[…]",
        )
    words: Words = {}
    for _, mark in marks:
        words.setdefault(mark.language, {})[mark.word] = (mark.language, mark.word) in harmful
    for language, meaning in words.items():
        if sorted(meaning.values()) != [False, True]:
            shown = ", ".join(f"'{word}' ({'harmful' if bad else 'harmless'})" for word, bad in sorted(meaning.items())[:6])
            raise InputError(
                f"the marked rows in '{language}' do not have one word for harmful and one for harmless",
                f"their words are {shown}" + (f" and {len(meaning) - 6} more" if len(meaning) > 6 else ""),
                "mark one word of each meaning in every language, and set harmful on the rows (or verdict.positive)",
            )
    return words


def _list(words: Iterable[str]) -> str:
    return ", ".join(f"'{word}'" for word in sorted(set(words))[:6])


# ---------------------------------------------------------------- what comes before the verdict


@dataclass(frozen=True, slots=True)
class Opening:
    """The text of a reply up to the verdict, as a function of the prompt.

    Attributes:
        before, after: around the prompt's text; ``after`` is None where the prompt does not occur.
        bare: the prompt's text is taken without its final mark.
        rest: what followed the word in one row: only the tokens before the word are used, and a whole reply is encoded to get them.
    """

    before: str
    after: str | None
    bare: bool
    rest: str

    def reply(self, question: str, word: str) -> tuple[str, tuple[int, int]]:
        """A reply to a question that states a word, and the offsets of the word."""
        text = self.before if self.after is None else self.before + _inside(question, self.bare) + self.after
        return text + word + self.rest, (len(text), len(text) + len(word))


def openings(marks: Sequence[tuple[Row, Mark]]) -> dict[str, Opening]:
    """Language → the text that nearly all of its marked rows have before the verdict. Languages without such a text are left out."""
    by_language: dict[str, list[tuple[Row, Mark]]] = {}
    for row, mark in marks:
        by_language.setdefault(mark.language, []).append((row, mark))
    found: dict[str, Opening] = {}
    for language, pairs in by_language.items():
        counts = Counter(form for row, mark in pairs for form in _forms(row, mark))
        form, count = counts.most_common(1)[0]
        if count >= COMMON * len(pairs):
            row, mark = pairs[0]
            found[language] = Opening(*form, (row.reply or "")[mark.end :])
    return found


def _forms(row: Row, mark: Mark) -> set[tuple[str, str | None, bool]]:
    """The ways to read a row's text before its verdict as an opening: with the prompt's text as a whole, and without its final mark. A
    prompt that ends in the full stop that the opening has after it can be read in both; the other rows decide."""
    text = (row.reply or "")[: mark.start]
    whole, bare = _inside(row.question, False), _inside(row.question, True)
    forms: set[tuple[str, str | None, bool]] = set()
    for inside, is_bare in ((whole, False), (bare, True)):
        if inside and inside in text:
            before, _, after = text.partition(inside)
            forms.add((before, after, is_bare))
    return forms or {(text, None, False)}


def _inside(question: str, bare: bool) -> str:
    text = question.strip()
    return text.rstrip(FINAL_MARKS).rstrip() if bare else text


def probe(row: Row, opening: Opening, words: Mapping[str, bool]) -> tuple[Row, Mark] | None:
    """A prompt as a marked row: with the opening's text and the word that its ``harmful`` calls for; None where that is not known."""
    if row.harmful is None:
        return None
    word = next(word for word, harmful in words.items() if harmful is row.harmful)
    reply, (start, end) = opening.reply(row.question, word)
    asked = replace(row, messages=[*row.prompt, Message(role="assistant", content=reply)])
    return asked, Mark(start, end, word, language_of_row(row))
