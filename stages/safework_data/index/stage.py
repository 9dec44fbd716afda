"""Build a search index: BM25 over passages, in English and Chinese."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from safework_cli.core.artifacts.references import artifact_name
from safework_cli.core.errors import SafeworkError
from safework_cli.core.stage import Inputs, Outcome, Plan, Slot, Stage, WorkDir
from safework_cli.data.suites.tables import format_of
from safework_data.files import digest_of, matching_files, starter_files
from safework_data.index.config import FilePassages, IndexConfig, PassageSource, StarterPassages
from safework_data.show import counts_table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from safework_cli.core.artifacts import Artifact


class IndexStage(Stage):
    """Passages in, one index out."""

    name: ClassVar[str] = "data index"
    summary: ClassVar[str] = "Build a search index: BM25 over passages, in English and Chinese."
    Config = IndexConfig
    starts_over: ClassVar[bool] = True
    inputs: ClassVar[dict[str, Slot]] = {}
    output: ClassVar[str] = "index"

    def plan(self, config: IndexConfig, inputs: Inputs) -> Plan:
        """Lists the sources and refuses what cannot be read; opens no file."""
        first = config.sources[0]
        name = "starter" if isinstance(first, StarterPassages) else Path(first.path).stem
        plan = Plan(name=artifact_name(name, "index"))
        for source in config.sources:
            try:
                files = passage_files(source)
            except SafeworkError as error:
                plan.refusals.append(error)
                continue
            size = sum(path.stat().st_size for path in files)
            plan.lines.append(f"index {', '.join(map(str, files))} ({size / 2**20:.1f} MB)" if files else "index the starter passages")
        plan.lines.append(f"BM25 with k1 = {config.k1:g}, b = {config.b:g}")
        return plan

    def run(self, config: IndexConfig, inputs: Inputs, work: WorkDir) -> Outcome:
        """Builds the index; see ``run.py``."""
        from safework_data.index.run import build_index

        return build_index(config, work)

    def show(self, artifact: Artifact) -> RenderableType:
        """What was read, dropped (by reason) and indexed."""
        metrics = artifact.manifest.metrics
        languages = ", ".join(f"{language} {count:,}" for language, count in metrics["languages"].items())
        return counts_table("index", [(artifact.name, metrics["read"], metrics["dropped"], metrics["passages"], languages)])

    def external_digests(self, config: IndexConfig) -> dict[str, str]:
        """sha256 of the local files that the sources read: what a run depends on in addition to its settings."""
        digests = {f"source {number}": digest_of(files) for number, s in enumerate(config.sources) if (files := passage_files(s))}
        if any(isinstance(source, StarterPassages) for source in config.sources):
            digests["starter passages"] = digest_of(starter_files())
        return digests


def passage_files(source: PassageSource) -> list[Path]:
    """The local files that a source reads, in order. Raises InputError where they are missing, ConfigError for an unknown format."""
    if isinstance(source, StarterPassages):
        return []
    files = matching_files(source.path)
    if isinstance(source, FilePassages):
        for path in files:
            format_of(path, source.format)
    return files


stage = IndexStage()
