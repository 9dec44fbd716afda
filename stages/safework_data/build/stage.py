"""Build a dataset: sources, checks, duplicates and evaluation prompts out, splits, data card."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from safework_cli.core.artifacts.references import artifact_name
from safework_cli.core.errors import SafeworkError
from safework_cli.core.stage import Inputs, Outcome, Plan, Slot, Stage, WorkDir
from safework_cli.data.suites import suite_named
from safework_data.build.columns import columns_of
from safework_data.build.config import BuildConfig
from safework_data.build.sources import digest_of_images, is_split, refuse_unknown_categories, source_files, source_name, state_of_images
from safework_data.build.sources_config import DrawnSource, FileSource, HubSource, SetSource, Source, StarterSource
from safework_data.files import digest_of, drawing_files, expand, starter_files
from safework_data.show import counts_table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from safework_cli.core.artifacts import Artifact


class BuildStage(Stage):
    """Sources in, one dataset of subsets out."""

    name: ClassVar[str] = "data build"
    version: ClassVar[int] = 12  # 12: brief safety pairs, copies by side; 11: the starter set's rl has its own groups; 10: rows with images
    summary: ClassVar[str] = "Build a dataset: sources, checks, duplicates and evaluation prompts out, splits, data card."
    Config = BuildConfig
    starts_over: ClassVar[bool] = True
    inputs: ClassVar[dict[str, Slot]] = {
        "data": Slot(
            ("dataset",), "datasets whose rows come in after the sources: data.worked=NAME:cot", optional=True, many=True, whole=True
        ),
        "model": Slot(("model",), "the model to be trained: replies that its chat template loses or changes are dropped", optional=True),
    }
    output: ClassVar[str] = "dataset"

    def plan(self, config: BuildConfig, inputs: Inputs) -> Plan:
        """Lists the sources and refuses what cannot be read; opens no file but those whose columns are to be found by their names,
        and the starter set where categories of it are asked for."""
        datasets = inputs.many("data")
        names: list[str] = [*datasets]
        plan = Plan(name=artifact_name(source_name(config.sources[0]) if config.sources else next(iter(datasets), ""), "dataset"))
        if not (config.sources or datasets):
            plan.refuse("there is nothing to build from", "no sources, no datasets", "sources: in a recipe, or data.NAME=REF")
        disk = 0
        for source in config.sources:
            name = source_name(source)
            if name in names:
                why = "rows and drops are identified by the source's name"
                do = "name the set once" if isinstance(source, SetSource) else "give one of them a name:"
                plan.refuse(f"two sources are called '{name}'", why, do)
            names.append(name)
            try:
                if isinstance(source, StarterSource):
                    refuse_unknown_categories(source, config.seed)
                files = source_files(source)
            except SafeworkError as error:
                plan.refusals.append(error)
                continue
            size = sum(path.stat().st_size for path in files)
            disk += size
            plan.lines.append(f"read {name}: {_described(source, files, size)}")
            if isinstance(source, FileSource) and not source.columns:
                try:
                    plan.lines.append(columns_of(source).note)
                except SafeworkError as error:
                    plan.refusals.append(error)
        for name, dataset in sorted(datasets.items()):
            if not dataset.subsets:
                what = "rows would belong to no subset"
                plan.refuse(f"{dataset.ref} has no subsets", what, "put the file below a folder of the subset's name, or use kind: file")
            kept = ", which keeps the rows that it holds out" if config.heldout and is_split(dataset) else ""
            plan.lines.append(f"read {name}: {dataset.ref}{kept}")
        disk += sum(entry.size for dataset in datasets.values() for entry in dataset.manifest.files)
        settings = config.decontaminate
        unknown = [name for name in settings.exempt if name not in names]
        if unknown:
            plan.refuse(f"decontaminate.exempt names no source: '{unknown[0]}'", f"sources: {', '.join(names)}")
        for suite in settings.suites:
            try:
                suite_named(suite).path(Path(expand(settings.folder)))
            except SafeworkError as error:
                plan.refusals.append(error)
        against = ", ".join([*settings.suites, "the held-out rows"])
        plan.lines.append(f"drop rows that hold a prompt of {against} ({settings.ngram}-word runs over {settings.overlap:.0%} of it)")
        if config.heldout:
            plan.lines.append(f"hold out {config.heldout:.0%} of the groups of every source that is not split already")
        plan.disk_bytes = disk or None
        return plan

    def run(self, config: BuildConfig, inputs: Inputs, work: WorkDir) -> Outcome:
        """Builds the dataset; see ``run.py``."""
        from safework_data.build.run import build

        model = inputs.maybe("model")
        return build(config, inputs.many("data"), work, model.path if model else None)

    def show(self, artifact: Artifact) -> RenderableType | None:
        """What was read, dropped (by reason) and written of each subset."""
        metrics = artifact.manifest.metrics
        if "by_subset" not in metrics:  # made before version 6
            return None
        rows = []
        for subset in dict.fromkeys([*metrics["subsets"], *metrics["by_subset"]]):
            came = metrics["by_subset"].get(subset, {"read": 0, "dropped": {}})
            made = metrics["subsets"].get(subset, {"rows": 0, "splits": {}})
            splits = ", ".join(f"{split} {count:,}" for split, count in made["splits"].items())
            rows.append((subset, came["read"], came["dropped"], made["rows"], splits))
        return counts_table("subset", rows)

    def unpinned(self, config: BuildConfig) -> list[str]:
        """Hub datasets without a commit. It is not asked for while planning: a hub that answers one time and not the next would be another
        request, and end a build that is finished as one whose input changed."""
        hub = [source for source in config.sources if isinstance(source, HubSource) and not _is_commit(source.revision)]
        return [f"hf:{source.id}@{source.revision or 'main'}" for source in hub]

    def external_digests(self, config: BuildConfig) -> dict[str, str]:
        """sha256 of the files that the sources and the suites read: what a run depends on in addition to its settings."""
        digests = {f"source {source_name(s)}": digest_of(files) for s in config.sources if (files := source_files(s))}
        digests |= {f"images {source_name(s)}": digest for s in config.sources if (digest := digest_of_images(s))}
        if any(isinstance(source, StarterSource) for source in config.sources):
            digests["starter set"] = digest_of(starter_files())
        if any(isinstance(source, DrawnSource) for source in config.sources):
            digests |= {"drawn set": digest_of([*starter_files(), *drawing_files()]), "Pillow": version("pillow")}
        if config.decontaminate.suites:
            folder = Path(expand(config.decontaminate.folder))
            suites = [suite_named(name) for name in config.decontaminate.suites]
            digests |= {f"suite {suite.name}": digest_of([suite.path(folder)]) for suite in suites}
            digests |= {f"images of suite {suite.name}": state_of_images([suite.path(folder)]) for suite in suites if suite.images}
        return digests


def _is_commit(revision: str | None) -> bool:
    return re.fullmatch(r"[0-9a-f]{40}", revision or "") is not None


def _described(source: Source, files: list[Path], size: int) -> str:
    if isinstance(source, StarterSource):
        return "the starter set that ships with safework"
    if isinstance(source, DrawnSource):
        return f"{source.questions:,} questions about drawings of {source.size} pixels, their prompts for RL, and what is held out"
    if isinstance(source, HubSource):
        return f"hub dataset {source.id}@{source.revision or 'main'}, split {source.split}, into {source.subset}"
    into = getattr(source, "subset", "verifier")
    return f"{files[0] if len(files) == 1 else f'{len(files)} files in {files[0].parent}'}, {size / 2**20:.1f} MB, into {into}"


stage = BuildStage()
