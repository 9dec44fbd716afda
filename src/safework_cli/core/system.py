"""What the manifest records about the machine: package versions, git commit, peak memory."""

from __future__ import annotations

import os
import subprocess
import sys
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


def peak_memory_bytes() -> int:
    """The largest resident set of this process so far; of other processes that a stage starts, such as data build's, nothing."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int | None:
    """The resident set of this process now; None where the system does not say (Linux does)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
