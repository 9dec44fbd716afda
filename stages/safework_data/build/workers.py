"""A function over many pieces of work, in several processes once there are enough of them to pay for starting any.

Each worker is a Python of its own with a pipe to this process, and has one piece at a time: results come in order without a queue, a lock
or a thread, a worker's death is the end of its pipe, and so is its parent's. (The standard library's ProcessPoolExecutor was tried first: a
second Ctrl-C left it waiting without end, its own bugs looked like killed workers, and a script without a guard ran again in each of them.)
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable
from itertools import islice
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

from safework_cli.core.errors import SafeworkError
from safework_cli.core.system import cores

Shared = TypeVar("Shared")
Piece = TypeVar("Piece")
Result = TypeVar("Result")

MOST_PROCESSES = 8
"""More would wait for the one that reads and writes."""
CONFIGURE, WORK = "configure", "work"
FIRST_HERE = 32
"""Pieces that are worked off before any process is started, which takes about a second."""
CHECK_S = 0.2
"""Seconds between two looks at whether the run is to end."""


class WorkerPool:
    """The workers of a run, started when there is enough to do and kept for what comes next; to be left with ``with``.

    Args:
        check: is called again and again while a worker is waited for; what it raises ends the work at once.
    """

    def __init__(self, check: Callable[[], None] = lambda: None):
        self._check = check
        self._workers: list[_Worker] = []

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.kill()  # its results have all been received, or are not wanted
        self._workers.clear()

    def in_order(
        self, work: Callable[[Shared, Piece], Result], shared: Shared, pieces: Iterable[Piece], most: int = MOST_PROCESSES
    ) -> Generator[Result, None, None]:
        """``work(shared, piece)`` of every piece, in order: the same whatever the number of processes. To be read to its end before the
        next.

        Args:
            work: a function of a module.
            shared: what every piece needs; each process gets it once.
            most: processes at most, and no more than this one has cores; with one, all is done here.

        Raises:
            SafeworkError: what ``work`` raised, or a worker was killed.
        """
        remaining = iter(pieces)
        processes = min(most, cores()) if os.name == "posix" else 1
        here = remaining if processes < 2 else islice(remaining, 0 if self._workers else FIRST_HERE)
        for piece in here:
            yield work(shared, piece)
        busy: deque[_Worker] = deque()  # the first is the one whose result comes next
        setup: memoryview | None = None
        for number, piece in enumerate(islice(remaining, processes)):
            setup = setup or ForkingPickler.dumps((work, shared))  # once: it may be large
            if number == len(self._workers):
                self._workers.append(_Worker())
            self._workers[number].configure(setup)
            self._workers[number].send(piece)
            busy.append(self._workers[number])
        while busy:
            worker = busy.popleft()
            result = worker.receive(self._check)
            for piece in islice(remaining, 1):
                worker.send(piece)
                busy.append(worker)
            yield result


class _Worker:
    """A process that works on one piece at a time."""

    def __init__(self) -> None:
        self._pipe, theirs = Pipe()
        command = [sys.executable, "-P", "-c", f"from safework_data.build.workers import serve; serve({theirs.fileno()})"]
        # what this process has found to import, the other one does
        env = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        # A terminal's Ctrl-C and its end, and a scheduler's SIGTERM, reach every process. The parent says what becomes of the run: workers
        # are born with these signals blocked.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
        try:
            with theirs:
                self._process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def configure(self, setup: memoryview) -> None:
        """Sends what to do from now on, and what every piece needs."""
        self._send(CONFIGURE, setup)

    def send(self, piece: Any) -> None:
        """Sends a piece; the worker has none."""
        self._send(WORK, ForkingPickler.dumps(piece))

    def _send(self, what: str, pickled: memoryview) -> None:
        try:
            self._pipe.send(what)
            self._pipe.send_bytes(pickled)
        except OSError:
            raise self._lost() from None

    def receive(self, check: Callable[[], None]) -> Any:
        """Waits for the result of the piece."""
        try:
            while not self._pipe.poll(CHECK_S):
                check()
            result, error, warned = self._pipe.recv()
        except (EOFError, OSError):
            raise self._lost() from None
        for message, category, filename, line in warned:
            warnings.warn_explicit(message, category, filename, line)
        if error is not None:
            raise error if isinstance(error, SafeworkError) else RuntimeError(f"in a worker process:\n{error}")
        return result

    def kill(self) -> None:
        """Ends the process in the middle of whatever it does."""
        self._pipe.close()
        self._process.kill()
        self._process.wait()

    def _lost(self) -> SafeworkError:
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return SafeworkError(
                "a worker process was killed",
                "the system does so when memory runs out",
                "ask for more memory, or for fewer cores (taskset)",
            )
        return SafeworkError(
            f"a worker process ended with {code}", "its own messages, if any, are above", "run with one core: taskset -c 0"
        )


def serve(descriptor: int) -> None:
    """What a worker does: it receives a function, and applies it to every piece that comes, until the pipe is closed."""
    with Connection(descriptor) as pipe:
        try:
            work, shared = None, None
            while True:
                if pipe.recv() == CONFIGURE:
                    work, shared = pipe.recv()
                else:
                    pipe.send(_done(work, shared, pipe.recv()))
        except (EOFError, ConnectionError):  # the parent has ended, or needs nothing more
            return


def _done(work: Any, shared: Any, piece: Any) -> tuple[Any, SafeworkError | str | None, list[Any]]:
    """The result or what went wrong, and the warnings that were given."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result: Any = None
        error: SafeworkError | str | None = None
        try:
            result = work(shared, piece)
        except SafeworkError as known:
            error = known
        except Exception:
            error = traceback.format_exc()
    return result, error, [(str(w.message), w.category, w.filename, w.lineno) for w in caught]
