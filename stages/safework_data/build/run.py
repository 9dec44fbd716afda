"""One dataset from many sources, from top to bottom. Rows stream; what is compared of them stays in memory (``traits.py``).

    1. sources → rows → checks → staged on disk with their side of the split; what is compared of them
    2. where rows are held out by lot: the rows that the lot draws, and what is compared of them on their new side
    3. staged rows → copies, held-out groups and evaluation prompts out → Parquet, card, list of drops

The first two are in ``reading.py``. What is done with a batch of rows is in ``batches.py``, and is done in several processes; files are
read and written by this one.

The split comes before the search for duplicates, so that a prompt which several subsets share is held out once; and before the search
for evaluation prompts, which compares what is left for training with what is held out. Copies are looked for on each side by itself: of a
training row and a held-out row that are alike, the training row goes, as one that holds an evaluation prompt.
"""

from __future__ import annotations

import shutil
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safework_cli.core.artifacts import Artifact
from safework_cli.core.errors import ConfigError, InputError, nearest
from safework_cli.core.stage import Outcome, WorkDir
from safework_cli.data.suites import load_suite
from safework_data.build.batches import Checking, FilterContext, Filtered, ToFilter, filter_batch
from safework_data.build.card import SourceLine, render_card
from safework_data.build.checks import Problem
from safework_data.build.config import BuildConfig, DecontaminateSettings
from safework_data.build.contamination import LeakIndex, known_by
from safework_data.build.drops import DROPS, Drops
from safework_data.build.duplicates import exact_copies, repeated_ids
from safework_data.build.near_duplicates import MOST_LOOKED_AT, NearCopies
from safework_data.build.reading import Read
from safework_data.build.sources import Arrived, read_dataset, read_source, source_name, unmarked
from safework_data.build.sources_config import XSTestSource
from safework_data.build.staging import Staging
from safework_data.build.tally import Output, Part, by_subset, total
from safework_data.build.workers import MOST_PROCESSES, WorkerPool
from safework_data.files import expand

CARD = "README.md"
STAGED = "staged"
RUNS_IN_MEMORY = 4_000_000
"""Runs of words of prompts for evaluation over all processes, at about 400 bytes each."""
SUBSET_RULES = ("require_thought", "require_reply", "require_label", "check_replies")


def build(config: BuildConfig, datasets: Mapping[str, Artifact], work: WorkDir, template: Path | None = None) -> Outcome:
    """Builds the dataset into ``work.output``.

    Args:
        datasets: further rows, by the name of their source.
        template: the folder of a model whose chat template is to keep every reply.

    Raises:
        InputError: a source is missing or broken, or a subset that had rows (rows for training, where the source says so) ends with none.
        ConfigError: a setting is for nothing that the sources hold, or answers that are numbers do not count the choices as it says.
    """
    drops = Drops(work.output / DROPS)
    folder = work.path / STAGED
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        with WorkerPool(work.stop.check) as pool:
            read = Read(Staging(folder / "rows.arrow"), config)
            for name, arrive in arrivals(config, datasets):
                with work.progress.phase(f"reading {name}") as phase:
                    for rows in read.through(arrive(), Checking(config, template), drops, pool):
                        phase.advance(rows)
                        work.stop.check()
            read.staging.close()
            refuse_unknown_subsets(config, read.of_subset)
            with work.progress.phase("comparing", read.staging.count):
                read.draw(config, pool)
                out = copies(read, config)
            kept_of: Counter[tuple[str, str]] = Counter()
            with work.progress.phase("writing", read.staging.count) as phase, Output(work.output) as output:
                for filtered in left(read, out, config, pool):
                    for drop in filtered.dropped:
                        drops.add(*drop)
                    for rows_of_part, part in filtered.kept:
                        output.add(rows_of_part, part)
                    kept_of += filtered.kept_of
                    phase.advance(filtered.rows)
                    work.stop.check()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        drops.close()
    refuse_nothing(read, output, kept_of, drops)
    refuse_unmarked(config, read)
    lost = lost_sides(config, read, output, kept_of, drops)
    lines = [SourceLine(a.name, a.origin, a.licence, read.of_source[a.name], kept_in_all(kept_of, a.name)) for a in read.arrived]
    notes = [*(note for source in read.arrived for note in source.notes), *remarks(read)]
    (work.output / CARD).write_text(render_card(output.parts, lines, drops, read.rows, work.output, [*lost, *notes]), encoding="utf-8")
    for line in [*summary(output.parts, drops), *notes]:
        work.progress.note(line)
    for line in lost:
        work.progress.warn(line)
    return outcome(config, read, output.parts, drops, [*lost, *notes])


