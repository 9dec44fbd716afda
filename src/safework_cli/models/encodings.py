"""Encoded prompts with images: kept up to a number of bytes, and prepared by worker threads while the model computes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, Generic, TypeVar
from weakref import finalize

from safework_cli.core.system import cores

R = TypeVar("R")
T = TypeVar("T")
LIMIT_BYTES = 2**30
ONCE_BYTES = 2**28
"""The limit where a row comes once in an epoch: there is room for what was prepared, and little is kept for nothing."""
MOST_THREADS = 8


class Encodings(Generic[R, T]):
    """What rows are encoded to. Decoding and resizing release Python's lock, so threads prepare a step while another one computes.

    The value of a row does not depend on whether it was prepared, kept, or computed again.

    Args:
        encode: row → its encoding; called in several threads.
        key: what tells rows apart.
        bytes_of: of an encoding.
        limit_bytes: encodings are kept up to this size in all, the last used ones. A single one may be larger.
        threads: that prepare rows; by default one less than the processor has cores, from 1 to 8.
    """

    def __init__(
        self,
        encode: Callable[[R], T],
        bytes_of: Callable[[T], int],
        key: Callable[[R], Hashable],
        *,
        limit_bytes: int = LIMIT_BYTES,
        threads: int | None = None,
    ):
        self._encode, self._bytes_of, self._key, self._limit = encode, bytes_of, key, limit_bytes
        self._kept: OrderedDict[Hashable, T] = OrderedDict()
        self._running: dict[Hashable, Future[T]] = {}
        self._bytes = self._largest = 0
        self._lock = Lock()
        count = threads or max(1, min(MOST_THREADS, cores() - 1))
        self._workers = ThreadPoolExecutor(count, thread_name_prefix="images")
        self._end = finalize(self, self._workers.shutdown, wait=False, cancel_futures=True)

    def __call__(self, row: R) -> T:
        """A row's encoding. Raises what ``encode`` raises, also where a thread met it before."""
        name = self._key(row)
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
            future = self._running.pop(name, None)
        value = self._encode(row) if future is None else future.result()
        self._keep(name, value)
        return value

    def ahead(self, rows: Iterable[R]) -> None:
        """Begins to encode rows that will be asked for, in their order, and as many as ``limit_bytes`` has room for; returns at once. What
        was begun earlier and is not among them is dropped."""
        wanted = {self._key(row): row for row in rows}
        with self._lock:
            for gone in [name for name in self._running if name not in wanted]:
                self._running.pop(gone).cancel()
            room = self._limit // self._largest if self._largest else len(wanted)
            for name, row in wanted.items():
                if name not in self._kept and name not in self._running and len(self._running) < max(room, 1):
                    self._running[name] = self._workers.submit(self._encode, row)

    @property
    def held_bytes(self) -> int:
        """Size of the encodings that are kept."""
        return self._bytes

    def close(self) -> None:
        """Ends the threads; rows that they have not begun are not encoded."""
        self._end()

    def _keep(self, name: Hashable, value: T) -> None:
        with self._lock:
            if name in self._kept:
                return
            self._kept[name] = value
            size = self._bytes_of(value)
            self._bytes, self._largest = self._bytes + size, max(self._largest, size)
            while self._bytes > self._limit and len(self._kept) > 1:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= self._bytes_of(oldest)


def tensor_bytes(prompt: Any) -> int:
    """Bytes of an encoded prompt: its token ids, and the tensors of its images."""
    ids, vision = prompt
    return 8 * len(ids) + sum(tensor.nbytes for tensor in (vision or {}).values())
