"""The Slurm form of a command: a readable batch script, submitted by sbatch, whose reference is ``job:ID`` until its job has made one.

The script runs the command that was typed, from copies of its recipes, so that what is edited while the job waits does not change it.
Slurm sends SIGUSR1 ahead of the time limit; the command then writes a checkpoint and exits with 75, and the script has the job requeued:
it resumes where it stopped. A job that gained no step since its last start is not requeued again.
"""

from __future__ import annotations

import re
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safework_cli.core.artifacts import Store
from safework_cli.core.errors import EXIT_AGAIN, EXIT_ERROR, ConfigError, InputError, SafeworkError
from safework_cli.core.settings import LaunchSettings, SlurmSettings

FOLDER = ".slurm"
PREFIX = "job:"
"""Of a reference to what a Slurm job makes."""
REFERENCE = re.compile(r"job:(?P<job>\d+(?:_\d+)?)(?::(?P<subset>[\w.-]+))?")
NOT_ENDED = ("PENDING", "RUNNING", "REQUEUED", "COMPLETING", "CONFIGURING", "SUSPENDED")
RESTARTED = "SLURM_RESTART_COUNT"
POLL_SECONDS = 5.0
COMMAND_SECONDS = 60.0
"""For a command of Slurm's to answer."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A command that is to run as a Slurm job.

    Attributes:
        words: of the command, after ``safework``, with the recipes as they were typed.
        recipes: files that the words name.
        name: of the job.
        launch: how many processes it starts.
        slurm: partition, time and the rest.
        after: jobs that make its inputs.
        shards: jobs of an array, each of which runs the command with ``shard=`` of its own; 1 for a job by itself.
    """

    words: Sequence[str]
    recipes: Sequence[Path]
    name: str
    launch: LaunchSettings
    slurm: SlurmSettings
    after: Sequence[str] = ()
    shards: int = 1


def job_of(reference: str) -> str | None:
    """The job whose result a reference means; None for another reference."""
    match = REFERENCE.fullmatch(reference)
    return match["job"] if match else None


def made_by_job(store: Store, reference: str) -> str:
    """The reference that a job has printed, with the subset that was asked for.

    Raises:
        InputError: the job has not ended, or made nothing.
    """
    match = REFERENCE.fullmatch(reference)
    assert match is not None
    made = _printed(store, match["job"])
    if not made:
        raise InputError(
            f"Slurm job {match['job']} has made nothing yet",
            f"it waits, runs or has failed: its log is {store.root / FOLDER / (match['job'] + '.log')}",
            f"squeue --job={match['job']}; a stage that is submitted with this reference waits for the job",
        )
    return made + (f":{match['subset']}" if match["subset"] else "")


def has_made(store: Store, job: str) -> bool:
    """Whether a job has printed what it made: it has ended, though a gate of it may have failed."""
    return bool(_printed(store, job))


def _printed(store: Store, job: str) -> str:
    file = store.root / FOLDER / f"{job}.ref"
    return file.read_text().strip() if file.exists() else ""


def outcome_of(store: Store, job: str) -> dict[str, Any]:
    """Waits for a job, requeues included, and says how it ended: ``state``, ``code``, ``ref`` (None where it made nothing) and ``log``."""
    while True:
        line = _slurm(["scontrol", "--oneliner", "show", "job", job])
        state, code = re.search(r"JobState=(\w+)", line), re.search(r" ExitCode=(\d+):(\d+)", line)
        if state is None or code is None:
            raise SafeworkError(f"Slurm knows no job {job}", line[:200], f"sacct --job={job}")
        if state[1] not in NOT_ENDED:
            made = made_by_job(store, f"{PREFIX}{job}") if has_made(store, job) else None
            number = int(code[1]) or (0 if state[1] == "COMPLETED" else EXIT_ERROR)
            return {"state": state[1], "code": number, "ref": made, "log": str(store.root / FOLDER / f"{job}.log")}
        time.sleep(POLL_SECONDS)


