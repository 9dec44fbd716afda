"""Evaluation prompts inside training rows.

The rule is that of Tülu 3 (arXiv 2411.15124): a row holds a prompt when at least ``overlap`` of the prompt's words are in the row
within shared runs of ``ngram`` words. Their setting, and the default here, is 8 words and one half. A prompt shorter than one run
has no n-gram; it counts when a line of the row is that prompt, punctuation and case aside, with two words before it at most where it has
four or more ("Question: …", with its options on the lines below). What a row says that an attack is after (``meta.target``) is compared
as well, on both sides: a request is the same whatever context or wording it is put into.

A prompt with images is its images: a row that shows one of them holds the prompt, whatever it asks. The words of such a prompt are compared
with rows without images only, and only where they make a run: "How many are there?" about another image is another question.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Literal, NamedTuple

from safework_cli.data.image_content import image_keys
from safework_cli.data.images import TAG
from safework_cli.data.row import Row
from safework_data.build.text import asked, words

MOST_BEFORE, FEWEST_AFTER, LONG_WORD = 2, 4, 20
"""Words that may stand before a short prompt on its line, how many it must have then, and characters of such a word."""


class Leak(NamedTuple):
    """An evaluation prompt found in a row: where it comes from, and how much of it is there, in (0, 1]."""

    suite: str
    prompt_id: str
    share: float


class Known(NamedTuple):
    """Something by which a prompt is found in other rows.

    Attributes:
        kind: "words"; "words about images", which count in rows without images; or the key of an "image".
    """

    kind: Literal["words", "words about images", "image"]
    text: str


def known_by(row: Row) -> list[Known]:
    """That by which a prompt is found in other rows: the question in its authors' words, with the user's turns before it where it
    follows others ("And why?" would be in many rows), what it is after where that is named, and its images."""
    turns = [message["content"] for message in asked(row) if message["role"] == "user"]
    question = "\n".join([*turns[:-1], str(row.meta.get("stem") or turns[-1])]).replace(TAG, " ") if turns else ""
    found = [Known("words about images" if row.images else "words", question)]
    found += [Known("words", target) for target in _target(row)]
    return list(dict.fromkeys([*found, *(Known("image", key) for key in image_keys(row.images))]))


def _target(row: Row) -> list[str]:
    target = row.meta.get("target")
    return [target] if isinstance(target, str) else []


class LeakIndex:
    """Evaluation prompts, ready to be looked for.

    Args:
        ngram: words (characters for Chinese) in a run.
        overlap: share of a prompt's words from which a row counts as holding it.
    """

    def __init__(self, ngram: int, overlap: float):
        self.ngram, self.overlap = ngram, overlap
        self._prompts: list[tuple[str, str, int]] = []
        self._runs: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
        self._short: dict[tuple[str, ...], int] = {}
        self._known: dict[tuple[str, ...], int] = {}
        self._about_images: set[int] = set()
        self._images: dict[str, tuple[str, str]] = {}
        self._longest_short = 0

    @property
    def runs(self) -> int:
        """How many runs are held in memory."""
        return len(self._runs)

    def add(self, suite: str, prompt_id: str, known: Known) -> None:
        """Adds a prompt of a suite, once however often it comes; one of no words is left out, since it would be in every row."""
        kind, text = known
        if kind == "image":
            self._images.setdefault(text, (suite, prompt_id))
            return
        tokens = words(text)
        if not tokens:
            return
        number = self._known.setdefault(tokens, len(self._prompts))
        if number < len(self._prompts) and (kind != "words" or number not in self._about_images):
            return
        if kind == "words":
            self._about_images.discard(number)
            if len(tokens) < self.ngram:
                self._short.setdefault(tokens, number)
                self._longest_short = max(self._longest_short, len(text) + MOST_BEFORE * LONG_WORD)
        else:
            self._about_images.add(number)
        if number < len(self._prompts):  # known as a prompt with images, now as one without
            return
        self._prompts.append((suite, prompt_id, len(tokens)))
        for position, run in enumerate(self._all_runs(tokens)):
            self._runs[run].append((number, position))

    def find(self, row: Row) -> Leak | None:
        """The prompt of which the row holds the largest share; None where none reaches ``overlap``."""
        for key in image_keys(row.images) if self._images else ():
            if key in self._images:
                return Leak(*self._images[key], 1.0)
        if not self._prompts:
            return None
        apart = self._about_images if row.images else frozenset()
        covered: dict[int, set[int]] = defaultdict(set)
        for text in [*(message["content"] for message in row.messages), *_target(row)]:
            tokens = words(text)
            if (number := self._short_in(text, tokens)) is not None:
                suite, prompt_id, _ = self._prompts[number]
                return Leak(suite, prompt_id, 1.0)
            for run in filter(self._runs.__contains__, self._all_runs(tokens)):
                for number, position in self._runs[run]:
                    covered[number].update(range(position, position + self.ngram))
        best: Leak | None = None
        for number, positions in covered.items():
            suite, prompt_id, length = self._prompts[number]
            share = len(positions) / length
            if share >= self.overlap and number not in apart and (best is None or share > best.share):
                best = Leak(suite, prompt_id, share)
        return best

    def _short_in(self, text: str, tokens: tuple[str, ...]) -> int | None:
        """The number of a prompt of less than one run that is a line of the text, or the whole of it."""
        if not self._short:
            return None
        if tokens in self._short:
            return self._short[tokens]
        for line in text.splitlines():
            if len(line) > self._longest_short:
                continue
            found = words(line)
            for skipped in range(1 + MOST_BEFORE):
                rest = found[skipped:]
                if rest in self._short and (not skipped or len(rest) >= FEWEST_AFTER):
                    return self._short[rest]
        return None

    def _all_runs(self, tokens: tuple[str, ...]) -> zip[tuple[str, ...]]:
        return zip(*(tokens[start:] for start in range(self.ngram)), strict=False)
