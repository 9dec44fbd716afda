"""What a request means before it runs: its inputs found, files made into datasets, the plan."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from typing import Any

from safework_cli.core import data_files, resume
from safework_cli.core.artifacts import Artifact, Store
from safework_cli.core.artifacts.adapters import read_base
from safework_cli.core.artifacts.external import file_states
from safework_cli.core.artifacts.payload import has_weights
from safework_cli.core.artifacts.references import check_name
from safework_cli.core.config import Resolved, fingerprint
from safework_cli.core.errors import EXIT_DONE, EXIT_GATE, EXIT_TOO_MANY_FAILED, GateFailed, InputError, SafeworkError, TooManyFailed
from safework_cli.core.launch.jobs import job_of, made_by_job
from safework_cli.core.plan.estimate import estimate
from safework_cli.core.plan.work import Activations, Work
from safework_cli.core.record import Prepared, request_of
from safework_cli.core.runtime import execute, exit_code
from safework_cli.core.stage import Inputs, Plan, Stage, refuse_engine, refuse_processes
from safework_cli.core.terminal import say


def find_inputs(
    stage: Stage, resolved: Resolved, references: Mapping[str, str], store: Store, *, build: bool = True, quiet: bool = True
) -> tuple[Inputs, list[Prepared]]:
    """What references mean, and, where they are not to be built, the datasets that files are to be made into.

    Args:
        resolved: the request.
        references: those to look at, by slot key.
        build, quiet: as for ``prepare``.

    Raises:
        InputError: an input is missing or damaged.
        GateFailed, TooManyFailed: the job that made one did not end well.
    """
    values: dict[str, Any] = {}
    unbuilt: list[Prepared] = []
    for key, given in references.items():
        reference = made_by_job(store, given) if job_of(given) else given
        slot, _, part = key.partition(".")
        takes = stage.inputs[slot]
        artifact = takes.external(reference) if takes.external else None
        if artifact is None:
            tolerated = getattr(resolved.config, "max_dropped", data_files.MAX_DROPPED)
            of_file = built_of(reference, takes.kinds, store, build=build, quiet=quiet, slot=key, max_dropped=tolerated)
            if isinstance(of_file, Prepared):
                unbuilt.append(of_file)
                continue
            artifact = of_file or store.resolve(reference, takes.kinds, slot=key)
        if job_of(given):
            _refuse_if_ended_badly(artifact, given, key)
        if artifact.kind == "dataset" and not takes.whole:
            artifact.row_files()  # refuses a dataset of several subsets where one is wanted
        if part:
            values.setdefault(slot, {})[part] = artifact
        else:
            values[slot] = artifact
    return Inputs(values), unbuilt


def _refuse_if_ended_badly(artifact: Artifact, given: str, key: str) -> None:
    """Raises where the job that a reference names made an artifact that did not pass: what was submitted in time waits for a job that ends
    well, and what is submitted later must not be judged otherwise."""
    kinds: dict[int, type[SafeworkError]] = {EXIT_GATE: GateFailed, EXIT_TOO_MANY_FAILED: TooManyFailed}
    if (code := exit_code(artifact.manifest)) == EXIT_DONE:
        return
    gates = "; ".join(artifact.manifest.failed_gates)
    raise kinds[code](
        f"{key}={given}: the job made {artifact.ref} and ended with exit code {code}",
        f"gate failed: {gates}" if gates else f"{artifact.manifest.failed_items} items failed",
        f"{key}={artifact.ref} uses it all the same",
    )


def prepare(
    stage: Stage,
    resolved: Resolved,
    store: Store,
    *,
    build: bool = True,
    quiet: bool = True,
    measure: Callable[[Work, Any], Activations] | None = None,
    fork: str | None = None,
) -> Prepared:
    """Resolves the inputs and plans.

    Args:
        build: make a dataset of a file that is given where a dataset is wanted. Without it the plan says what would be built, and nothing
            more where that is not done already.
        quiet: as for ``execute``, for such a build.
        measure: measures the activations of a plan's work, given the settings; without it they are estimated by formula.
        fork: the folder of an unfinished run of the same stage with other settings or inputs: resume from its last checkpoint.

    Raises:
        InputError: an input is missing or damaged; refusals stay in the plan.
        GateFailed, TooManyFailed: the job that made one did not end well.
    """
    inputs, unbuilt = find_inputs(stage, resolved, resolved.references, store, build=build, quiet=quiet)
    states = {key: file_states(artifact) for key, artifact in inputs.flat().items()}
    if unbuilt:
        return _plan_of_builds(stage, resolved, inputs, unbuilt)
    plan = stage.plan(resolved.config, inputs)
    plan.lines += [f"warning: {text}" for text in resolved.config.without_effect()]
    refuse_engine(stage, resolved.config, plan)
    refuse_processes(stage, resolved.config, plan)
    measured = measure(plan.work, resolved.config) if measure and plan.work and plan.work.trained else None
    if measure and measured is None:
        plan.lines.append("--measure: nothing is trained, so there is nothing to measure")
    estimate(stage, resolved.config, plan, measured)
    _note_configurations(plan, inputs)
    notes = _dropped_on_the_way(stage, resolved, inputs)
    plan.lines += [f"note: {note}" for note in notes]
    digests = {key: artifact.digest for key, artifact in inputs.flat().items()}
    external = {} if plan.refusals else stage.external_digests(resolved.config)
    digests |= external
    name = check_name(resolved.name or plan.name or stage.name.replace(" ", "-"))
    identity = fingerprint(stage, resolved.config, digests)
    identity = resume.identity(identity, fork) if fork else identity
    prepared = Prepared(stage, resolved, inputs, plan, identity, name, external, states, fork, notes)
    if fork and (why := resume.refusal(store.runs, fork, prepared.run_folder(store), request_of(prepared))):
        plan.lines.append(f"--fork {fork}: {why.what}")
        plan.lacking = plan.lacking or why
    return prepared


def _note_configurations(plan: Plan, inputs: Inputs) -> None:
    """Says of which inputs only a configuration is there: enough to plan with, and not to run."""
    for key, artifact in inputs.flat().items():
        if artifact.kind == "model" and artifact.external and not has_weights(artifact.path) and read_base(artifact.path) is None:
            plan.lines.append(f"note: {key}={artifact.ref} has no weights: the plan is made of its config.json")
            plan.lacking = InputError(
                f"{key}={artifact.ref} has no weights",
                "its config.json is enough for --dry-run, and no more",
                "give the whole model: safework models pull hf:ORG/NAME",
            )


def _dropped_on_the_way(stage: Stage, resolved: Resolved, inputs: Inputs) -> list[str]:
    """A sentence for each input that was built from a file without some of its rows: no one asked for that build, or saw its card."""
    notes = []
    for key, artifact in inputs.flat().items():
        given = resolved.references[key]
        if not job_of(given) and data_files.file_reference(given, stage.inputs[key.partition(".")[0]].kinds):
            notes += [note] if (note := data_files.dropped_note(given, artifact.manifest)) else []
    return notes


def built_of(
    reference: str,
    kinds: tuple[str, ...],
    store: Store,
    *,
    build: bool = True,
    quiet: bool = True,
    slot: str = "data",
    max_dropped: float | None = None,
) -> Artifact | Prepared | None:
    """The dataset that is made of a file where a dataset is wanted; None where the reference is not such a file.

    Args:
        build: make it where it is not there yet; without it, the request to make it is returned.
        quiet: as for ``execute``. What was dropped is said all the same, also of a dataset that was built before.
        slot: what the file is given as.
        max_dropped: share of the rows that may be dropped; that of the build's own settings where None.

    Raises:
        SafeworkError: as ``data build`` refuses or fails, and where more rows were dropped than are tolerated.
    """
    file = data_files.file_reference(reference, kinds)
    if file is None:
        return None
    try:
        prepared = prepare(*data_files.build_request(file.path), store)
        if not build and not store.find_run(prepared.fingerprint, prepared.kind):
            return prepared
        result = execute(prepared, store, quiet=quiet)
    except SafeworkError as error:
        error.what = f"{data_files.BUILDER} of {reference}: {error.what}"
        raise
    manifest = result.artifact.manifest
    tolerated = manifest.tolerated_items if max_dropped is None else int(max_dropped * manifest.metrics["read"])
    if manifest.failed_items > tolerated:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in manifest.metrics.get("dropped", {}).items())
        raise InputError(
            f"{data_files.BUILDER} of {reference}: {manifest.failed_items:,} of {manifest.metrics['read']:,} rows were dropped, "
            f"{tolerated:,} are tolerated",
            reasons,
            f"use the rest: {slot}={result.artifact.ref}; or build it with other rules (safework {data_files.BUILDER} --help): "
            f"safework {data_files.BUILDER} {shlex.quote(data_files.sources_of(file.path))} {data_files.RULES}",
        )
    if not quiet and not result.already:
        say(f"{data_files.BUILDER}: {reference} → {result.artifact.ref}")
    if note := data_files.dropped_note(reference, manifest):
        say(note)
    return store.resolve(result.artifact.ref + (f":{file.subset}" if file.subset else ""), ("dataset",))


def _plan_of_builds(stage: Stage, resolved: Resolved, inputs: Inputs, unbuilt: list[Prepared]) -> Prepared:
    """What is known before the datasets are built that a stage needs: how they would be built."""
    plan = Plan(name=resolved.name or stage.name.replace(" ", "-"))
    for prepared in unbuilt:
        plan.lines += [f"{prepared.stage.name} → {prepared.kind}/{prepared.name}", *(f"  {line}" for line in prepared.plan.lines)]
        plan.refusals += [type(r)(f"{prepared.stage.name}: {r.what}", r.why, r.do) for r in prepared.plan.refusals]
    plan.lines.append(f"then {stage.name}: what it would do is known once its data is built")
    return Prepared(stage, resolved, inputs, plan, "", check_name(plan.name))