def arrivals(config: BuildConfig, datasets: Mapping[str, Artifact]) -> Iterator[tuple[str, Callable[[], Arrived]]]:
    """What is read, in order: (what a person would call it, how it is opened)."""
    for source in config.sources:
        yield source.kind, partial(read_source, source, config.seed)
    for name, dataset in sorted(datasets.items()):  # as the fingerprint has them
        yield dataset.ref, partial(read_dataset, name, dataset)


def copies(read: Read, config: BuildConfig) -> dict[int, Problem]:
    """Place → why, of rows that go because they repeat others or contradict them."""
    repeated = repeated_ids(read.traits)
    exact = exact_copies(read.traits, repeated)
    out: dict[int, Problem] = dict.fromkeys(repeated, ("repeated id", ""))
    ids = read.staging.ids(other for copy in exact.values() for other in copy.others)
    for place, copy in exact.items():
        named = ", ".join(ids[other] for other in copy.others)
        out[place] = copy.reason, f"of {named}" if copy.reason == "exact duplicate" else f"judged in different ways: {named}"
    if config.near_duplicate_threshold is not None:
        near = NearCopies(read.traits, config.near_duplicate_threshold)
        for place, row in read.at(near.places - out.keys()):
            near.add(place, row)
        copy_of = near.found()
        if near.capped:
            which = f"like very many rows and compared with the likeliest {MOST_LOOKED_AT:,} only, so that near duplicates may be left"
            read.remarks[which] += near.capped
        ids = read.staging.ids(copy_of.values())
        out |= {place: ("near duplicate", f"of {ids[other]}") for place, other in copy_of.items()}
    return out


