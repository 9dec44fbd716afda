"""``safework report``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Optional

import typer

from safework_cli.cli.options import STORE
from safework_cli.core.terminal import console, say


def command() -> Any:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)

    @app.command(
        name="report",
        help="Write one HTML file with all models, evaluations, training curves and replies (it opens offline), and print the table of "
        "the models on stderr.",
    )
    def report(
        out: Path = typer.Option(Path("report.html"), "--out", "-o", help="The file to write."),
        store: Optional[Path] = STORE,
        quiet: bool = typer.Option(False, "--quiet", "-q", help="No table."),
    ) -> int:
        from safework_cli.core.artifacts import default_store
        from safework_cli.core.errors import EXIT_INPUT, ConfigError, InputError
        from safework_cli.core.paths import user_path
        from safework_cli.report import print_ladder, write_report

        out = user_path(out)
        if out.is_dir():
            raise ConfigError(f"{out} is a folder", "--out names the file", f"safework report --out {out / 'report.html'}")
        if blocking := next((folder for folder in out.absolute().parents if folder.exists() and not folder.is_dir()), None):
            raise ConfigError(f"{blocking} is not a folder", "--out names a file in it", "name another place: safework report --out FILE")
        damaged: list[InputError] = []
        table = write_report(default_store(store), out, damaged)
        for error in damaged:
            say(f"not in the report: {error}")
        if not quiet:
            print_ladder(table, console(stderr=True, width=None if sys.stderr.isatty() else 160))
        print(out)
        return EXIT_INPUT if damaged else 0

    return typer.main.get_command(app)
