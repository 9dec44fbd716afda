"""What the manifest records about the machine: package versions, git commit, peak memory."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "safework",
    "torch",
    "transformers",
    "trl",
    "datasets",
    "accelerate",
    "peft",
    "inspect-ai",
    "bm25s",
    "math-verify",
    "vllm",
    "deepspeed",
)


def package_versions() -> dict[str, str]:
    """Versions of the packages that shape results, where installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def own_version() -> str:
    """The version of this program that is installed."""
    return version("safework")


def cores() -> int:
    """Cores that this process may use: a Slurm job's are fewer than the node's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def git_commit() -> str | None:
    """The commit of the working folder, "+changes" where it is not clean; None outside a checkout."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changed else "")


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """The most memory that one process has taken so far, in bytes; of other processes that a stage starts, such as data build's, nothing.

    Attributes:
        host: its largest resident set.
        gpu: the most that torch has allocated on one GPU; None where it allocated nothing on any.
    """

    host: int
    gpu: int | None = None

    def __or__(self, other: PeakMemory) -> PeakMemory:
        """The larger of both, each for itself."""
        return PeakMemory(max(self.host, other.host), max(self.gpu or 0, other.gpu or 0) or None)


def peak_memory() -> PeakMemory:
    """Of this process. Imports no torch: where nothing has imported it, nothing was computed on a GPU."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    used = [cuda.max_memory_allocated(device) for device in range(cuda.device_count())] if cuda and cuda.is_initialized() else []
    return PeakMemory(peak if sys.platform == "darwin" else peak * 1024, max(used, default=0) or None)


def resident_bytes() -> int | None:
    """The resident set of this process now; None where the system does not say (Linux does)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
