"""What is asked of a run, and what is recorded of it: its request, its events and curves, its manifest."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safework_cli.core import runs
from safework_cli.core.artifacts import InputEntry, Manifest, Store
from safework_cli.core.artifacts.external import FileStates
from safework_cli.core.artifacts.manifest import RECORD
from safework_cli.core.artifacts.staging import this_host
from safework_cli.core.artifacts.store import now
from safework_cli.core.config import Resolved
from safework_cli.core.progress import EVENTS, METRICS
from safework_cli.core.stage import Inputs, Outcome, Plan, Stage
from safework_cli.core.system import PeakMemory, git_commit, package_versions


@dataclass(slots=True)
class Prepared:
    """A request that can run: inputs found and undamaged, plan made, identity known."""

    stage: Stage
    resolved: Resolved
    inputs: Inputs
    plan: Plan
    fingerprint: str
    name: str
    external: dict[str, str] = field(default_factory=dict)
    """Digests of the files outside the store that the settings name, as they were when the fingerprint was made."""
    states: dict[str, FileStates] = field(default_factory=dict)
    """Of the files of each input outside the store, at that time."""
    fork: str | None = None
    """The run whose checkpoint this one starts from; it is part of the fingerprint."""
    notes: list[str] = field(default_factory=list)
    """Sentences about the inputs that a reader of the manifest should see."""

    @property
    def kind(self) -> str:
        """The kind of artifact that is made."""
        return self.stage.kind_of(self.resolved.config)

    def run_folder(self, store: Store) -> Path:
        """Where it runs."""
        return store.runs / runs.run_folder_name(self.stage.name, self.fingerprint)


def request_of(prepared: Prepared) -> dict[str, Any]:
    """What ``request.json`` of a run folder says: the stage, its settings and inputs, and the process that works on it."""
    inputs = prepared.inputs.flat()
    return {
        "stage": prepared.stage.name,
        "artifact": f"{prepared.kind}/{prepared.name}",
        "fingerprint": prepared.fingerprint,
        "config": prepared.resolved.config.model_dump(mode="json"),
        "sources": prepared.resolved.sources,
        "inputs": {key: artifact.ref for key, artifact in inputs.items()},
        "digests": {key: artifact.digest for key, artifact in inputs.items()},
        "pid": os.getpid(),
        "host": this_host(),
        "job": os.environ.get("SLURM_JOB_ID"),
    }


def keep_record(folder: Path, output: Path) -> None:
    """Copies a run's events and curves into its artifact."""
    record = output / RECORD
    record.mkdir(exist_ok=True)
    for name in (EVENTS, METRICS):
        if (folder / name).stat().st_size:
            shutil.copy2(folder / name, record / name)


def manifest_of(prepared: Prepared, outcome: Outcome, wall_seconds: float, peak: PeakMemory) -> Manifest:
    """The manifest of what a run made; ``Store.commit`` fills in version, files and digest."""
    resolved = prepared.resolved
    return Manifest(
        kind=prepared.kind,
        name=prepared.name,
        version=0,
        created=now(),
        stage=prepared.stage.name,
        stage_version=prepared.stage.version,
        fingerprint=prepared.fingerprint,
        config=resolved.config.model_dump(mode="json"),
        config_sources={key: source for key, _, source in resolved.rows()},
        inputs={key: InputEntry(ref=a.ref, kind=a.kind, digest=a.digest) for key, a in prepared.inputs.flat().items()},
        files=[],
        digest="",
        chat_template_hash=outcome.chat_template_hash,
        seeds=outcome.seeds,
        packages=package_versions(),
        git_commit=git_commit(),
        host=f"{platform.node()} {platform.machine()} {platform.system()} python {platform.python_version()}",
        wall_seconds=round(wall_seconds, 3),
        peak_memory_bytes=peak.host,
        peak_gpu_memory_bytes=peak.gpu,
        metrics=outcome.metrics,
        notes=[*prepared.notes, *outcome.notes],
        failed_gates=outcome.failed_gates,
        failed_items=outcome.failed_items,
        tolerated_items=outcome.tolerated_items,
    )
