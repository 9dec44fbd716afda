"""What the processes of a run compute on: the card that the settings name, what Slurm will give, or what this machine has."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from safework_cli.core.plan.cards import GIB, Card, card_like, card_named
from safework_cli.core.settings import LaunchSettings, SlurmSettings
from safework_cli.core.system import cores

QUERY = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
QUERY_SECONDS = 10.0
PRODUCT, COPIED = 512, 2**25
"""What a CPU's speed is measured by: a float32 product of this size, and a copy of this many bytes."""
SHORTEST = 1e-6
"""Seconds, for clocks that count coarsely."""
BF16_ON_CPU = 1.6
"""Of a training step on AVX512-BF16 cores, against float32 (measured with benchmarks/rl_step.py)."""


@dataclass(frozen=True, slots=True)
class Device:
    """What one node has, as far as it is known.

    Attributes:
        kind: several processes share the memory and the cores of a CPU; each has a card of its own.
        memory: bytes of a card, or of the whole node for a CPU; None where unknown.
        count: cards that are there; None where the settings name a card that this machine need not have.
        half, single: operations a second in bfloat16 and float32; 0 where unknown.
        bandwidth: bytes a second.
        bf16: whether it multiplies in bfloat16.
    """

    kind: Literal["gpu", "cpu"]
    name: str
    memory: int | None
    count: int | None = None
    half: float = 0.0
    single: float = 0.0
    bandwidth: float = 0.0
    bf16: bool = True


def device_of(launch: LaunchSettings, slurm: SlurmSettings | None) -> Device:
    """The device of a run: ``launch.device``, else the type in ``slurm.gpus_per_node``, else what this machine has.

    Raises:
        ConfigError: launch.device names an unknown card.
    """
    if launch.device is not None:
        return this_cpu() if launch.device.lower() == "cpu" else _of_card(card_named(launch.device))
    if slurm is None:
        return this_gpu() or this_cpu()
    if slurm.gpus_per_node is None:
        memory = _slurm_memory(slurm.mem)
        return Device("cpu", f"{slurm.cpus_per_task} cores of a node", memory)
    kind, _, count = slurm.gpus_per_node.rpartition(":")
    card = card_like(kind) if kind else None
    number = int(count) if count.isdigit() else None
    if card is None:
        return Device("gpu", f"a {kind or 'card of unknown type'}", None, number)
    return _of_card(card, count=number)


def _of_card(card: Card, *, memory: int | None = None, count: int | None = None) -> Device:
    size = round(card.gib * GIB) if memory is None else memory
    return Device("gpu", card.name, size, count, card.half * 1e12, card.single * 1e12, card.bandwidth * 1e9, card.bf16)


@cache
def this_gpu() -> Device | None:
    """The cards that this process may use, asked of nvidia-smi; None without it, or where it lists none. Where it fails, the card is not
    known, and has no limit: a plan for this machine's CPU would refuse, or allow, what concerns a card."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return None
    if shutil.which(QUERY[0]) is None:
        return None
    with suppress(OSError, subprocess.SubprocessError, ValueError):
        printed = subprocess.run(QUERY, capture_output=True, text=True, timeout=QUERY_SECONDS, check=True).stdout
        names = [line.rpartition(",") for line in printed.splitlines() if "," in line]
        if not names:
            return None
        count = len(visible.split(",")) if visible else len(names)
        name, memory = names[0][0].strip(), int(float(names[0][2]) * 2**20)
        card = card_like(name, memory / GIB)
        return Device("gpu", name, memory, count) if card is None else _of_card(card, memory=memory, count=count)
    return Device("gpu", "an unknown card: nvidia-smi fails", None)


@cache
def this_cpu() -> Device:
    """This machine's cores: their memory, and their speed measured in a few hundredths of a second."""
    flags = _first_line("/proc/cpuinfo", "flags")
    bf16 = "avx512_bf16" in flags or "amx_bf16" in flags
    single, bandwidth = _measured()
    name = _first_line("/proc/cpuinfo", "model name") or "CPU"
    half = single * (BF16_ON_CPU if bf16 else 1)
    return Device("cpu", f"{cores()} cores ({name})", machine_memory(), None, half, single, bandwidth, bf16)


def _measured() -> tuple[float, float]:
    """Operations of a float32 product on all cores, and bytes copied by one, a second. In CPU time, the best of three each: what else runs
    on the machine at this moment does not count."""
    import numpy as np

    left, right, source = np.ones((PRODUCT, PRODUCT), np.float32), np.ones((PRODUCT, PRODUCT), np.float32), np.ones(COPIED, np.uint8)
    products, copies = [], []
    for _ in range(3):
        start = time.process_time()
        left @ right
        products.append(time.process_time() - start)
        start = time.process_time()
        source.copy()
        copies.append(time.process_time() - start)
    return cores() * 2 * PRODUCT**3 / max(min(products), SHORTEST), 2 * COPIED / max(min(copies), SHORTEST)


def machine_memory() -> int | None:
    """Bytes of this machine, or of its control group where that has fewer."""
    found = []
    with suppress(OSError, ValueError, IndexError):
        found.append(1024 * int(_first_line("/proc/meminfo", "MemTotal").split()[0]))
    with suppress(OSError, ValueError):
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    with suppress(OSError, ValueError, AttributeError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(found, default=None)


def _first_line(file: str, key: str) -> str:
    """What the first line of a file that begins with a key says; empty where there is none."""
    with suppress(OSError):
        for line in Path(file).read_text().splitlines():
            name, colon, value = line.partition(":")
            if colon and name.strip() == key:
                return value.strip()
    return ""


def _slurm_memory(text: str | None) -> int | None:
    """Bytes of Slurm's --mem (megabytes without a unit); None where it is not given, all of the node's (0), or unreadable."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    if text is None or not text.rstrip("KMGTkmgt").isdigit():
        return None
    number = int(text.rstrip("KMGTkmgt"))
    return number * units.get(text[-1].upper(), 2**20) or None
