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

    def show(self, artifact: Artifact) -> RenderableType:
        """The numbers to look at first."""
        return closing_table([*_lines(artifact.manifest.metrics)])


def _lines(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "prompts", f"{metrics['rows']:,}{dropped(metrics)}"
    idle = [(metrics["steps_without_gradient"], "without a gradient"), (metrics["skipped_updates"], "skipped")]
    counts = [f"{metrics['updates']} updates", *(f"{count} {what}" for count, what in idle if count)]
    yield "steps", f"{metrics['steps']}: {', '.join(counts)}"
    for name, value in metrics.items():
        if isinstance(value, dict) and value.keys() == {"first", "last"}:  # means over the first and the last fifth of the steps
            yield name, f"{plain(value['first'])} → {plain(value['last'])}"
    yield from evaluation_lines(metrics)
