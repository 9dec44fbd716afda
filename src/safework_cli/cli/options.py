"""Options that many commands have."""

from __future__ import annotations

from pathlib import Path

import typer

from safework_cli.core.errors import InputError


def _folder(text: str) -> Path:
    """The folder of ``--store``. Raises InputError where it is empty."""
    if not str(text).strip():
        raise InputError(
            "--store is empty",
            "it would be the working folder: the shell variable in it is not set",
            "name the store's folder, or leave --store out: then it is $SAFEWORK_STORE or ./artifacts",
        )
    return Path(text)


STORE = typer.Option(
    None,
    "--store",
    parser=_folder,
    metavar="PATH",
    help="The store's folder.  [default: $SAFEWORK_STORE or ./artifacts]",
    show_default=False,
)