def script(batch: Batch, store: Store, folder: Path, environment: Mapping[str, str]) -> str:
    """The batch script.

    Args:
        folder: in which it and the copies of the recipes lie.
        environment: whose SAFEWORK_ variables the job gets.
    """
    of_array = batch.shards > 1
    job = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" if of_array else "$SLURM_JOB_ID"
    options = {
        "job-name": f"safework-{batch.name}",
        **({"array": f"1-{batch.shards}"} if of_array else {}),
        "output": str(store.root / FOLDER / ("%A_%a.log" if of_array else "%j.log")),
        "open-mode": "append",
        "nodes": str(batch.launch.nodes),
        "ntasks-per-node": "1",
        "signal": f"B:USR1@{batch.slurm.signal_seconds}",
        "requeue": "",
        **batch.slurm.options(batch.launch),
    }
    if batch.after:
        options |= {"dependency": "afterok:" + ":".join(batch.after), "kill-on-invalid-dep": "yes"}
    lines = ["#!/bin/bash", *(f"#SBATCH --{name}{'=' if value else ''}{value}" for name, value in options.items()), ""]
    lines += ["set -u", f"cd {shlex.quote(str(Path.cwd()))}", f"export SAFEWORK_STORE={shlex.quote(str(store.root))}"]
    lines += [
        f"export {name}={shlex.quote(value)}"
        for name, value in sorted(environment.items())
        if name.startswith("SAFEWORK_") and name != "SAFEWORK_STORE"
    ]
    lines += [*batch.slurm.setup, ""]
    command = shlex.join([*program(), *_with_copies(batch, folder), "slurm=null"])
    command += f" shard=$SLURM_ARRAY_TASK_ID/{batch.shards}" if of_array else ""
    lines += [
        f"{command} > {shlex.quote(str(store.root / FOLDER))}/{job}.ref &",
        "command=$!",
        "trap 'kill -USR1 $command 2>/dev/null' USR1   # ahead of the time limit: a checkpoint, and exit code 75",
        "trap 'kill -TERM $command 2>/dev/null' TERM",
        "code=0",
        "while true; do                                # a signal ends wait, not the command",
        "    wait $command; code=$?",
        "    kill -0 $command 2>/dev/null || break",
        "done",
        f"if [ $code -eq {EXIT_AGAIN} ]; then                   # resumes from the checkpoint",
        "    scontrol requeue $SLURM_JOB_ID && sleep 60",
        "fi",
        "exit $code",
    ]
    return "\n".join(lines) + "\n"


def submit(batch: Batch, store: Store, environment: Mapping[str, str]) -> str:
    """Writes the script and its copies of the recipes, submits it, and returns the job's number.

    Raises:
        SafeworkError: sbatch is missing or refuses.
    """
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "slurm is set, and sbatch is not installed", "this machine cannot submit jobs", "log in to the cluster; or slurm=null"
        )
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = store.root / FOLDER / f"{batch.name}-{stamp}-{secrets.token_hex(4)}"  # an array and the job that merges: one second
    folder.mkdir(parents=True)
    for number, recipe in enumerate(batch.recipes):
        shutil.copyfile(recipe, folder / _copy_name(number, recipe))
    file = folder / "job.sh"
    file.write_text(script(batch, store, folder, environment), encoding="utf-8")
    done = _slurm(["sbatch", "--parsable", str(file)])
    return done.split(";")[0].strip()


def standstill(started_at: int, stopped_at: int, environment: Mapping[str, str]) -> SafeworkError | None:
    """The error of a job that Slurm started again and that gained no step since, so that its next start would end like this one; None
    where it gained some, or was started for the first time.

    Args:
        started_at, stopped_at: steps of the last checkpoint, 0 without one.
    """
    if environment.get(RESTARTED, "0") == "0" or stopped_at > started_at:
        return None
    return SafeworkError(
        f"Slurm job {environment.get('SLURM_JOB_ID')} was started again at step {started_at} and stopped without having gained one",
        "its time limit is shorter than a step, with what comes before the first one and the checkpoint",
        "more time (slurm.time=…), or smaller steps; the same command resumes from the last checkpoint",
    )


def program() -> list[str]:
    """How this program is started: as it was now, in the environment that it is installed in."""
    return [str(Path(sys.argv[0]).absolute())] if Path(sys.argv[0]).name == "safework" else [sys.executable, "-m", "safework_cli"]


def _copy_name(number: int, recipe: Path) -> str:
    return f"{number}-{recipe.name}"


def _with_copies(batch: Batch, folder: Path) -> list[str]:
    """The words with the copies of the recipes in place of the files that were typed."""
    copies = {str(recipe): str(folder / _copy_name(number, recipe)) for number, recipe in enumerate(batch.recipes)}
    return [copies.get(word, word) for word in batch.words]


def _slurm(command: Sequence[str]) -> str:
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
