"""Mathematical answers: extracted from the reply (``math_answer``), read (``math_reading``), and compared by value (``math_compare``).

Plain numbers, lists, intervals and the like are compared here. Single expressions go to math-verify's parser, in a worker: math-verify
limits its own time by ``signal.alarm``, which works only in a main thread and cannot interrupt C code. The cost of a comparison is
limited by size in advance, so that a verdict does not depend on the load of the machine; the time limit is for unforeseen cases.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from safework_cli.verifiers.contract import UNPARSED, Exchange, Verdict
from safework_cli.verifiers.rules.math_answer import last_answer, stated_answer
from safework_cli.verifiers.rules.math_compare import Comparison
from safework_cli.verifiers.rules.math_notation import cleaned, compact
from safework_cli.verifiers.rules.math_reading import read
from safework_cli.verifiers.rules.math_values import MAX_CHARACTERS, TooLarge, Unreadable, Value, Words, expressions_of

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


class _TookTooLong(Exception):
    """The worker had to be ended, by the clock or by itself: an error of the comparison, whoever's expression it was."""


class MathRule:
    r"""1 where the final answer equals the gold answer mathematically, else 0; ``\boxed{…}`` goes before any other expression.

    Labels: "correct", "wrong", and ``UNPARSED`` (score 0) where no answer is found in the reply. What is too large to be compared (its
    size is estimated before anything is evaluated: ``math_reading``, ``math_worker``) is wrong in a reply, and an error in a gold answer.
    What the clock ends is an error in either.

    Args:
        time_limit_seconds: wall time for one comparison of two expressions, the worker's start not counted.
    """

    name = "math"
    version = 3  # words that compare are relations; what was taken back, and what follows the next question, does not count
    libraries = ("math-verify", "latex2sympy2_extended", "sympy", "mpmath")

    def __init__(self, time_limit_seconds: Annotated[float, Field(gt=0, le=3600)] = 10.0):
        self.time_limit_seconds = time_limit_seconds
        self._worker: _Worker | None = None
        self._evaluated: set[str] = set()
        self._known: dict[tuple[str, str, str, Fraction | None], bool] = {}  # a group of replies says the same few things
        self._lock = threading.Lock()  # one question at a time; evaluation judges from several threads

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        with self._lock:
            return [self._judge(e) for e in exchanges]

    def _judge(self, exchange: Exchange) -> Verdict:
        if exchange.answer is None:
            return Verdict(None, error="the row has no gold answer")
        try:
            gold = read_gold(exchange.answer)
            self._check(gold)
        except (Unreadable, TooLarge, RecursionError) as error:
            return Verdict(None, error=f"the gold answer {exchange.answer[:80]!r} cannot be compared: {error}")
        except _TookTooLong as error:
            return Verdict(None, error=str(error))
        answer = stated_answer(exchange.final, words=isinstance(gold, Words))
        if answer is None:
            return Verdict(0.0, UNPARSED)
        if same_text(exchange.answer, answer):
            return Verdict(1.0, "correct")
        try:
            return self._verdict(Comparison(self._same).equal(gold, read(answer)))
        except Unreadable:
            return Verdict(0.0, UNPARSED)
        except (TooLarge, RecursionError):
            return Verdict(0.0, "wrong")  # the gold answer is not, as was checked
        except _TookTooLong as error:
            return Verdict(None, error=str(error))

    @staticmethod
    def _verdict(correct: bool) -> Verdict:
        return Verdict(1.0, "correct") if correct else Verdict(0.0, "wrong")

    def _check(self, gold: Value) -> None:
        """Raises TooLarge if a part of the gold answer is too large to be evaluated, whatever the reply."""
        for latex in expressions_of(gold):
            if latex not in self._evaluated:
                self._same("evaluate", latex, latex, None)
                if len(self._evaluated) > 10_000:
                    self._evaluated.clear()
                self._evaluated.add(latex)

    def _same(self, relation: str, a: str, b: str, within: Fraction | None) -> bool:
        if (known := self._known.get((relation, a, b, within))) is not None:
            return known
        job = {"relation": relation, "a": a, "b": b, "within": None if within is None else str(within), "limit": self.time_limit_seconds}
        try:
            result = self._running().ask(job, self.time_limit_seconds)
        except WorkerTimeout:
            self._stop()
            raise _TookTooLong(f"the comparison took longer than {self.time_limit_seconds:g} s") from None
        except WorkerDied:
            self._stop()
            raise _TookTooLong("the comparison ended its process (out of memory?)") from None
        except BaseException:
            self._stop()  # interrupted between question and answer: the next answer would be read as that of another question
            raise
        if "large" in result:
            raise TooLarge(result["large"])
        if "error" in result:
            raise _TookTooLong(result["error"])
        if len(self._known) > 10_000:
            self._known.clear()
        self._known[relation, a, b, within] = bool(result["same"])
        return bool(result["same"])

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


@lru_cache(maxsize=4096)
def read_gold(text: str) -> Value:
    """What a gold answer says. Raises Unreadable or TooLarge where it cannot be compared."""
    if not re.search(r"\w|[∅∞\\]", text):
        raise Unreadable("it says nothing")
    return read(gold_answer(text))


def gold_answer(text: str) -> str:
    """The answer in a gold: as a rule all of it; in a worked solution, what it states."""
    boxed = last_answer(text)
    if boxed != text or len(text) <= (600 if "\\begin" in text else 200):
        return boxed
    return stated_answer(text) or text


def same_text(gold: str, answer: str) -> bool:
    """Whether two answers are written alike, space and styling apart."""
    if len(gold) > MAX_CHARACTERS or len(answer) > MAX_CHARACTERS:
        return False
    return compact(cleaned(gold_answer(gold))) == compact(cleaned(answer))
