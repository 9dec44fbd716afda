"""What people see at the end of every ``safework rl`` command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from safework_cli.core.formats import plain
from safework_cli.core.stage import Stage
from safework_cli.training.closing import closing_table, dropped, evaluation_lines

if TYPE_CHECKING:
    from rich.console import RenderableType

    from safework_cli.core.artifacts import Artifact


class PolicyStage(Stage):
    """A stage that trains a policy."""

    many_processes = True

    def show(self, artifact: Artifact) -> RenderableType:
        """The numbers to look at first."""
        return closing_table([*_lines(artifact.manifest.metrics)])


def _lines(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "prompts", f"{metrics['rows']:,}{dropped(metrics)}"
    idle = [(metrics["steps_without_gradient"], "without a gradient"), (metrics["skipped_updates"], "skipped")]
    counts = [f"{metrics['updates']} updates", *(f"{count} {what}" for count, what in idle if count)]
    yield "steps", f"{metrics['steps']}: {', '.join(counts)}"
    curves = {name: value for name, value in metrics.items() if isinstance(value, dict) and value.keys() == {"first", "last"}}
    for name, value in curves.items():  # means over the first and the last fifth of the steps
        if not name.startswith(HABITS):
            yield name, f"{plain(value['first'])} → {plain(value['last'])}"
    letters = [name.rpartition("/")[2] for name in curves if name.startswith("choice/share/")]
    if letters:
        yield "letters chosen", ", ".join(f"{letter} {_shares(curves[f'choice/share/{letter}'])}" for letter in letters)
        golds = [curves.get(f"choice/gold/{letter}", {"first": 0.0, "last": 0.0}) for letter in letters]
        yield "right letters", ", ".join(f"{letter} {_shares(gold)}" for letter, gold in zip(letters, golds, strict=True))
    for prefix, words in (("verdict/yes/", "says yes"), ("refusal/", "refuses")):
        said = [f"{name.removeprefix(prefix)} {_shares(value)}" for name, value in curves.items() if name.startswith(prefix)]
        if said:
            yield words, ", ".join(said)
    yield from evaluation_lines(metrics)


def _shares(curve: Mapping[str, float]) -> str:
    return f"{100 * curve['first']:.0f} → {100 * curve['last']:.0f}%"


HABITS = ("choice/", "verdict/", "refusal/")
"""Curves that have lines of their own."""
