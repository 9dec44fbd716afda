"""What glibc does with freed memory: kept for the next update, returned to the system between the phases of a step. Imports no torch.

Elsewhere than on glibc nothing happens. Only memory of the host is meant; torch has an allocator of its own on a GPU.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # names and numbers of malloc.h


def keep_freed_memory() -> None:
    """Makes this process keep freed buffers in place of returning them at once.

    A training step frees and takes again gigabytes of activations; mapping their pages again took a fifth of a CPU step.
    """
    if mallopt := _of_libc("mallopt"):
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """Returns what this process has kept. Call it where buffers of other sizes follow: kept ones do not fit them, and would add up."""
    if trim := _of_libc("malloc_trim"):
        trim(0)


def _of_libc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