def left(read: Read, out: dict[int, Problem], config: BuildConfig, pool: WorkerPool) -> Iterator[Filtered]:
    """The third pass: batch by batch, the rows that stay and those that are dropped by name.

    Args:
        out: rows that go whatever they hold.
    """
    settings = config.decontaminate
    traits = read.traits
    held_groups, held_keys = (frozenset(traits.column(name)[traits.held].tolist()) for name in ("group", "exact"))
    public, exempt = public_prompts(settings), frozenset(settings.exempt)
    shared = frozenset(source.name for source in config.sources if isinstance(source, XSTestSource) and source.test_model)
    context = FilterContext(read.staging.path, read.labelled, read.own, public, exempt, shared, held_groups, held_keys)
    starts = read.staging.starts
    out_of: list[dict[int, Problem]] = [{} for _ in starts]
    for place, problem in out.items():
        number = bisect_right(starts, place) - 1
        out_of[number][place - starts[number]] = problem
    moved_of = {number: frozenset(places.tolist()) for number, places in read.staging.by_batch(read.moved)}
    batches = (ToFilter(number, gone, moved_of.get(number, frozenset())) for number, gone in enumerate(out_of))
    most = min(MOST_PROCESSES, 1 + RUNS_IN_MEMORY // (1 + read.own.runs + public.runs))  # each process has a copy of them
    yield from pool.in_order(filter_batch, context, batches, most)


def public_prompts(settings: DecontaminateSettings) -> LeakIndex:
    """The prompts of the named suites."""
    public = LeakIndex(settings.ngram, settings.overlap)
    for name in settings.suites:
        for row in load_suite(name, Path(expand(settings.folder))):
            for known in known_by(row):
                public.add(name, row.id, known)
    return public


def refuse_unknown_subsets(config: BuildConfig, read: Counter[str]) -> None:
    """Raises ConfigError where a rule is for a subset that no source fills: it would hold for nothing."""
    defaults = {name for field in SUBSET_RULES for name in BuildConfig.model_fields[field].get_default(call_default_factory=True)}
    for field in SUBSET_RULES:
        for name in getattr(config, field):
            if name not in read and name not in defaults:
                raise ConfigError(f"{field} names '{name}'{nearest(name, read)}", f"subsets: {', '.join(read)}", "correct the name")


REMEDIES = {
    "malformed thought": "replies of '{subset}' must be <think>reasoning</think>answer: relax it with require_thought='[]', take a subset "
    "of another name (such as sft), or have thoughts written (safework data cot)",
    "no reply": "map a column to `reply`, or relax require_reply",
    "no label": "map a column to meta.label, or relax require_label",
    "no prompt": "map the column that holds the prompts: columns: {{prompt: COLUMN}}",
    "wrong final answer": "correct the answers, or relax check_replies",
    "harmful prompt answered": "correct the replies, or relax check_replies",
    "benign prompt refused": "correct the replies, or relax check_replies",
    "over-long": "raise max_characters",
    "other language": "relax languages",
    "answer is not one of the choices": "answers must be letters, or numbers that count the choices: from 0, or as answers_from says",
    "near duplicate": "near_duplicate_threshold=null keeps rows that are alike",
    "exact duplicate": "the rows are in the sources twice",
    "repeated id": "map a column of distinct ids, or none",
    "evaluation prompt": "the rows hold prompts of the held-out rows or of decontaminate.suites",
    "group is held out": "their prompts are held out, in this source or another",
    "refused by the chat template": "take another chat template, or leave out model=",
}
"""Reason → which rule drops a row, and how it is met or relaxed."""


def remedy(reason: str, subset: str) -> str:
    """What to do where rows went for a reason."""
    return REMEDIES.get(reason, "correct the source: drops go by the reason above").format(subset=subset)


def kept_in_all(kept_of: Counter[tuple[str, str]], source: str) -> int:
    """Rows of a source that stay, on both sides of the split."""
    return kept_of[source, "train"] + kept_of[source, "test"]


def refuse_nothing(through: Read, output: Output, kept_of: Counter[tuple[str, str]], drops: Drops) -> None:
    """Raises InputError where no row is left: in all, of a training subset that had some, or of a source."""
    read = through.of_subset
    if not read:
        raise InputError("the sources hold no rows", "a dataset of nothing would train nothing", "check the files that the sources name")
    for source in through.arrived:
        if not through.of_source[source.name]:
            why = f"{source.origin} has none"
            raise InputError(f"source '{source.name}' holds no rows", why, "name the right file, or leave the source out")
    # A source's own subset, as it came: what moved to heldout has left its subset empty as well.
    for subset in read:
        if not output.of_subset(subset):
            dropped = drops.of_subset(subset)
            what = (
                f"no row of subset '{subset}' is left: all {dropped:,} were dropped"
                if output.parts
                else f"no row is left of {read.total():,}"
            )
            reasons = drops.biggest(subset if output.parts else None)
            most = drops.most_frequent(subset=subset if output.parts else None)
            raise InputError(what, f"most often: {reasons}", remedy(most, subset))
    for source in through.arrived:
        if not kept_in_all(kept_of, source.name):
            what = f"no row of source '{source.name}' is left: all {through.of_source[source.name]:,} were dropped"
            most = drops.most_frequent(source=source.name)
            raise InputError(what, f"most often: {drops.biggest(source=source.name)}", remedy(most, "it") + ", or leave the source out")


def lost_sides(config: BuildConfig, read: Read, output: Output, kept_of: Counter[tuple[str, str]], drops: Drops) -> list[str]:
    """A warning for each source that says itself what is for training and what is held out, and of which one side is lost.

    Raises:
        InputError: the training rows of a whole subset are lost, or a side that a source's settings ask for.
    """
    asked_for = {s.name for s in config.sources if isinstance(s, XSTestSource) and (s.test_model is not None or s.halves == "split")}
    left = {(part.subset, part.split) for part in output.parts}
    warnings = []
    for source, declared in read.declared.items():
        for side in ("train", "test"):
            rows = sum(count for (_, of_side), count in declared.items() if of_side == side)
            if not rows or kept_of[source, side]:
                continue
            what = f"no row of source '{source}' with split '{side}' is left: all {rows:,} were dropped"
            why = f"most often: {drops.biggest(source=source, side=side)}"
            if source in asked_for:
                raise InputError(what, why, remedy(drops.most_frequent(source=source, side=side), "it"))
            warnings.append(f"{what} ({why})")
    for subset in dict.fromkeys(name for declared in read.declared.values() for name, side in declared if side == "train"):
        if (subset, "train") not in left and (subset, "test") in left:
            what = f"no row of subset '{subset}' is left for training: only those of split 'test' are"
            most = drops.most_frequent(subset, side="train")
            raise InputError(what, f"most often: {drops.biggest(subset, side='train')}", remedy(most, subset))
    return warnings


def refuse_unmarked(config: BuildConfig, read: Read) -> None:
    """Raises ConfigError where a source's ``verdict`` finds a word in none of its rows."""
    for source in config.sources:
        pattern, name = getattr(source, "verdict", None), source_name(source)
        if pattern and read.remarks[unmarked(name)] == read.of_source[name]:
            what = f"source '{name}': verdict finds a word in none of {read.of_source[name]:,} rows"
            raise ConfigError(what, f"the expression is {pattern}", "correct it, or leave verdict out")


def summary(parts: list[Part], drops: Drops) -> list[str]:
    """What was made and what was dropped, a sentence each."""
    sizes = ", ".join(f"{subset} {sum(part.rows for part in of_subset):,}" for subset, of_subset in by_subset(parts).items())
    lines = [f"rows kept: {sizes}"]
    if len(drops):
        lines.append(f"rows dropped: {drops.biggest(show=8)} (README.md in the dataset's folder has examples)")
    return lines


def remarks(read: Read) -> list[str]:
    """What was changed or left out of rows that stay, a sentence each."""
    return [f"{remark}: {count:,} rows" for remark, count in read.remarks.most_common()]


def outcome(config: BuildConfig, read: Read, parts: list[Part], drops: Drops, notes: list[str]) -> Outcome:
    """The numbers for the manifest."""
    subsets: dict[str, Any] = {
        subset: {
            "rows": sum(part.rows for part in of_subset),
            "splits": {part.split: part.rows for part in of_subset},
            "tasks": dict(total(of_subset, "task")),
            "languages": dict(total(of_subset, "language")),
        }
        for subset, of_subset in by_subset(parts).items()
    }
    sources = {a.name: {"rows": read.of_source[a.name], "from": a.origin, "licence": a.licence, "sha256": a.digest} for a in read.arrived}
    return Outcome(
        metrics={
            "rows": sum(part.rows for part in parts),
            "read": read.rows,
            "subsets": subsets,
            "dropped": drops.counts(),
            "by_subset": {
                subset: {"read": read.of_subset[subset], "dropped": drops.counts(subset)}
                for subset in dict.fromkeys([*read.of_subset, *drops.subsets])
            },
            "sources": sources,
        },
        seeds={"starter set": "seed", "held-out groups": "seed", "near duplicates": "fixed"},
        notes=notes,
        failed_items=len(drops),
        tolerated_items=int(config.max_dropped * read.rows),
    )
