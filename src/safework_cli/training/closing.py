"""The table at the end of a command that trains or searches. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from safework_cli.core.formats import plain
from safework_cli.core.terminal import visible

if TYPE_CHECKING:
    from rich.console import RenderableType


def closing_table(lines: Sequence[tuple[str, str]]) -> RenderableType:
    """Names and values, one pair a line; a long value continues below itself."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, show_header=False, pad_edge=False)
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for name, value in lines:
        grid.add_row(Text(visible(name)), Text(visible(value)))
    return grid


def evaluation_lines(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Lines on the evaluations during training; none where there were none.

    Args:
        metrics: of the manifest.
    """
    evaluation = metrics.get("evaluation")
    if not evaluation:
        return
    yield "evaluation", f"{evaluation['metric']}, {evaluation['prompts']} prompts of {evaluation['data']}"
    yield "  start", plain(evaluation["start"])
    yield "  best", f"{plain(evaluation['best'])} at step {evaluation['best_step']}"
    yield "  last", f"{plain(evaluation['last'])} at step {evaluation['last_step']}"
    yield "  saved", f"step {evaluation['saved_step']}" + (", the run stopped early" if evaluation["stopped_early"] else "")
    for name, ref in evaluation["judges"].items():
        yield "  judge", f"{name}: {ref}"


def dropped(metrics: Mapping[str, Any]) -> str:
    """The end of the line that counts rows: how many were dropped, if any."""
    count = sum(metrics["dropped"].values())
    return f", {count:,} dropped" if count else ""
