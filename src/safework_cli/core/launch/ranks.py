"""The records of a run's processes: which are alive, what each failed of, and which failure was the first cause.

Every process writes ``ranks/N.json`` in the run folder, and its output goes to ``ranks/N.log``. torchrun turns every exit code into 1, and
the processes that did not fail first only know that a connection was closed: the command's error and exit code come from these records.
"""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import asdict, dataclass, field
from functools import reduce
from operator import or_
from pathlib import Path

from safework_cli.core import errors
from safework_cli.core.artifacts.manifest import write_durably
from safework_cli.core.artifacts.staging import this_host
from safework_cli.core.errors import SafeworkError
from safework_cli.core.system import PeakMemory, peak_memory

FOLDER = "ranks"
LAUNCHER_LOG = "launcher.log"
_OF_A_CONNECTION = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe|socket timeout|timed out|nccl|gloo|recvValue failed|DistNetworkError"
    r"|DistStoreError|DistBackendError",
    re.IGNORECASE,
)
"""What a process says when another one is gone: a consequence, not a cause."""
_NOT_JOINED = "RendezvousTimeoutError"
"""What torchrun ends with where another node's torchrun did not come."""
_EXIT = re.compile(r"rank\s*:\s*(\d+) \(local_rank: \d+\)\s+exitcode\s*:\s*(-?\d+)")
"""How torchrun reports a process that ended badly."""


@dataclass(slots=True)
class RankRecord:
    """What is known of one process.

    Attributes:
        state: "running", "done" or "failed".
        kind: name of the error's class, where it failed.
        what, why, do: of a ``SafeworkError``; of another error ``what`` is its text.
        trace: its traceback, where it is not an error for users.
        peak_memory_bytes, peak_gpu_memory_bytes: see ``core.system.PeakMemory``.
        time: of the last change, in seconds of the epoch.
    """

    rank: int
    pid: int
    host: str
    version: str
    state: str = "running"
    kind: str = ""
    what: str = ""
    why: str = ""
    do: str = ""
    trace: str = ""
    peak_memory_bytes: int = 0
    peak_gpu_memory_bytes: int | None = None
    time: float = field(default_factory=time.time)

    @property
    def is_consequence(self) -> bool:
        """Whether it failed only because another process did."""
        return (
            self.state == "failed" and not issubclass(_error_class(self.kind), SafeworkError) and bool(_OF_A_CONNECTION.search(self.what))
        )

    def error(self) -> Exception:
        """The error as the command raises it."""
        kind = _error_class(self.kind)
        if issubclass(kind, SafeworkError):
            return kind(self.what, self.why, self.do)
        return RuntimeError(f"process {self.rank} failed: {self.kind}: {self.what}\n{self.trace}")


def own_record(rank: int, version: str) -> RankRecord:
    """The record of this process as it begins."""
    return RankRecord(rank, os.getpid(), this_host(), version)


def write_record(folder: Path, record: RankRecord) -> None:
    """Writes a process's record, whole or not at all."""
    record.time, peak = time.time(), peak_memory()
    record.peak_memory_bytes, record.peak_gpu_memory_bytes = peak.host, peak.gpu
    write_durably(folder / f"{record.rank}.json", json.dumps(asdict(record)).encode())


def failed(record: RankRecord, error: BaseException, trace: str) -> RankRecord:
    """The record of a process that ends with an error."""
    record.state, record.kind = "failed", type(error).__name__
    if isinstance(error, SafeworkError):
        record.what, record.why, record.do = error.what, error.why, error.do
    else:
        record.what, record.trace = str(error) or record.kind, trace
    return record


def read_records(folder: Path) -> dict[int, RankRecord]:
    """Rank → record of every process that has written one."""
    found = {}
    for path in folder.glob("*.json"):
        if path.stem.isdigit():
            found[int(path.stem)] = RankRecord(**json.loads(path.read_bytes()))
    return dict(sorted(found.items()))


def peak_of_all(folder: Path) -> PeakMemory:
    """The largest memory of this process and of those that have a record in the folder."""
    parts = [PeakMemory(record.peak_memory_bytes, record.peak_gpu_memory_bytes) for record in read_records(folder).values()]
    return reduce(or_, parts, peak_memory())


def first_cause(folder: Path, size: int) -> Exception:
    """The error that ended a run of several processes.

    Args:
        folder: with the records, the logs and torchrun's log.
        size: processes that were to run.
    """
    records = read_records(folder)
    causes = [record for record in records.values() if record.state == "failed" and not record.is_consequence]
    if causes:
        return min(causes, key=lambda record: record.time).error()
    if killed := _killed(folder, records):
        rank, code = killed
        signal = f"signal {-code}" if code < 0 else f"exit code {code}"
        often = "; signal 9 is most often the machine's own, out of memory" if code == -9 else ""
        return SafeworkError(
            f"process {rank} of {size} was ended by {signal}",
            f"it could not say why{often}",
            f"its log: {folder / f'{rank}.log'}; the same command resumes from the last checkpoint",
        )
    if not records and _NOT_JOINED in _text(folder / LAUNCHER_LOG):
        return SafeworkError(
            f"the nodes did not meet, and none of the {size} processes was started: a node did not join in time",
            "srun could not start it there, or it cannot reach this node",
            f"torchrun's log: {folder / LAUNCHER_LOG}; launch.timeout_minutes=… waits longer",
        )
    if missing := [rank for rank in range(size) if rank not in records]:
        return SafeworkError(
            f"{len(missing)} of {size} processes did not start (first: process {missing[0]})",
            _last_line(folder / LAUNCHER_LOG),
            f"torchrun's log: {folder / LAUNCHER_LOG}",
        )
    consequences = [record for record in records.values() if record.state == "failed"]
    if consequences:
        record = min(consequences, key=lambda one: one.time)
        return SafeworkError(
            f"process {record.rank} of {size} lost the connection to another one: {record.what.splitlines()[0][:300]}",
            "a process hung or a network failed; none says that it failed first",
            f"the logs: {folder}; launch.timeout_minutes=… waits longer; the same command resumes from the last checkpoint",
        )
    return SafeworkError(f"the {size} processes ended without a result", _last_line(folder / LAUNCHER_LOG), f"the logs: {folder}")


def _killed(folder: Path, records: dict[int, RankRecord]) -> tuple[int, int] | None:
    """The process that torchrun reports as ended and that has no record of an end: its rank and exit code."""
    ends = [(int(rank), int(code)) for rank, code in _EXIT.findall(_text(folder / LAUNCHER_LOG))]
    by_signal = [(rank, code) for rank, code in ends if code < 0 and code != -15]  # torchrun ends the others by SIGTERM
    for rank, code in by_signal or ends:
        if rank not in records or records[rank].state == "running":
            return rank, code
    return None


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _last_line(path: Path) -> str:
    lines = [line for line in _text(path).splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _error_class(name: str) -> type[Exception]:
    found = getattr(errors, name, None)
    return found if isinstance(found, type) and issubclass(found, SafeworkError) else Exception
