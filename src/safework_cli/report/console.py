"""The ladder's tables and sentences for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from safework_cli.core.terminal import visible
from safework_cli.report.ladder import Cell, LadderTable
from safework_cli.report.quadrant import sentences

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDEST = 120
"""Characters of a line at most: a table with more columns continues in another one."""


def print_ladder(table: LadderTable, console: Console) -> None:
    """Prints the table to a terminal: value, then interval and number of samples below it."""
    from rich.text import Text

    caption = "95% intervals; * best value of its column; × samples that could not be scored"
    for title, columns in (("the ladder", table.columns), ("the same replies, measured in other ways", table.further)):
        if title != "the ladder" and not columns:
            continue
        if not table.rungs:
            none = "no evaluation but of search episodes, which the page shows" if table.searched else "no evaluation in this store yet"
            console.print(Text(f"{none}: safework eval -c recipes/quickstart/eval.yaml model=… data=…"))
            continue
        left, part = list(columns), title
        while left or part == title:
            count = _columns_that_fit(table, left, console)
            grid = _grid(table, left[:count], part)
            left, part = left[count:], f"{title} (continued)"
            console.print(grid)
        console.print(Text(caption, style="italic"))
    judged = [f"judged by {'; '.join(table.judges)}"] * bool(table.judges)
    for line in judged + table.agreements + sentences(table) + [f"warning: {text}" for text in table.warnings]:
        console.print(Text(visible(line)))


def _columns_that_fit(table: LadderTable, columns: Sequence[str], console: Console) -> int:
    """How many of the columns a table of at most ``WIDEST`` characters has room for; at least one."""
    width, unbounded = min(console.width, WIDEST), console.options.update(width=10**4)
    fit = 1
    while fit < len(columns) and console.measure(_grid(table, columns[: fit + 1], ""), options=unbounded).maximum <= width:
        fit += 1
    return fit


def _grid(table: LadderTable, columns: Sequence[str], title: str) -> Table:
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=title, show_lines=True)
    grid.add_column("model")
    for metric in columns:
        column = table.metrics[metric]
        mark = f"({column.mark})" if column.unit == "tokens" else column.mark
        grid.add_column(Text(visible(f"{column.title} {mark}".rstrip())), justify="right")
    for rung in table.rungs:
        grid.add_row(Text(visible(rung.label)), *(Text(_terminal_cell(rung.cells[metric])) for metric in columns))
    return grid


def _terminal_cell(cell: Cell | None) -> str:
    if cell is None:
        return "not measured"
    failed = f" ×{cell.failed}" if cell.failed else ""
    return f"{cell.shown}{'*' if cell.best else ''}\n{cell.interval} n={cell.n}{failed}"
