"""Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from safework_cli.core.errors import Interrupted, RunAgain


class StopRequest:
    """Ctrl-C and SIGTERM, turned into errors at a moment when nothing is lost.

    Outside ``deferred`` a signal raises at once (in the main thread). Inside, it only sets ``requested``: a training loop finishes
    its step, writes its checkpoint and then calls ``check``. A second Ctrl-C raises at once wherever the loop is.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._deferred = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handles SIGINT and SIGTERM while the body runs."""
        previous = {sig: signal.signal(sig, self._on_signal) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sig, handler in previous.items():
                signal.signal(sig, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """While the body runs, a signal is only noted."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.check()

    def check(self) -> None:
        """Raises Interrupted (SIGINT) or RunAgain (SIGTERM) where a signal came."""
        if self.requested is None:
            return
        if self.requested == signal.SIGINT:
            raise Interrupted("interrupted by Ctrl-C", "", "run the same command again: it resumes from what was kept")
        raise RunAgain("stopped by SIGTERM", "what was done so far is kept", "run the same command again: it resumes")

    def _on_signal(self, number: int, _frame: Any) -> None:
        second = self.requested is not None
        self.requested = signal.Signals(number)
        if not self._deferred or (second and number == signal.SIGINT):
            self.check()
