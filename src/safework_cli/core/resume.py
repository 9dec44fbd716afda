"""Resuming from a checkpoint of another run: never by accident, always recorded in the manifest.

A checkpoint belongs to its run's settings and inputs, and a run with others has a folder of its own. ``--fork`` copies the last whole
checkpoint over and says what changed; without it, a run that looks like the continuation of another one says that it is not.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from safework_cli.core.artifacts.manifest import write_durably
from safework_cli.core.checkpoints import COMPLETE, checkpoints_in, damage, is_complete, seal, step_of
from safework_cli.core.errors import InputError, nearest
from safework_cli.core.journal import open_journal, read_journal, write_line
from safework_cli.core.progress import METRICS
from safework_cli.core.runs import is_running, journal_bytes, read_request, run_folders

FORK = "fork.json"
"""What a forked run's folder says of its origin."""
WHICH_WEIGHTS = ("lora", "train_layers", "train_vision", "keep_layers", "head")
"""Settings that say which weights there are to train: an optimiser's state fits only one choice of them."""
WHOLE_STATE = frozenset({"single", "ddp"})
"""Strategies whose checkpoints hold the whole optimiser: any number of processes can resume from them."""
_VERSION = re.compile(r"@v\d+")
JOURNALS = (METRICS, "samples.jsonl")
"""Records by step that go along, up to the checkpoint's."""


