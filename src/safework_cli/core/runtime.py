"""The life of a run that was prepared: reuse a finished result, run in its folder, commit."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from filelock import Timeout

from safework_cli.core import resume, runs
from safework_cli.core.artifacts import Artifact, Manifest, Store
from safework_cli.core.artifacts.manifest import write_durably
from safework_cli.core.artifacts.staging import this_host
from safework_cli.core.artifacts.store import GC_LOCK
from safework_cli.core.capture import stdout_to_stderr, warnings_recorded
from safework_cli.core.changes import changed_inputs, refuse_if_changed, refuse_if_deleted
from safework_cli.core.checkpoints import step_of
from safework_cli.core.errors import (
    EXIT_DONE,
    EXIT_GATE,
    EXIT_TOO_MANY_FAILED,
    ConfigError,
    Held,
    InputError,
    RunAgain,
    SafeworkError,
)
from safework_cli.core.journal import read_journal
from safework_cli.core.launch import ranks
from safework_cli.core.launch.slurm import RESTARTED, standstill
from safework_cli.core.launch.start import run_on_ranks
from safework_cli.core.memory import run_in_memory
from safework_cli.core.progress import EVENTS, METRICS, Progress, make_display
from safework_cli.core.record import Prepared, keep_record, manifest_of, request_of
from safework_cli.core.run_states import last_work, seconds_before
from safework_cli.core.settings import verdict_settings
from safework_cli.core.signals import StopRequest, stops_raised
from safework_cli.core.stage import Outcome, Stage, WorkDir
from safework_cli.core.system_errors import explain

RECORDS = (runs.LOCK, runs.REQUEST, EVENTS, METRICS, ranks.FOLDER)


@dataclass(slots=True)
class Result:
    """What a command ends with."""

    artifact: Artifact
    already: bool
    exit_code: int
    note: str = ""
    """What people should know of how it was made."""


def execute(prepared: Prepared, store: Store, *, fresh: bool = False, quiet: bool = False) -> Result:
    """Runs a prepared request, or returns what an earlier run of the same request made.

    Args:
        fresh: run it from the beginning whatever is there. (A Slurm job that was begun so and is started again continues with what it has.)

    Raises:
        SafeworkError: as the stage refuses or fails; the run folder is kept, and the same command continues.
    """
    if prepared.plan.refusals:
        raise prepared.plan.refusals[0]
    folder = prepared.run_folder(store)
    with _requeues_end(prepared.stage, folder), _failures_explained(prepared, store, folder):
        if not fresh and (done := existing(prepared, store)):
            return done
        with runs.locked(folder):
            finished = None if fresh else existing(prepared, store, held=True)  # another process may have finished while this one waited
            result = finished or _run(prepared, store, folder, fresh=fresh, quiet=quiet)
            with suppress(OSError):  # the result is there: a file that NFS keeps because it is open is left to gc
                runs.empty(folder)
        return result


@contextmanager
def _requeues_end(stage: Stage, folder: Path) -> Iterator[None]:
    """Turns a stop into an error of which no job is started again, where this is a job that was and gained nothing since."""

    def kept() -> int:
        return _step_of(folder) if stage.many_processes else runs.journal_bytes(folder)

    before = kept()
    try:
        with stops_raised():
            yield
    except Held:
        raise  # it waits for another process
    except RunAgain as stopped:
        useless = standstill(stage.name, before, kept(), os.environ, trains=stage.many_processes, starts_over=stage.starts_over)
        if useless is not None:
            raise useless from stopped
        raise


@contextmanager
def _failures_explained(prepared: Prepared, store: Store, folder: Path) -> Iterator[None]:
    """Turns what ends a run into the error that a user can act on, and removes a run folder that has nothing to resume."""
    try:
        yield
    except Timeout:
        if _held_by_another_job(folder):
            raise SafeworkError(
                f"another process is running this stage on these inputs ({_holder(folder)})",
                f"Slurm job {os.environ['SLURM_JOB_ID']} would be started again and again until that one ends",
                "wait for it; the same command then prints what it made",
            ) from None
        raise Held(
            f"another process is running this stage on these inputs ({_holder(folder)})",
            "two processes never write the same run",
            "wait for it; the same command then prints what it made",
        ) from None
    except (ConfigError, InputError):
        if not _has_work(folder):
            runs.clear(folder)
        raise
    except SafeworkError:
        raise
    except Exception as error:
        if known := explain(error, store.root, prepared.resolved.config):
            raise known from error
        refuse_if_deleted(prepared)
        if isinstance(error, BrokenPipeError):  # click takes it for a closed stdout, and exits without a message
            raise RuntimeError("the other end of a pipe is gone: a child process died") from error
        raise


def _has_work(folder: Path) -> bool:
    """Whether a run folder holds more than the request, the record and a payload that was begun: checkpoints, journals."""
    work = [path for path in folder.iterdir() if path.name not in (*RECORDS, "output")] if folder.is_dir() else []
    return any(any(path.iterdir()) if path.is_dir() else path.stat().st_size for path in work)


def existing(prepared: Prepared, store: Store, *, held: bool = False) -> Result | None:
    """What an earlier run of the same request made, judged by this one's gates; None where none was run to its end, and where one that was
    begun later with --fresh can be resumed. A run folder that was left by a kill after the commit is removed.

    Args:
        held: the caller holds the run folder's lock.
    """
    made, folder = store.made_by(prepared.fingerprint, prepared.kind), prepared.run_folder(store)
    if not made or (_afresh(folder, made) and (held or not runs.is_running(folder))):
        return None
    wanted = verdict_settings(prepared.resolved.config)
    alike = [a for a in made if all(a.manifest.config.get(name) == value for name, value in wanted.items())]
    found = next((a for a in reversed(alike or made) if a.name == prepared.name), (alike or made)[-1])
    store.verify(found)
    if not held and not _afresh(folder, made):
        runs.clear(folder)
    if not alike:
        return _judged_again(prepared, store, found, wanted)
    if found.name != prepared.name:
        found = store.relink(found, prepared.name)
    named = prepared.stage.unpinned(prepared.resolved.config)
    note = f"made on {found.manifest.created[:10]}; {', '.join(named)} may have changed since: --fresh asks again" if named else ""
    return Result(found, True, exit_code(found.manifest), note)


def _afresh(folder: Path, made: Sequence[Artifact]) -> bool:
    """Whether a run folder has work of a run that was begun with --fresh after all of these versions."""
    request = runs.read_request(folder) or {}
    return not any(runs.ends(artifact, request) for artifact in made) and runs.SUPERSEDED in request and _has_work(folder)


def _judged_again(prepared: Prepared, store: Store, found: Artifact, wanted: Mapping[str, Any]) -> Result:
    """A finished result, judged by other values of the stage's ``verdict`` settings: a further version with the same payload, because the
    manifest says which gates were applied."""
    config = prepared.resolved.config
    outcome = prepared.stage.judge_again(config, found)
    note = f"{' and '.join(wanted)} applied to what {found.ref} holds: nothing was run again"
    changes = {
        "config": config.model_dump(mode="json"),
        "config_sources": {key: source for key, _, source in prepared.resolved.rows()},
        "failed_gates": outcome.failed_gates,
        "tolerated_items": outcome.tolerated_items,
        "notes": [*found.manifest.notes, note],
    }
    made = store.relink(found, prepared.name, **changes)
    return Result(made, True, exit_code(made.manifest), note)


def _run(prepared: Prepared, store: Store, folder: Path, *, fresh: bool, quiet: bool) -> Result:
    """Runs the stage in its locked folder and commits what it made."""
    prepared.plan.check_start()
    asked, fresh = fresh, fresh and not _begun_by_this_job(folder)
    superseded = (runs.read_request(folder) or {}).get(runs.SUPERSEDED)
    if fresh and not prepared.stage.starts_over:
        superseded = [runs.version_key(artifact) for artifact in store.made_by(prepared.fingerprint, prepared.kind)]
    written = 0.0 if fresh else last_work(folder)
    for old in folder.iterdir():
        if (fresh or old.name == "output") and old.name != runs.LOCK:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    if changed := changed_inputs(prepared):
        raise InputError(
            f"an input changed after the plan was made: {', '.join(changed)}",
            "the run would be recorded as one from the old content",
            "run the same command again once nothing writes to it",
        )
    request = request_of(prepared) | ({} if superseded is None else {runs.SUPERSEDED: superseded})
    with store.lock(GC_LOCK):
        refuse_if_deleted(prepared)
        write_durably(folder / runs.REQUEST, json.dumps(request, indent=2).encode())
    forked = resume.begin(store.runs, prepared.fork, folder, request) if prepared.fork else None
    started = time.monotonic()
    notes = [forked] if forked else _others(store, folder, request, prepared.stage)
    outcome = _run_stage(prepared, folder, notes, written, fresh=asked, quiet=quiet)
    refuse_if_changed(prepared)
    outcome.notes += [forked] if forked else []
    output = folder / "output"
    keep_record(folder, output)
    peak = ranks.peak_of_all(folder / ranks.FOLDER)
    before = seconds_before(read_journal(folder / EVENTS, broken=[]))
    manifest = manifest_of(prepared, outcome, wall_seconds=before + time.monotonic() - started, peak=peak)
    return Result(store.commit(output, manifest), False, exit_code(manifest))


def _begun_by_this_job(folder: Path) -> bool:
    """Whether this is a Slurm job that was started again, and the run in this folder is the one that it began."""
    job = os.environ.get("SLURM_JOB_ID")
    return bool(job) and os.environ.get(RESTARTED, "0") != "0" and (runs.read_request(folder) or {}).get("job") == job


def _held_by_another_job(folder: Path) -> bool:
    """Whether this is a Slurm job, and a process that is not of it works in the folder. (One of its own is about to end, where the job was
    started again on another node; and where none is named, the one that holds the lock has just begun.)"""
    job, request = os.environ.get("SLURM_JOB_ID"), runs.read_request(folder)
    return bool(job) and request is not None and request.get("job") != job


def _step_of(folder: Path) -> int:
    """The step of a run's last checkpoint, 0 without one."""
    checkpoint = resume.checkpoint_of(folder)
    return 0 if checkpoint is None else step_of(checkpoint)


