"""A stage's command as a Slurm job: what is checked before, the script, the job's number as a reference, waiting for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from safework_cli.cli.json_output import print_json
from safework_cli.cli.results import say_result, show_plan
from safework_cli.core import resume
from safework_cli.core.artifacts import Store
from safework_cli.core.artifacts.manifest import canonical_digest
from safework_cli.core.artifacts.references import check_name
from safework_cli.core.config import Resolved
from safework_cli.core.errors import EXIT_DONE, ConfigError
from safework_cli.core.launch.jobs import FOLDER, PREFIX, has_made, job_of, outcome_of, waiting_job
from safework_cli.core.launch.slurm import Batch, script, submit
from safework_cli.core.plan.work import Activations, Work
from safework_cli.core.prepare import find_inputs, prepare
from safework_cli.core.runtime import existing
from safework_cli.core.stage import Stage
from safework_cli.core.terminal import say


def run_as_job(
    stage: Stage,
    resolved: Resolved,
    store: Store,
    settings: Sequence[str],
    options: Mapping[str, str | bool | None],
    *,
    dry_run: bool,
    wait: bool,
    as_json: bool,
    quiet: bool,
    measure: Callable[[Work, Any], Activations] | None = None,
) -> int:
    """Submits a command, after the checks that it would make itself. Where its artifact is there already, that is named, and where a job
    for it has not ended, that job: nothing is submitted.

    Where an input is still to be made by another job (``job:ID``), only the settings, the name and the other inputs can be checked now:
    Slurm starts the job when the others have ended well, and it checks the rest then.

    Args:
        settings: the words that were typed.
        options: of the command, by name; those that are None were not given.
        measure: as for ``core.prepare.prepare``.

    Raises:
        ConfigError, InputError: as the command itself refuses; sbatch is missing, or a value cannot be given to it.
        GateFailed, TooManyFailed: an input was made by a job that did not end well.
    """
    fork = options.get("--fork")
    fork = fork if isinstance(fork, str) else None
    after = list(dict.fromkeys(job for given in resolved.references.values() if (job := job_of(given)) and not has_made(store, job)))
    prepared = None if after else prepare(stage, resolved, store, build=not dry_run, quiet=quiet, measure=measure, fork=fork)
    if prepared is not None:
        found = prepared.inputs
    else:
        there = {key: given for key, given in resolved.references.items() if job_of(given) not in after}
        found, _ = find_inputs(stage, resolved, there, store, build=not dry_run, quiet=quiet)
        if fork:
            resume.refuse_unknown(store.runs, fork, stage.name)
    inputs = resolved.references | {key: artifact.ref for key, artifact in found.flat().items()}
    name = check_name((prepared.name if prepared else resolved.name) or stage.name.replace(" ", "-"))
    slurm = resolved.config.slurm
    assert slurm is not None
    words = list(settings)
    for option, value in options.items():
        words += [] if value is None else [option] if value is True else [option, str(value)]
    if slurm.shards > 1 and not hasattr(resolved.config, "shard"):
        raise ConfigError(f"slurm.shards={slurm.shards}: safework {stage.name} has no shares", "only safework eval has", "leave it out")
    batch = Batch(stage.name, resolved.recipes, words, name, resolved.config.launch, slurm, inputs, after, slurm.shards, fork)
    if dry_run:
        code = EXIT_DONE if prepared is None else show_plan(prepared, store, as_json=as_json)
        text = script(batch, store, store.root / FOLDER / f"{name}-DATE", os.environ)
        if not as_json:
            say(text)
        elif prepared is None:  # the plan is known once the other jobs have made its inputs
            print_json({"stage": stage.name, "after": after, "script": text})
        return code
    if prepared is not None:
        if prepared.plan.refusals:
            raise prepared.plan.refusals[0]
        if not options.get("--fresh") and (done := existing(prepared, store)):
            say_result(done, as_json=as_json, quiet=quiet)
            return done.exit_code
        prepared.plan.check_start()
        batch = batch if batch.shards > 1 else replace(batch, words=[*words, "--submitted", prepared.fingerprint])
    asked = {"name": name, "fork": fork, "fresh": bool(options.get("--fresh"))}
    what = prepared.fingerprint if prepared else [resolved.config.model_dump(mode="json", exclude={"slurm"}), inputs]
    identity = canonical_digest(asked | {"stage": stage.name, "what": what})
    if other := waiting_job(store, identity):
        if not quiet:
            say(f"{stage.name}: Slurm job {other} was submitted for this and has not ended (scancel {other} ends it): nothing is submitted")
        return _say_job(other, [], store, wait=wait, as_json=as_json, quiet=quiet)
    if batch.shards > 1:
        array = submit(batch, store, os.environ)
        shares = {f"shards.{number}": f"{PREFIX}{array}_{number}" for number in range(1, batch.shards + 1)}
        batch = replace(batch, inputs={**inputs, **shares}, after=[array], shards=1)
        after = [array]
    job = submit(replace(batch, identity=identity), store, os.environ)
    if not quiet:
        say(f"{stage.name}: submitted as Slurm job {job}" + (f", after {', '.join(after)}" if after else ""))
    return _say_job(job, after, store, wait=wait, as_json=as_json, quiet=quiet)


def _say_job(job: str, after: Sequence[str], store: Store, *, wait: bool, as_json: bool, quiet: bool) -> int:
    """Prints the reference of a job, or waits for it and prints what it made."""
    if wait:
        return _wait(job, store, as_json=as_json, quiet=quiet)
    if as_json:
        print_json({"ref": f"{PREFIX}{job}", "job": job, "after": list(after)})
    else:
        print(f"{PREFIX}{job}")
    return EXIT_DONE


def _wait(job: str, store: Store, *, as_json: bool, quiet: bool) -> int:
    ended: dict[str, Any] = outcome_of(store, job)
    if not quiet:
        say(f"Slurm job {job}: {ended['state'].lower()}, exit code {ended['code']}; its log is {ended['log']}")
    if as_json:
        print_json({"job": job, **ended})
    elif ended["ref"]:
        print(ended["ref"])
    return int(ended["code"])
