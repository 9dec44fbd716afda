"""Ctrl-C, SIGTERM, SIGHUP (a terminal or a connection that is gone) and SIGUSR1 (which Slurm sends ahead of a time limit, where sbatch is
given --signal)."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from safework_cli.core.errors import Interrupted, RunAgain, SafeworkError

ENDING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""What ends a command from outside: by ``kill``, by a scheduler, by a connection that is gone."""
KEPT, RESUMES = "what was done so far is kept", "run the same command again: it resumes"
INTERRUPTED = f"{RESUMES} from what was kept"
RESUMES_FRESH = "run the same command without --fresh: it resumes (with --fresh it would start from scratch)"


class Stopping(BaseException):
    """A signal's error on its way out of what it came in. Not an ``Exception``: nothing that copes with a failure of what it calls, and no
    plan that collects what is refused, takes it for one.

    Attributes:
        error: Interrupted or RunAgain.
        raised: ``error`` was raised in its place.
    """

    def __init__(self, error: SafeworkError) -> None:
        super().__init__(str(error))
        self.error, self.raised = error, False


class StopRequest:
    """Ctrl-C, SIGTERM, SIGHUP and SIGUSR1, turned into errors at a moment when nothing is lost.

    Outside ``deferred`` a signal raises at once (in the main thread). Inside, it only sets ``requested``: a training loop finishes
    its step, writes its checkpoint and then calls ``check``. A second Ctrl-C raises at once wherever the loop is.

    Args:
        handled: the signals; the others keep their effect.

    Attributes:
        before: what a stop came before, where nothing was done yet: " before anything was done".
        kept, again: what the error says of what was done, and of what the same command does next.
    """

    installed_now: StopRequest | None = None
    """The one whose handlers are installed: a command has one from its beginning to its end."""

    def __init__(self, handled: Sequence[signal.Signals] = (signal.SIGINT, *ENDING)) -> None:
        self.requested: signal.Signals | None = None
        self.before, self.kept, self.again = "", KEPT, RESUMES
        self._handled = handled
        self._deferred = False

    @classmethod
    def current(cls) -> StopRequest:
        """The request of this command, or a new one where a function is called outside a command."""
        return cls.installed_now or cls()

    @contextmanager
    def installed(self, only: Sequence[signal.Signals] | None = None) -> Iterator[None]:
        """Handles the signals while the body runs.

        Args:
            only: these of them.

        Raises:
            Interrupted, RunAgain: a signal came.
        """
        outer, StopRequest.installed_now = StopRequest.installed_now, self
        with stops_raised():
            previous: dict[signal.Signals, Any] = {}
            try:
                for sig in not_ignored(self._handled if only is None else only):
                    previous[sig] = signal.getsignal(sig)
                    signal.signal(sig, self._on_signal)
                yield
            finally:
                StopRequest.installed_now = outer
                for sig, handler in previous.items():
                    signal.signal(sig, handler)

    def begin(self, stage: str, *, starts_over: bool, fresh: bool = False) -> None:
        """Notes that something is done from here on, and raises where a signal came that a library swallowed.

        Args:
            stage: what runs.
            starts_over: nothing of it is kept when it stops.
            fresh: the command has --fresh, and would delete what is kept.
        """
        self.before, self.kept, self.again = "", KEPT, RESUMES_FRESH if fresh else RESUMES
        if starts_over:
            self.kept, self.again = f"{stage} keeps nothing of a run that is stopped", "run the same command again: it starts over"
        self.check()

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
        with stops_raised():
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
            raise Interrupted("interrupted by Ctrl-C", "", self.again if self.again == RESUMES_FRESH else INTERRUPTED)
        raise RunAgain(f"stopped by {self.requested.name}{self.before}", self.kept, self.again)

    def _on_signal(self, number: int, _frame: Any) -> None:
        second = self.requested is not None
        self.requested = signal.Signals(number)
        if not self._deferred or (second and number == signal.SIGINT):
            try:
                self.check()
            except (Interrupted, RunAgain) as stop:
                raise Stopping(stop) from None


def not_ignored(signals: Sequence[signal.Signals]) -> list[signal.Signals]:
    """Those of some signals that are to be handled: not SIGHUP where it is ignored, as ``nohup`` has it."""
    return [sig for sig in signals if sig != signal.SIGHUP or signal.getsignal(sig) != signal.SIG_IGN]


@contextmanager
def stops_raised() -> Iterator[None]:
    """Raises the error of a signal that came in the body, also where the interpreter or a library made another error of it on its way
    out: Python 3.11 where it comes while the fields of a class are named, asyncio a group of errors."""
    try:
        yield
    except BaseException as error:
        stopping = next((found for found in _stoppings(error) if not found.raised), None)
        if stopping is None:
            raise
        stopping.raised = True
        raise stopping.error from None


def _stoppings(error: BaseException) -> Iterator[Stopping]:
    """Those that an error is, was raised from or while handling, or groups."""
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        link = left.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        if isinstance(link, Stopping):
            yield link
        left += [link.__cause__, link.__context__, *(link.exceptions if isinstance(link, BaseExceptionGroup) else ())]


def of_a_command() -> StopRequest:
    """The request of a command that has done nothing yet."""
    stop = StopRequest()
    stop.before, stop.kept, stop.again = " before anything was done", "", "run the same command again"
    return stop
