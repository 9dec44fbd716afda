"""The Slurm form of a command: a readable batch script, submitted by sbatch, whose reference is ``job:ID`` until its job has made one.

The script runs the command that was typed, from copies of its recipes and with the versions of its inputs, so that what is edited or made
while the job waits does not change it. Slurm sends SIGUSR1 ahead of the time limit; the command then writes a checkpoint and exits with 75,
and the script has the job requeued: it resumes where it stopped. A job that gained nothing since its last start is not requeued again.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safework_cli.core.artifacts import Store
from safework_cli.core.artifacts.references import StoreReference, parse_reference
from safework_cli.core.artifacts.store import GC_LOCK
from safework_cli.core.config import Layer
from safework_cli.core.errors import EXIT_AGAIN, ConfigError, InputError, SafeworkError
from safework_cli.core.launch.jobs import FOLDER, job_of, keep_number, new_submission, printed_file, slurm
from safework_cli.core.settings import LaunchSettings, SlurmSettings

RESTARTED = "SLURM_RESTART_COUNT"
_BARE = re.compile(r"[A-Za-z0-9_.,:=@%+/-]+")
"""A value that sbatch reads as it is written."""
LONGEST_COPY = 80
"""Characters of a recipe's name that its copy has."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Batch:
    """A command that is to run as a Slurm job.

    Attributes:
        stage: the command's name: its first words after ``safework``.
        recipes: what was read of each.
        words: of the command, after its recipes.
        inputs: reference of each input, with its version where it is there already.
        name: of the job.
        launch: how many processes it starts.
        slurm: partition, time and the rest.
        after: jobs that make its inputs.
        shards: jobs of an array, each of which runs the command with ``shard=`` of its own; 1 for a job by itself.
        fork: the run whose checkpoint it starts from.
        identity: of what is asked for: the same command again means this job while it has not ended.
    """

    stage: str
    recipes: Sequence[Layer]
    words: Sequence[str]
    name: str
    launch: LaunchSettings
    slurm: SlurmSettings
    inputs: Mapping[str, str] = field(default_factory=dict)
    after: Sequence[str] = ()
    shards: int = 1
    fork: str | None = None
    identity: str | None = None


def script(batch: Batch, store: Store, folder: Path, environment: Mapping[str, str]) -> str:
    """The batch script.

    Args:
        folder: in which it and the copies of the recipes lie.
        environment: whose SAFEWORK_ variables the job gets.

    Raises:
        ConfigError: an option, a path or a variable's name cannot be written into a script.
    """
    of_array = batch.shards > 1
    options = {
        "job-name": f"safework-{batch.name}",
        **({"array": f"1-{batch.shards}"} if of_array else {}),
        "output": _pattern(store.root / FOLDER) + ("/%A_%a.log" if of_array else "/%j.log"),
        "open-mode": "append",
        "nodes": str(batch.launch.nodes),
        "ntasks-per-node": "1",
        "signal": f"B:USR1@{batch.slurm.signal_seconds}",
        "requeue": "",
        **batch.slurm.options(batch.launch),
    }
    if batch.after:
        options |= {"dependency": "afterok:" + ":".join(batch.after), "kill-on-invalid-dep": "yes"}
    lines = ["#!/bin/bash", *(_option(name, value) for name, value in options.items()), ""]
    lines += ["set -u", f"cd {shlex.quote(str(Path.cwd()))} || exit 1", f"export SAFEWORK_STORE={shlex.quote(str(store.root))}"]
    lines += [
        f"export {_variable(name)}={shlex.quote(value)}"
        for name, value in sorted(environment.items())
        if name.startswith("SAFEWORK_") and name != "SAFEWORK_STORE"
    ]
    copies = [word for number, recipe in enumerate(batch.recipes) for word in ("-c", str(folder / _copy_name(number, recipe)))]
    pinned = [f"{key}={reference}" for key, reference in batch.inputs.items()]
    typed = [word for word in batch.words if word.partition("=")[0] not in batch.inputs]
    command = shlex.join([*program(), *batch.stage.split(), *copies, *typed, *pinned, "slurm=null"])
    command += f" shard=$SLURM_ARRAY_TASK_ID/{batch.shards}" if of_array else ""
    printed = f"{shlex.quote(str(folder / printed_file()))}{'-$SLURM_ARRAY_TASK_ID' if of_array else ''}"
    lines += [
        "safework_child= safework_stopped=",
        'stop_safework() { safework_stopped=1; [ -z "$safework_child" ] || kill -"$1" $safework_child 2>/dev/null; }',
        "trap 'stop_safework USR1' USR1   # ahead of the time limit: a checkpoint, and exit code 75",
        "trap 'stop_safework TERM' TERM",
        *batch.slurm.setup,
        "",
        'if [ -z "$safework_stopped" ]; then                            # the signal may have come during the lines above',
        f"    {command} > {printed} &",
        "    safework_child=$!",
        '    [ -z "$safework_stopped" ] || { sleep 1; kill -USR1 $safework_child; }',
        "    while kill -0 $safework_child 2>/dev/null; do              # a signal ends wait, not the command",
        "        wait $safework_child",
        "    done",
        "    wait $safework_child; code=$?",
        "fi",
        'if [ -n "$safework_stopped" ]; then                            # before the command was there, or could take a signal',
        f"    case ${{code:-{EXIT_AGAIN}}} in $((128 + $(kill -l USR1))) | 143 | {EXIT_AGAIN}) code={EXIT_AGAIN} ;; esac",
        "fi",
        f"if [ $code -eq {EXIT_AGAIN} ]; then                                    # resumes from the checkpoint",
        "    scontrol requeue $SLURM_JOB_ID && sleep 60",
        "fi",
        "exit $code",
    ]
    return "\n".join(lines) + "\n"


