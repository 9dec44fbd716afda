"""Freed memory is kept between passes, and returned where it is asked for or has grown."""

from __future__ import annotations

import subprocess
import sys

import pytest

from safework_cli.training import callbacks

PROGRAM = """
import torch
from safework_cli.core.heap import keep_freed_memory, return_freed_memory
from safework_cli.core.system import resident_bytes

def mib(): return resident_bytes() // 2**20

keep_freed_memory()
start = mib()
live, freed = [], []
for _ in range(64):  # what stays lies between what is freed, as replies do between activations
    freed.append(torch.ones(2**20))
    live.append(torch.ones(2**10))
held = mib()
del freed
kept = mib()
return_freed_memory()
print(held - start, kept - start, mib() - start)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_buffers_are_kept_and_returned():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=True)
    held, kept, returned = map(int, done.stdout.split())
    assert held > 240
    assert kept > 240  # a training step takes them again
    assert returned < 40


@pytest.mark.parametrize(("memory", "processes", "expected"), [
    (None, 1, [3, 6, 8]),  # 121 > 120; then 157 > 156, of the 130 after it; the 90 after that lowers nothing
    (200, 1, [3, 6, 8]),
    (250, 1, [4]),  # half of it is 125: 130 is beyond it, and 140 is what the next update takes
    (320, 1, []),
    (320, 2, [3, 6, 8]),
])  # fmt: skip
def test_what_training_has_kept_is_returned_once_it_has_grown(monkeypatch, memory, processes, expected):
    """By a fifth more than an update takes that begins with nothing kept, the first one or the one after a return; and beyond half of a
    process's share of the machine's memory."""
    resident, returned, after = iter([100, 119, 110, 121, 130, 140, 157, 90, 157, 80]), [], []
    monkeypatch.setattr(callbacks, "machine_memory", lambda: memory)
    monkeypatch.setattr(callbacks, "resident_bytes", lambda: next(resident))
    monkeypatch.setattr(callbacks, "return_freed_memory", lambda: returned.append(len(after)))
    callback = callbacks.ReturnGrownMemory(processes)
    callback.on_train_begin(None, None, None)
    assert returned.pop() == 0  # what loading has left
    for update in range(10):
        callback.on_step_end(None, None, None)
        after.append(update)
    assert returned == expected
