"""The ladder's tables and sentences for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safework_cli.core.terminal import visible
from safework_cli.report.ladder import Cell, LadderTable
from safework_cli.report.quadrant import sentences

if TYPE_CHECKING:
    from rich.console import Console


def print_ladder(table: LadderTable, console: Console) -> None:
    """Prints the table to a terminal: value, then interval and number of samples below it."""
    from rich.table import Table
    from rich.text import Text

    caption = "95% intervals; * best value of its column; × samples that could not be scored"
    for title, columns in (("the ladder", table.columns), ("the same replies, measured in other ways", table.further)):
        if title != "the ladder" and not columns:
            continue
        grid = Table(title=title, caption=caption, show_lines=True)
        grid.add_column("model")
        for metric in columns:
            column = table.metrics[metric]
            mark = f"({column.mark})" if column.unit == "tokens" else column.mark
            grid.add_column(Text(visible(f"{column.title} {mark}".rstrip())), justify="right")
        for rung in table.rungs:
            grid.add_row(Text(visible(rung.label)), *(Text(_terminal_cell(rung.cells[metric])) for metric in columns))
        console.print(
            grid if table.rungs else "no evaluation in this store yet: safework eval -c recipes/quickstart/eval.yaml model=… data=…"
        )
    judged = [f"judged by {'; '.join(table.judges)}"] * bool(table.judges)
    for line in judged + table.agreements + sentences(table) + [f"warning: {text}" for text in table.warnings]:
        console.print(Text(visible(line)))


def _terminal_cell(cell: Cell | None) -> str:
    if cell is None:
        return "not measured"
    failed = f" ×{cell.failed}" if cell.failed else ""
    return f"{cell.shown}{'*' if cell.best else ''}\n{cell.interval} n={cell.n}{failed}"
