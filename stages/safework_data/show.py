"""What the data stages show at their end: a table of what was read, dropped and written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from safework_cli.core.terminal import visible

if TYPE_CHECKING:
    from rich.table import Table

MOST_REASONS = 4
"""Reasons that a line names; the manifest and the data card have them all."""


def counts_table(of: str, rows: Iterable[tuple[str, int, Mapping[str, int], int, str]]) -> Table:
    """A table of counts.

    Args:
        of: what a line is about ("subset").
        rows: name, how many were read, how many were dropped by reason (the most frequent first), how many were written, and a remark.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold")
    for column in (of, "read", "dropped", "written"):
        table.add_column(column, justify="left" if column == of else "right", no_wrap=True)
    table.add_column("")
    table.add_column("dropped because", overflow="fold")
    for name, read, dropped, written, remark in rows:
        reasons = [f"{visible(reason)} {count:,}" for reason, count in dropped.items()]
        shown = ", ".join(reasons[:MOST_REASONS]) + (", …" if len(reasons) > MOST_REASONS else "")
        counts = (f"{count:,}" for count in (read, sum(dropped.values()), written))
        table.add_row(Text(visible(name)), *counts, Text(remark), Text(shown))
    return table