def _option(name: str, value: str) -> str:
    """A line of the script with an option of sbatch's. In double quotes sbatch takes blanks and # as they are, and a character after a
    backslash; nothing makes a line break part of a value.

    Raises:
        ConfigError: the value has one.
    """
    if not value:
        return f"#SBATCH --{name}"
    if not value.isprintable():
        raise ConfigError(
            f"{value!r} cannot be given to sbatch as --{name}",
            "a batch script has an option on one line, and this has line breaks or control characters",
            "name another store (--store FOLDER)" if name == "output" else "change the slurm settings",
        )
    if not _BARE.fullmatch(value):
        value = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"#SBATCH --{name}={value}"


def _pattern(folder: Path) -> str:
    """A folder as part of a file name in which sbatch replaces ``%j``. Raises ConfigError where it has a backslash, which ends that."""
    if "\\" in str(folder):
        raise ConfigError(
            f"the store {folder} has a backslash in its path",
            "sbatch replaces no job's number in the name of a log file with a backslash",
            "name another store: --store FOLDER, or export SAFEWORK_STORE=FOLDER",
        )
    return str(folder).replace("%", "%%")


def _variable(name: str) -> str:
    if not _VARIABLE.fullmatch(name):
        raise ConfigError(f"the environment variable {name!r} cannot be given to the job", "its name is not one of a shell's", "unset it")
    return name


def submit(batch: Batch, store: Store, environment: Mapping[str, str]) -> str:
    """Writes the script and its copies of the recipes, submits it, and returns the job's number.

    Raises:
        InputError: an input was deleted in the meantime.
        SafeworkError: sbatch is missing or refuses, or the script cannot be written.
    """
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "slurm is set, and sbatch is not installed", "this machine cannot submit jobs", "log in to the cluster; or slurm=null"
        )
    script(batch, store, store.root / FOLDER / batch.name, environment)  # what it refuses leaves no folder
    with store.lock(GC_LOCK):
        for reference in batch.inputs.values():
            _refuse_if_deleted(store, reference)
        request = {"stage": batch.stage, "inputs": dict(batch.inputs), "fork": batch.fork, "jobs": batch.shards, "identity": batch.identity}
        folder = new_submission(store, batch.name, request)
    for number, recipe in enumerate(batch.recipes):
        (folder / _copy_name(number, recipe)).write_text(recipe.text, encoding="utf-8")
    file = folder / "job.sh"
    file.write_text(script(batch, store, folder, environment), encoding="utf-8")
    job = slurm(["sbatch", "--parsable", str(file)]).split(";")[0].strip()
    if not re.fullmatch(r"\d+", job):
        raise SafeworkError(f"sbatch did not print a job's number but '{job[:100]}'", f"it was given {file}", "change the slurm settings")
    keep_number(store, job, folder)
    return job


def _refuse_if_deleted(store: Store, reference: str) -> None:
    parsed = None if job_of(reference) else parse_reference(reference)
    if isinstance(parsed, StoreReference) and parsed.version and store.ancestor(reference.split(":")[0]) is None:
        raise InputError(f"{reference} was deleted in the meantime", "a gc ran at the same time", "make it again")


def standstill(
    stage: str, before: int, after: int, environment: Mapping[str, str], *, trains: bool, starts_over: bool
) -> SafeworkError | None:
    """The error of a job that Slurm started again and that gained nothing since, so that its next start would end like this one; None
    where it gained something, or was started for the first time.

    Args:
        before, after: what is kept of the run: the step of its last checkpoint, or the bytes of its journals.
        trains: the former.
        starts_over: the stage keeps nothing.
    """
    if environment.get(RESTARTED, "0") == "0" or after > before:
        return None
    job = environment.get("SLURM_JOB_ID")
    if trains:
        return SafeworkError(
            f"Slurm job {job} was started again at step {before} and stopped without having gained one",
            "its time limit is shorter than a step, with what comes before the first one and the checkpoint",
            "more time (slurm.time=…), or smaller steps; the same command resumes from the last checkpoint",
        )
    if starts_over:
        return SafeworkError(
            f"Slurm job {job} was started again and stopped before it was done",
            f"{stage} keeps nothing of a run that is stopped: each start begins from nothing",
            "give it the time for all of it (slurm.time=…)",
        )
    return SafeworkError(
        f"Slurm job {job} was started again and stopped without having gained anything",
        "its time limit is shorter than one of the parts that are kept (a batch of replies, a chunk of rows), with what comes before it",
        "more time (slurm.time=…), or smaller parts; the same command continues with what is kept",
    )


def program() -> list[str]:
    """How this program is started: as it was now, in the environment that it is installed in."""
    return [str(Path(sys.argv[0]).absolute())] if Path(sys.argv[0]).name == "safework" else [sys.executable, "-m", "safework_cli"]


def _copy_name(number: int, recipe: Layer) -> str:
    return f"{number}-{Path(recipe.source).name[-LONGEST_COPY:]}"
