"""Going on from a checkpoint of another run: never by accident, always on the record.

A checkpoint belongs to its run's settings and inputs, and a run with others has a folder of its own. ``--fork`` carries the last whole
checkpoint over and says what changed; without it a run that looks like the continuation of another one says that it is none.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safework_cli.errors import InputError, nearest
from safework_cli.journal import open_journal, read_journal, write_line
from safework_cli.progress import METRICS

COMPLETE = "COMPLETE.json"
"""Written last into a checkpoint: one without it was cut by a kill."""
JOURNALS = (METRICS, "samples.jsonl")
"""Records by step that go along, up to the checkpoint's."""


def checkpoint_of(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run folder."""
    found = [path for path in (folder / "checkpoints").glob("checkpoint-*") if (path / COMPLETE).exists()]
    return max(found, key=_step, default=None)


def unfinished(runs: Path, folder: Path, request: Mapping[str, Any]) -> list[str]:
    """A sentence for each run of the same stage that was left behind with a checkpoint, and that this one does not continue."""
    lines = []
    for other, theirs in _runs_of(runs, request["stage"], folder).items():
        if checkpoint := checkpoint_of(runs / other):
            lines.append(
                f"an unfinished run of {request['stage']} lies at step {_step(checkpoint)} with {_difference(theirs, request)}; this one "
                f"begins anew (--fork {other} goes on from that checkpoint)"
            )
    return lines


def begin(runs: Path, name: str, folder: Path, request: Mapping[str, Any]) -> str | None:
    """Copies the last checkpoint of the run ``name`` into ``folder``, and returns what is to be said of it.

    A folder that already has checkpoints of its own goes on from those: the same command continues a fork as it continues any run.

    Raises:
        InputError: there is no such run of this stage, or it has no whole checkpoint.
    """
    if checkpoint_of(folder):
        events = read_journal(folder / "events.jsonl")
        return next((event["text"] for event in events if str(event.get("text", "")).startswith("forked from ")), None)
    others = _runs_of(runs, request["stage"], folder)
    if name not in others:
        raise InputError(
            f"there is no unfinished run '{name}' of {request['stage']}{nearest(name, others)}",
            f"there {'are ' + ', '.join(sorted(others)) if others else 'is none'}; what a finished run made is an artifact (model=…)",
            "leave --fork out to begin anew",
        )
    source = checkpoint_of(runs / name)
    if source is None:
        raise InputError(f"the run '{name}' has no whole checkpoint", "it ended before its first one", "leave --fork out to begin anew")
    (folder / "checkpoints").mkdir(exist_ok=True)
    target = folder / "checkpoints" / source.name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(COMPLETE))
    for journal in JOURNALS:
        records = [record for record in read_journal(runs / name / journal) if record.get("step", 0) <= _step(source)]
        with open_journal(folder / journal) as handle:
            for record in records:
                write_line(handle, record)
    mark = {"fingerprint": request["fingerprint"], "step": _step(source), "forked": True}
    (target / COMPLETE).write_text(json.dumps(mark))
    return f"forked from {name} at step {_step(source)}, with {_difference(others[name], request)}"


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def _runs_of(runs: Path, stage: str, without: Path) -> dict[str, dict[str, Any]]:
    """Requests of the unfinished runs of a stage, by folder name."""
    found = {}
    for path in sorted(runs.glob("*/request.json")):
        try:
            request = json.loads(path.read_text())
        except ValueError:
            continue  # cut by a kill as it was written: there is nothing behind it
        if path.parent != without and request.get("stage") == stage:
            found[path.parent.name] = request
    return found


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