def checkpoint_of(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run folder; its bytes are compared when it is used."""
    return next((path for path in checkpoints_in(folder) if is_complete(path)), None)


def unfinished(runs: Path, folder: Path, request: Mapping[str, Any], made: Callable[[Mapping[str, Any]], bool]) -> list[str]:
    """A sentence for each run of the same stage that has a checkpoint from which this one could resume, and does not; and for each with the
    same settings on other versions of the same inputs: the command that was typed may have meant that one.

    Args:
        made: whether what a run with this request makes is in the store: such a run is finished.
    """
    lines = []
    for other, theirs in _runs_of(runs, request["stage"], folder).items():
        versions = _other_versions(theirs, request)
        checkpoint = checkpoint_of(runs / other)
        kept = "" if checkpoint is None else f"at step {step_of(checkpoint)} "
        if checkpoint is None and not (versions and journal_bytes(runs / other)):
            continue
        if is_running(runs / other) or made(theirs):
            continue
        start = f"an unfinished run of {request['stage']} stopped {kept}with {_difference(theirs, request)}; this one starts from scratch"
        if versions and (checkpoint is None or _misfit(other, theirs, request)):
            lines.append(f"{start} (the same command with {' '.join(versions)} continues that one)")
        elif checkpoint is not None and not _misfit(other, theirs, request):
            lines.append(f"{start} (--fork {other} resumes from that checkpoint)")
    return lines


def _other_versions(theirs: Mapping[str, Any], request: Mapping[str, Any]) -> list[str]:
    """The inputs of a run, as they are typed, where it differs from a request in nothing but versions of the same artifacts; else empty."""
    then, now = theirs["inputs"], request["inputs"]
    if {**theirs["config"], "slurm": None} != {**request["config"], "slurm": None} or then.keys() != now.keys():
        return []
    changed = [key for key in then if then[key] != now[key]]
    if any(_VERSION.sub("", then[key]) != _VERSION.sub("", now[key]) for key in changed):
        return []
    return [f"{key}={then[key]}" for key in changed]


def identity(fingerprint: str, name: str) -> str:
    """The fingerprint of a fork: never that of a run that began at the beginning, nor of a fork of another one."""
    return hashlib.sha256(f"{fingerprint} forked from {name}".encode()).hexdigest()


def begin(runs: Path, name: str, folder: Path, request: Mapping[str, Any]) -> str:
    """Copies the last checkpoint of the run ``name`` into ``folder``, and returns what is to be said of it.

    The same command continues a fork as it continues any run: a folder that was forked already resumes from its own checkpoints.

    Raises:
        InputError: this stage has no run of that name, the run has no complete checkpoint, or its checkpoint does not fit (another model,
            or other weights to train).
    """
    if (folder / FORK).exists():
        return _note_of(folder)
    if why := refusal(runs, name, folder, request):
        raise why
    source, theirs = checkpoint_of(runs / name), _runs_of(runs, request["stage"], folder)[name]
    assert source is not None
    if damaged := damage(source):
        raise InputError(
            f"{source} is damaged: {damaged}",
            "a fork starts from the last checkpoint, byte for byte",
            "run that run's own command again: it resumes from an earlier whole checkpoint",
        )
    (folder / "checkpoints").mkdir(exist_ok=True)
    target = folder / "checkpoints" / source.name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(COMPLETE))
    for journal in JOURNALS:
        records = [record for record in read_journal(runs / name / journal) if record.get("step", 0) <= step_of(source)]
        with open_journal(folder / journal) as handle:
            for record in records:
                write_line(handle, record)
    seal(target, request["fingerprint"], forked=True)
    note = f"forked from {name} at step {step_of(source)}, with {_difference(theirs, request)}"
    # whole or not there: a copy that was interrupted is made again, and an empty file would stop every later start
    write_durably(folder / FORK, json.dumps({"run": name, "step": step_of(source), "note": note}).encode())
    return note


def _note_of(folder: Path) -> str:
    """What is to be said of a folder that was forked already. Raises InputError where that cannot be read."""
    try:
        return str(json.loads((folder / FORK).read_bytes())["note"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder / FORK} cannot be read: {error}",
            "it says which run this one was forked from, and it is damaged or was written only in part",
            f"delete the folder {folder} and run the same command again: it copies the checkpoint again",
        ) from None


def refusal(runs: Path, name: str, folder: Path, request: Mapping[str, Any]) -> InputError | None:
    """Why the run ``name`` cannot be forked into ``folder``; None where it can, and where it was already. Compares no bytes."""
    if (folder / FORK).exists():
        return None
    others = _runs_of(runs, request["stage"], folder)
    if name not in others:
        return no_run(name, request["stage"], others)
    if checkpoint_of(runs / name) is None:
        return InputError(
            f"the run '{name}' has no whole checkpoint", "it ended before its first one", "leave --fork out to start from scratch"
        )
    return _misfit(name, others[name], request)


def refuse_unknown(runs: Path, name: str, stage: str) -> None:
    """Raises InputError where a stage has no run of a name: all that can be said of a fork before its inputs are there."""
    others = _runs_of(runs, stage, runs)
    if name not in others:
        raise no_run(name, stage, others)


def no_run(name: str, stage: str, others: Collection[str]) -> InputError:
    """The error of a fork from a run that is not there."""
    return InputError(
        f"no unfinished run '{name}' of {stage}{nearest(name, others)}",
        f"there {'are ' + ', '.join(sorted(others)) if others else 'is none'}; what a finished run made is an artifact (model=…)",
        "leave --fork out to start from scratch",
    )


def _misfit(name: str, theirs: Mapping[str, Any], request: Mapping[str, Any]) -> InputError | None:
    """Why a run's checkpoint is none for this request; None where it is one."""
    models = [r.get("digests", {}).get("model") for r in (theirs, request)]
    if models[0] != models[1]:
        return InputError(
            f"the run '{name}' started from {theirs['inputs'].get('model')}, and this one names {request['inputs'].get('model')}",
            "its checkpoint holds the weights of the former: the manifest would name a model that this is not",
            "fork with the same model=, or leave --fork out",
        )
    other = [key for key in WHICH_WEIGHTS if theirs["config"].get(key) != request["config"].get(key)]
    if other:
        return InputError(
            f"the run '{name}' has {other[0]}={theirs['config'].get(other[0])}, and this one {request['config'].get(other[0])}",
            "the checkpoint's optimiser knows the weights that were trained there",
            f"fork with {other[0]} as it was, or leave --fork out",
        )
    then, now = _launch_of(theirs), _launch_of(request)
    if then != now and not {then[0], now[0]} <= WHOLE_STATE:
        divided = then[0] if then[0] not in WHOLE_STATE else now[0]
        return InputError(
            f"the run '{name}' has launch.strategy={then[0]} on {_processes(then)}, and this one {now[0]} on {_processes(now)}",
            f"{divided} divides the optimiser's state among its processes, and a checkpoint holds it in as many parts",
            f"fork with launch.strategy={then[0]} on {_processes(then)}, or leave --fork out",
        )
    return None


def _launch_of(request: Mapping[str, Any]) -> tuple[str, int]:
    """A run's strategy, and how many processes it has."""
    launch = request["config"].get("launch", {})
    return launch.get("strategy", "single"), launch.get("processes", 1) * launch.get("nodes", 1)


def _processes(launch: tuple[str, int]) -> str:
    return "one process" if launch[1] == 1 else f"{launch[1]} processes"


def _runs_of(runs: Path, stage: str, without: Path) -> dict[str, dict[str, Any]]:
    """Requests of the unfinished runs of a stage, by folder name."""
    requests = {run.name: read_request(run) for run in run_folders(runs) if run != without}
    return {name: request for name, request in requests.items() if request is not None and request.get("stage") == stage}


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What changed between two requests: ``learning_rate 1e-06 → 1e-05``."""
    old, new = (_flat({**request["config"], **request["inputs"]}) for request in (before, now))
    changed = [
        f"{key} {old.get(key, 'unset')} → {new.get(key, 'unset')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    return ", ".join(changed) or "the same settings and references, of which one means another version now"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat
