"""Integer answers among choices: from which number does a source count them? Read from the wrong one, every gold answer is the next letter,
and no single row shows it; all rows of a source together do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from safework_cli.core.errors import ConfigError

FEWEST_ROWS, CHANCE = 20, 0.005
"""Rows from which an answer that never occurs says something, and how unlikely that must be if each choice is as often the right one: 20
rows of four choices, 51 of ten."""


@dataclass(slots=True)
class AnswerPlaces:
    """Integer answers of one source, counted as they came.

    Attributes:
        rows: with an integer answer and choices.
        zeros: of them, with answer 0: the first choice where they are counted from 0, none where they are counted from 1.
        ends: of them, whose answer is the number of choices: none where they are counted from 0, the last one where from 1.
        outside: of them, whose answer is below 0 or above the number of choices.
        lowest, highest: answer of all.
        log_chance: natural logarithm of the probability that a given place, such as the first, is never the right one.
    """

    rows: int = 0
    zeros: int = 0
    ends: int = 0
    outside: int = 0
    lowest: int = 0
    highest: int = 0
    log_chance: float = 0.0

    def add(self, answer: int, choices: int) -> None:
        """Counts the answer of a row with so many choices."""
        outside = not 0 <= answer <= choices
        log_chance = math.log1p(-1 / choices) if choices > 1 and not outside else 0.0
        self.extend(AnswerPlaces(1, answer == 0, answer == choices, outside, answer, answer, log_chance))

    def extend(self, other: AnswerPlaces) -> None:
        """Counts what another one has counted."""
        if not other.rows:
            return
        self.lowest = min(self.lowest, other.lowest) if self.rows else other.lowest
        self.highest = max(self.highest, other.highest) if self.rows else other.highest
        self.rows += other.rows
        self.zeros += other.zeros
        self.ends += other.ends
        self.outside += other.outside
        self.log_chance += other.log_chance

    @property
    def is_telling(self) -> bool:
        """Whether there are so many rows that chance does not explain a place which never occurs."""
        return self.rows >= FEWEST_ROWS and self.log_chance < math.log(CHANCE)


def refuse_miscounted(name: str, places: AnswerPlaces, answers_from: int | None) -> None:
    """Raises ConfigError where the integer answers of a source seem to be counted from another number than they are read from.

    Args:
        name: the source's.
        answers_from: as its settings have it; None where they do not say, and answers are read as counted from 0.
    """
    count = f"{places.lowest:,} to {places.highest:,} in {places.rows:,} rows"
    if 2 * places.outside > places.rows:  # they name no choices by their places, but by what they say, perhaps: such rows are dropped
        return
    next_letter = "counted from 0, the gold answer of every row would be the letter after the right one"
    if answers_from is not None:
        zero_based = places.zeros and not places.ends
        one_based = places.ends and not places.zeros
        if places.is_telling and (zero_based if answers_from == 1 else one_based):
            what = f"source '{name}': answers_from is {answers_from}, but the integer answers are {count}"
            why = "0 is among them and the number of choices never" if zero_based else "the number of choices is among them and 0 never"
            raise ConfigError(what, f"{why}: the gold answers would be wrong", f"write answers_from: {1 - answers_from} in the source")
    elif places.zeros and places.ends:
        what = f"source '{name}': integer answers are 0 in {places.zeros:,} rows and the number of choices in {places.ends:,}"
        why = "counted from 0 the latter are no choice, counted from 1 the former"
        raise ConfigError(what, why, "write answers_from: 0 (or 1) in the source, which drops those rows, or correct them")
    elif places.ends:
        what = f"source '{name}': integer answers are {count}, never 0, and the number of choices in {places.ends:,}"
        raise ConfigError(what, f"they seem to be counted from 1; {next_letter}", "write answers_from: 1 in the source")
    elif not places.zeros and places.is_telling:
        what = f"source '{name}': integer answers are {count}, never 0"
        why = f"they may be counted from 1; {next_letter}"
        raise ConfigError(what, why, "write answers_from: 1 in the source; answers_from: 0 if the first choice is never the right one")


def how_read(name: str, places: AnswerPlaces, answers_from: int | None) -> str:
    """How integer answers were read, for people."""
    return f"source {name}: integer answers are places among the choices, counted from {answers_from or 0}: {places.rows:,} rows"
