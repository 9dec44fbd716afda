"""A function over many pieces of work, in several processes once there are enough of them to pay for starting any.

The standard library's pool, weighed against joblib and datasets' ``map(num_proc)``: it hands results on in order as they come, and takes
a stream whose length nobody knows. What it lacks is here: no more than a few pieces wait at a time, a worker leaves the ending of a run to
its parent, and it ends with a parent that was killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import wait
from typing import Any, TypeVar

from safework_cli.errors import SafeworkError

Shared = TypeVar("Shared")
Piece = TypeVar("Piece")
Result = TypeVar("Result")

MOST_PROCESSES = 8
"""More would wait for the one that reads and writes."""
FIRST_HERE = 8
"""Pieces that are worked off before any process is started, which takes about a second."""
GRACE_S = 5.0
"""Seconds in which a worker that is told to end may hand over what it has begun."""

_shared: Any = None


def in_order(
    work: Callable[[Shared, Piece], Result], shared: Shared, pieces: Iterable[Piece], processes: int | None = None
) -> Generator[Result, None, None]:
    """``work(shared, piece)`` of every piece, in order: the same whatever the number of processes.

    Args:
        work: a function of a module.
        shared: what every piece needs; each process gets it once.
        processes: default: as many as there are cores for this one, up to ``MOST_PROCESSES``; one works here.

    Raises:
        SafeworkError: a process was killed.
    """
    remaining = iter(pieces)
    processes = min(MOST_PROCESSES, cores()) if processes is None else processes
    for piece in remaining if processes < 2 else islice(remaining, FIRST_HERE):
        yield work(shared, piece)
    upcoming = list(islice(remaining, 1))
    if not upcoming:
        return
    context = multiprocessing.get_context("forkserver")  # a fork of this process would take its threads' locks along
    context.set_forkserver_preload([work.__module__])
    pool = ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(shared,))
    waiting: deque[Future[Result]] = deque()
    try:
        waiting.extend(pool.submit(_run, work, piece) for piece in upcoming)
        for piece in remaining:
            waiting.append(pool.submit(_run, work, piece))
            if len(waiting) > 2 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        why = "the system does so when memory runs out" if os.name == "posix" else ""
        raise SafeworkError(
            "a worker process was killed", why, "ask for more memory, or for fewer cores (taskset, --cpus-per-task)"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def cores() -> int:
    """Cores that this process may use: a Slurm job's are fewer than the node's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin(shared: Any) -> None:
    global _shared
    _shared = shared
    # A terminal's Ctrl-C and a scheduler's SIGTERM reach every process: the parent says what becomes of the run, soon.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: threading.Timer(GRACE_S, os._exit, (1,)).start())
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()


def _run(work: Callable[[Any, Any], Any], piece: Any) -> Any:
    return work(_shared, piece)
