"""Ctrl-C, SIGTERM and SIGUSR1 (which Slurm sends ahead of a time limit, where sbatch is given --signal)."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from safework_cli.core.errors import Interrupted, RunAgain


class StopRequest:
    """Ctrl-C, SIGTERM and SIGUSR1, turned into errors at a moment when nothing is lost.

    Outside ``deferred`` a signal raises at once (in the main thread). Inside, it only sets ``requested``: a training loop finishes
    its step, writes its checkpoint and then calls ``check``. A second Ctrl-C raises at once wherever the loop is.

    Args:
        handled: the signals; the others keep their effect.
    """

    def __init__(self, handled: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)) -> None:
        self.requested: signal.Signals | None = None
        self._handled = handled
        self._deferred = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handles the signals while the body runs."""
        previous = {sig: signal.signal(sig, self._on_signal) for sig in self._handled}
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

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """While the body runs, a signal raises, also within ``deferred``; one that came before raises as the body begins."""
        before, self._deferred = self._deferred, False
        try:
            self.check()
            yield
        finally:
            self._deferred = before

    def check(self) -> None:
        """Raises Interrupted (SIGINT) or RunAgain (the others) where a signal came."""
        if self.requested is None:
            return
        if self.requested == signal.SIGINT:
            raise Interrupted("interrupted by Ctrl-C", "", "run the same command again: it resumes from what was kept")
        raise RunAgain(f"stopped by {self.requested.name}", "what was done so far is kept", "run the same command again: it resumes")

    def _on_signal(self, number: int, _frame: Any) -> None:
        second = self.requested is not None
        self.requested = signal.Signals(number)
        if not self._deferred or (second and number == signal.SIGINT):
            self.check()
