"""Which rows state a decision, for training and for measuring. Torch-free: the plan refuses with it what the run would."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from safework_cli.core.artifacts import Artifact
from safework_cli.core.errors import ConfigError, InputError
from safework_cli.core.stage import Inputs
from safework_cli.data.dataset import read_dataset
from safework_cli.data.row import Row
from safework_cli.data.verdict import KEY, Mark, Words, language_of_row, mark_of, marked, openings, probe, verdict_words
from safework_cli.training.heldout import refuse_overlap
from safework_sft.config import VerdictConfig


@dataclass(frozen=True, slots=True)
class MarkedRows:
    """Marked training rows, and what their words mean."""

    pairs: list[tuple[Row, Mark]]
    words: Words

    def by_id(self) -> dict[str, Mark]:
        return {row.id: mark for row, mark in self.pairs}


def marked_rows(config: VerdictConfig, rows: Sequence[Row]) -> MarkedRows:
    """The marked rows among those that are trained on.

    Raises:
        InputError: there are none, or their words are not one of each meaning.
    """
    pairs = marked(rows, config.pattern)
    if config.pattern is not None and not pairs:
        raise InputError(
            f"verdict.pattern matches none of the {len(rows)} training rows",
            f"it is {config.pattern!r}, searched in the last assistant message",
            "correct the pattern, or leave it out where the rows carry meta.verdict",
        )
    return MarkedRows(pairs, verdict_words(pairs, config.positive))


def only_cut(config: VerdictConfig | None, usable: Sequence[Row], chosen: Sequence[Row]) -> list[Row]:
    """The marked rows that come in their short form only: with ``short_rows: all`` or ``others``, those that ``task_weights`` leave out."""
    if config is None or not config.adds:
        return []
    taken = {row.id for row in chosen}
    return [row for row, _ in marked(usable, config.pattern) if row.id not in taken]


def count_marks(rows: Sequence[Row]) -> int:
    """How many rows carry a mark of their own."""
    return sum(row.meta.get(KEY) is not None for row in rows)


def measured_data(inputs: Inputs) -> Artifact | None:
    """The data whose rows the decision is measured on: ``verdict_data``, else ``eval_data``."""
    return inputs.maybe("verdict_data") or inputs.maybe("eval_data")


def refuse_unmeasured(config: VerdictConfig) -> None:
    """Where no rows are given to measure decisions on: refuses the settings that act on what is measured, and a decision that is neither
    learned nor measured.

    Raises:
        ConfigError: one of them is set.
    """
    if not config.weight:
        why = "without a weight the decision is only measured, and no rows are given to measure it on"
        raise ConfigError(
            "verdict.weight=0 is given without rows to measure on", why, "give verdict_data, such as starter:dev, or a weight"
        )
    for name, given in (("calibrate", config.calibrate), ("harmless_weight", config.harmless_weight != 1)):
        if given:
            why = "the threshold is measured on held-out rows, and none are given"
            raise ConfigError(f"verdict.{name} is given without rows to measure on", why, "give verdict_data, such as starter:dev")


def measured_rows(
    config: VerdictConfig, inputs: Inputs, training: MarkedRows, trained_on: Sequence[Row]
) -> tuple[list[tuple[Row, Mark]], Counter[str]]:
    """Rows to measure the decision on, as many of each class as ``samples`` allows: marked ones, and prompts with ``harmful``, which get
    the text that the training rows have before their verdict; and how many rows cannot be measured, by the reason. Empty where no data is
    given.

    Raises:
        InputError: a row is in the training rows, a class is missing, or the training rows have no common text before the verdict.
    """
    data = measured_data(inputs)
    left_out: Counter[str] = Counter()
    if data is None:
        return [], left_out
    own, asked, without = [], [], set()
    opening_of = openings(training.pairs)
    for row in read_dataset(data):
        mark = mark_of(row, config.pattern)
        language = language_of_row(row)
        if row.images:
            left_out["with images"] += 1
        elif language not in training.words:
            left_out[f"in a language without a verdict ({language})"] += 1
        elif mark is not None and mark.word in training.words[language]:
            own.append((row, mark))
        elif row.harmful is not None and row.reply is None:
            if language not in opening_of:
                without.add(language)
                left_out["in a language whose verdicts follow no common text"] += 1
            elif (made := probe(row, opening_of[language], training.words[language])) is not None:
                asked.append(made)
        else:
            left_out["without a verdict"] += 1
    pairs = [*own, *asked]
    if without and not pairs:
        raise InputError(
            f"the decision cannot be measured on the prompts of {data.ref}",
            f"the training rows in '{sorted(without)[0]}' have no common text before the verdict to put after a prompt",
            "give verdict_data whose rows have replies with a verdict mark",
        )
    classes = [[pair for pair in pairs if training.words[pair[1].language][pair[1].word] is harmful] for harmful in (True, False)]
    if not all(classes):
        has = f"{len(classes[0])} harmful and {len(classes[1])} harmless rows in {', '.join(sorted(training.words))}"
        if inputs.maybe("verdict_data") is None:
            return [], left_out
        raise InputError(f"{data.ref} cannot show how well harmful prompts are recognised", f"it has {has}", "give other verdict_data")
    refuse_overlap([row for row, _ in pairs], trained_on)
    return [pair for one in classes for pair in _spread(one, config.samples // 2)], left_out


def _spread(pairs: list[tuple[Row, Mark]], count: int) -> list[tuple[Row, Mark]]:
    count = min(count, len(pairs))
    return [pairs[i * len(pairs) // count] for i in range(count)]
