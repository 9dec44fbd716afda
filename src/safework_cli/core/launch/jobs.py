"""Slurm jobs as references: ``job:ID`` means what the job of that number makes.

Each submission has a folder of its own in ``STORE/.slurm``: the script, the copies of the recipes, ``request.json`` with what the job
needs, and what it printed. ``STORE/.slurm/ID.job`` names the folder of the last submission that got that number: a cluster counts from the
beginning again one day.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from safework_cli.core.artifacts import Store
from safework_cli.core.artifacts.manifest import write_durably
from safework_cli.core.artifacts.staging import is_recent
from safework_cli.core.errors import EXIT_ERROR, InputError, SafeworkError

FOLDER = ".slurm"
REQUEST = "request.json"
"""What a submission needs: ``inputs`` (references by key), ``fork`` (a run's name or null), ``jobs`` (of an array), ``user``; and
``identity``, of what is asked for."""
PRINTED = "printed"
"""Beginning of the name of the file that takes a job's standard output; of an array's job the number follows."""
PREFIX = "job:"
"""Of a reference to what a Slurm job makes."""
REFERENCE = re.compile(r"job:(?P<job>\d+(?:_\d+)?)(?::(?P<subset>[\w.-]+))?")
ENDED = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
)  # fmt: skip
"""States in which a job stays. In every other one (a dozen, with more in new releases) it may still run."""
POLL_SECONDS = 5.0
PATIENCE_SECONDS = 600.0
"""For which who waits for a job asks again where Slurm does not answer: its controller is restarted now and then."""
_UNKNOWN = "Invalid job id"
"""What scontrol says of a job that it does not have."""
COMMAND_SECONDS = 60.0
"""For a command of Slurm's to answer."""


def job_of(reference: str) -> str | None:
    """The job whose result a reference means; None for another reference."""
    match = REFERENCE.fullmatch(reference)
    return match["job"] if match else None


def new_submission(store: Store, name: str, request: Mapping[str, Any]) -> Path:
    """Makes the folder of a submission, with what its job needs. gc reads that: the caller holds gc's lock."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = store.root / FOLDER / f"{name}-{stamp}-{secrets.token_hex(4)}"  # an array and the job that merges: one second
    folder.mkdir(parents=True)
    write_durably(folder / REQUEST, json.dumps({**request, "user": os.getuid()}, indent=1).encode())
    return folder


def keep_number(store: Store, job: str, folder: Path) -> None:
    """Notes that a job of this number runs what is in this folder."""
    write_durably(store.root / FOLDER / f"{job}.job", f"{folder.name}\n".encode())


def waiting_job(store: Store, identity: str) -> str | None:
    """The number of a job that was submitted with this identity and has not ended; None where there is none, or Slurm cannot be asked."""
    numbers: dict[str, float] = {}
    for file in (store.root / FOLDER).glob("*.job"):
        with suppress(OSError, ValueError, AttributeError):
            request = json.loads((store.root / FOLDER / _text(file) / REQUEST).read_bytes())
            if request.get("identity") == identity and not has_made(store, file.stem):
                numbers[file.stem] = file.stat().st_mtime
    queue = (_queue() if numbers else None) or set()
    return max(numbers.keys() & queue, key=lambda number: numbers[number], default=None)


def folder_of(store: Store, job: str) -> Path:
    """The folder of the last submission that got this number (an array's job has that of its array).

    Raises:
        InputError: none did.
    """
    with suppress(FileNotFoundError):
        return store.root / FOLDER / (store.root / FOLDER / f"{job.partition('_')[0]}.job").read_text().strip()
    raise InputError(
        f"no Slurm job {job} was submitted with the store {store.root}",
        "job:ID is a reference to what a job of safework's makes",
        "name the artifact (safework artifacts ls), or give the --store that the job was submitted with",
    )


def log_of(store: Store, job: str) -> Path:
    """Where Slurm writes what a job prints for people."""
    return store.root / FOLDER / f"{job}.log"


def made_by_job(store: Store, reference: str) -> str:
    """The reference that a job has printed, with the subset that was asked for.

    Raises:
        InputError: the job was not submitted with this store, has not ended, or made nothing.
    """
    match = REFERENCE.fullmatch(reference)
    assert match is not None
    made = _printed(store, match["job"])
    if not made:
        raise InputError(
            f"Slurm job {match['job']} has made nothing yet",
            f"it waits, runs or has failed: its log is {log_of(store, match['job'])}",
            f"squeue --job={match['job']}; a stage that is submitted with this reference waits for the job",
        )
    return made + (f":{match['subset']}" if match["subset"] else "")


def has_made(store: Store, job: str) -> bool:
    """Whether a job has printed what it made: it has ended, though a gate of it may have failed. Raises InputError as ``folder_of``."""
    return bool(_printed(store, job))


def _printed(store: Store, job: str) -> str:
    return _text(folder_of(store, job) / printed_file(job.partition("_")[2]))


def printed_file(number: str = "") -> str:
    """The file in a submission's folder that takes a job's standard output.

    Args:
        number: of an array's job.
    """
    return f"{PRINTED}-{number}" if number else PRINTED


def _text(file: Path) -> str:
    return file.read_text().strip() if file.exists() else ""


def outcome_of(store: Store, job: str) -> dict[str, Any]:
    """Waits for a job, requeues included, and says how it ended: ``state``, ``code``, ``ref`` (None where it made nothing) and ``log``.

    Raises:
        SafeworkError: Slurm knows no such job, or has not answered for some minutes.
    """
    answered = time.monotonic()
    while True:
        try:
            line = slurm(["scontrol", "--oneliner", "show", "job", job])
        except SafeworkError as error:
            if _UNKNOWN in str(error) or time.monotonic() - answered > PATIENCE_SECONDS:
                raise
            time.sleep(POLL_SECONDS)
            continue
        answered = time.monotonic()
        state, code = re.search(r"JobState=(\w+)", line), re.search(r" ExitCode=(\d+):(\d+)", line)
        if state is None or code is None:
            raise SafeworkError(f"Slurm knows no job {job}", line[:200], f"sacct --job={job}")
        if state[1] in ENDED:
            made = made_by_job(store, f"{PREFIX}{job}") if has_made(store, job) else None
            number = int(code[1]) or (0 if state[1] == "COMPLETED" else EXIT_ERROR)
            return {"state": state[1], "code": number, "ref": made, "log": str(log_of(store, job))}
        time.sleep(POLL_SECONDS)


def needed_by_jobs(store: Store) -> tuple[list[str], list[str]]:
    """What submitted jobs will read: references of artifacts, and names of runs that are to be forked.

    A job needs nothing more once it has printed what it made, or, as far as Slurm can be asked, has ended otherwise: what its run then
    needs is said by the run's own folder. Where Slurm cannot be asked, it counts as waiting.

    Raises:
        InputError: what a job needs cannot be read.
    """
    references: list[str] = []
    forked: list[str] = []
    folders = sorted((store.root / FOLDER).glob(f"*/{REQUEST}"))
    if not folders:
        return references, forked
    numbers = {_text(file): file.stem for file in (store.root / FOLDER).glob("*.job")}
    queue = _queue()
    for file in folders:
        try:
            request = json.loads(file.read_bytes())
            inputs = [str(reference) for reference in request["inputs"].values()]
        except FileNotFoundError:
            continue  # the folder was deleted meanwhile
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(
                f"{file} cannot be read: {error}",
                "it says what a submitted job will read, so that nothing of it is deleted",
                f"once that job has ended, delete {file.parent}",
            ) from error
        if not _may_run(file.parent, request, numbers.get(file.parent.name), queue):
            continue
        for reference in inputs:
            with suppress(InputError):  # of a job that has made nothing yet
                references.append(made_by_job(store, reference) if job_of(reference) else reference)
        forked += [request["fork"]] if isinstance(request.get("fork"), str) else []
    return references, forked


def _may_run(folder: Path, request: Mapping[str, Any], job: str | None, queue: set[str] | None) -> bool:
    """Whether a submission's job may still start (again).

    Args:
        job: its number; None where it never got one, or another submission got the same one later.
        queue: the jobs that Slurm has, which may hide other people's; None where it cannot be asked.
    """
    if sum(1 for file in folder.glob(f"{PRINTED}*") if _text(file)) >= request.get("jobs", 1):
        return False
    if job is None:
        return is_recent(folder)  # sbatch is being asked just now, or the command was killed then
    return queue is None or job in queue or request.get("user") != os.getuid()


def _queue() -> set[str] | None:
    """The numbers of the jobs in Slurm's queue; None where it cannot be asked."""
    try:
        return set(slurm(["squeue", "--noheader", "--format=%F"]).split())
    except SafeworkError:
        return None


def slurm(command: Sequence[str]) -> str:
    """What a command of Slurm's prints.

    Raises:
        SafeworkError: it is not installed, does not answer, or refuses.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SafeworkError(f"{command[0]} did not answer", str(error), "ask the cluster's support, or try again") from error
    if done.returncode and "munge" in done.stderr.lower():
        raise SafeworkError(
            f"{command[0]} could not say who you are: munge, by which Slurm knows its users, does not work on this machine",
            next(line for line in done.stderr.splitlines() if "munge" in line.lower())[:300],
            "the cluster's support has to start munged here, with the key that the other nodes have (/etc/munge/munge.key)",
        )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise SafeworkError(f"{command[0]} refused", said[-1] if said else f"exit code {done.returncode}", "change the slurm settings")
    return done.stdout