def _others(store: Store, folder: Path, request: Mapping[str, Any], stage: Stage) -> list[str]:
    """A sentence for each unfinished run that a run from the beginning could resume from."""
    if resume.checkpoint_of(folder) is not None:
        return []

    def made(other: Mapping[str, Any]) -> bool:
        return any(runs.ends(artifact, other) for artifact in store.made_by(str(other.get("fingerprint")), stage.output))

    return resume.unfinished(store.runs, folder, request, made)


def _run_stage(prepared: Prepared, folder: Path, notes: Sequence[str], written: float, *, fresh: bool, quiet: bool) -> Outcome:
    """Calls the stage, with its progress shown and recorded and signals turned into errors.

    Args:
        written: when an earlier attempt last wrote something; 0 where there was none.
        fresh: the command has --fresh.
    """
    progress, stop = Progress(folder, make_display(quiet=quiet)), StopRequest.current()
    progress.event("started", pid=os.getpid(), host=this_host(), **({"written": written} if written else {}))
    for line in notes:
        progress.note(line)
    for line in prepared.resolved.config.without_effect():
        progress.warn(line)
    try:
        with stop.installed(), warnings_recorded(progress), stdout_to_stderr():
            stop.begin(prepared.stage.name, starts_over=prepared.stage.starts_over, fresh=fresh)
            work = WorkDir(folder, prepared.fingerprint, progress, stop, estimate=prepared.plan.estimate)
            run = prepared.stage.run if prepared.resolved.config.launch.world == 1 else partial(run_on_ranks, prepared.stage)
            return run_in_memory(run, prepared.resolved.config, prepared.inputs, work)
    except BaseException as error:
        with suppress(OSError):  # the disk that is full is this one
            progress.event("failed", error=type(error).__name__, text=str(error))
        raise
    finally:
        progress.close()


def exit_code(manifest: Manifest) -> int:
    """4 where a gate failed, 5 where too many items did, else 0: of this run, or of the earlier one whose artifact is reused."""
    if manifest.failed_gates:
        return EXIT_GATE
    return EXIT_TOO_MANY_FAILED if manifest.failed_items > manifest.tolerated_items else EXIT_DONE


def _holder(folder: Path) -> str:
    request = runs.read_request(folder)
    if not request:
        return "it has just started"
    job = f" of Slurm job {request['job']}" if request.get("job") else ""
    return f"process {request.get('pid')}{job} on {request.get('host')}"
