"""Mathematical answers, compared by math-verify in a process that can be killed.

math-verify limits its own time by ``signal.alarm``, which works only in a main thread and cannot interrupt C code; behind a training loop
or an event loop it fails silently and every score is 0. So it runs without limits of its own in a worker, and the worker is killed when it
takes too long.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safework_cli.verifiers.contract import Exchange, Verdict

START_LIMIT_SECONDS = 120.0


class WorkerTimeout(Exception):
    """The worker gave no answer in time and was killed."""


class WorkerDied(Exception):
    """The worker ended by itself (out of memory, mostly)."""


class _Worker:
    """One ``math_worker`` process, spoken to in JSON lines."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("math_worker.py")
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # a Ctrl-C is the parent's to handle
        )
        self.owner = os.getpid()
        self._pending = b""
        self._read(START_LIMIT_SECONDS)

    def ask(self, job: dict[str, Any], seconds: float) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(job).encode() + b"\n")
        except BrokenPipeError:
            raise WorkerDied from None
        return self._read(seconds)

    def _read(self, seconds: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise WorkerTimeout
                chunk = os.read(self.process.stdout.fileno(), 65536)
                if not chunk:
                    raise WorkerDied
                self._pending += chunk
        line, self._pending = self._pending.split(b"\n", 1)
        result: dict[str, Any] = json.loads(line)
        return result

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


class MathRule:
    r"""1 where the final answer equals the gold answer mathematically, else 0; ``\boxed{…}`` goes before any other expression.

    An unreadable reply scores 0 ("unparsed"). A gold answer that is no mathematics, and a comparison that exceeds the time limit, are
    errors: neither says anything about the reply.

    Args:
        time_limit_seconds: wall time for one comparison, the worker's start not counted.
    """

    name = "math"
    version = 1
    libraries = ("math-verify", "latex2sympy2_extended", "sympy")

    def __init__(self, time_limit_seconds: float = 10.0):
        self.time_limit_seconds = time_limit_seconds
        self._worker: _Worker | None = None
        self._lock = threading.Lock()  # one question at a time; evaluation judges from several threads

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        with self._lock:
            return [self._judge(e) for e in exchanges]

    def _judge(self, exchange: Exchange) -> Verdict:
        if exchange.answer is None:
            return Verdict(None, error="the row has no gold answer")
        job = {"gold": exchange.answer, "reply": exchange.final, "limit": self.time_limit_seconds}
        try:
            result = self._running().ask(job, self.time_limit_seconds)
        except WorkerTimeout:
            self._stop()
            return Verdict(None, error=f"the comparison took longer than {self.time_limit_seconds:g} s")
        except WorkerDied:
            self._stop()
            return Verdict(None, error="the comparison ended its process (out of memory?)")
        except BaseException:
            self._stop()  # interrupted between question and answer: the next answer would be read as that of another question
            raise
        if "error" in result:
            return Verdict(None, error=result["error"])
        if result["correct"]:
            return Verdict(1.0, "correct")
        return Verdict(0.0, "wrong" if result["parsed"] else "unparsed")

    def _running(self) -> _Worker:
        """The worker of this process; a forked child gets its own, two readers on one pipe would steal each other's answers."""
        if self._worker is None or self._worker.owner != os.getpid():
            self._worker = _Worker()
        return self._worker

    def _stop(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker = None

    def close(self) -> None:
        """Ends the worker; a later ``judge`` starts another."""
        with self._lock:
            self._stop()

    def __del__(self) -> None:
        worker = getattr(self, "_worker", None)
        if worker is not None and worker.owner == os.getpid():
            worker.kill()
