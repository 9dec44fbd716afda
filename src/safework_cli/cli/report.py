"""``safework report``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Optional

import typer


def command() -> Any:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)

    @app.command(
        name="report",
        help="Write one HTML file that shows the whole ladder (it opens offline), and print the table of the rungs on stderr.",
    )
    def report(
        out: Path = typer.Option(Path("report.html"), "--out", "-o", help="The file to write."),
        store: Optional[Path] = typer.Option(None, "--store", help="The store's folder.", show_default=False),
        quiet: bool = typer.Option(False, "--quiet", "-q", help="No table."),
    ) -> None:
        from safework_cli.artifacts import default_store
        from safework_cli.report import build_report, ladder_table, print_ladder

        artifacts = default_store(store).list()
        build_report(artifacts, out)
        if not quiet:
            from rich.console import Console

            print_ladder(ladder_table(artifacts), Console(stderr=True, width=None if sys.stderr.isatty() else 160))
        print(out)

    return typer.main.get_command(app)
