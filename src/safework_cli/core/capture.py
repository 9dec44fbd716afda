"""What libraries print and warn of while a stage runs."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from safework_cli.core.progress import Progress


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Sends what libraries and their child processes print on stdout to stderr: stdout carries only the reference."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def warnings_recorded(progress: Progress) -> Iterator[None]:
    """Writes Python warnings of libraries to the events: a user cannot act on them, a bug report may need them."""
    previous = warnings.showwarning

    def record(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        progress.event("python_warning", category=category.__name__, text=str(message), where=f"{filename}:{lineno}")

    warnings.showwarning = record
    try:
        yield
    finally:
        warnings.showwarning = previous
