"""One dataset from many sources, from top to bottom.

    sources → rows → checks → split → exact and near duplicates out → held-out groups and evaluation prompts out → Parquet and card

The split comes before the duplicates are looked for, so that a prompt which several subsets share is held out once; and before the search
for evaluation prompts, which compares what is left for training with what is held out.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from safework_cli.errors import InputError
from safework_cli.rows import Row, write_rows
from safework_cli.stage import Outcome, WorkDir
from safework_cli.suites import load_suite, stem
from safework_data.card import SourceLine, render_card
from safework_data.checks import sound
from safework_data.contamination import LeakIndex
from safework_data.drops import DROPS, Candidate, Drops
from safework_data.duplicates import without_exact, without_near
from safework_data.settings import HELDOUT, BuildConfig, DecontaminateSettings, expand
from safework_data.sources import Arrived, read_source
from safework_data.splits import hold_out, is_held_out, without_held_out_groups

CARD = "README.md"
SPLITS = ("train", "test")
Parts = dict[str, dict[str, list[Row]]]
"""Subset → split → rows."""


def build(config: BuildConfig, work: WorkDir) -> Outcome:
    """Builds the dataset into ``work.output``.

    Raises:
        InputError: a source is missing or broken, or a subset that had rows ends with none.
    """
    drops = Drops()
    arrived = []
    for source in config.sources:
        with work.progress.phase(f"reading {source.kind}") as phase:
            arrived.append(read_source(source, config.seed))
            phase.advance(len(arrived[-1].rows))
        work.stop.check()
    read = [candidate for source in arrived for candidate in source.rows]

    with work.progress.phase("checking"):
        rows = sound(read, config, drops)
        hold_out(rows, config.heldout, set(config.require_label), config.seed)
    with work.progress.phase("duplicates"):
        rows = without_exact(rows, drops)
        if config.near_duplicate_threshold is not None:
            rows = without_near(rows, config.near_duplicate_threshold, drops)
    with work.progress.phase("decontamination"):
        rows = without_held_out_groups(rows, drops)
        rows = without_leaks(rows, config.decontaminate, drops)
    refuse_nothing(read, rows, drops)

    with work.progress.phase("writing"):
        parts = parted(rows)
        write_dataset(work.output, parts, arrived, rows, drops)
    for line in summary(parts, drops):
        work.progress.note(line)
    return outcome(config, arrived, parts, len(read), drops)


def without_leaks(rows: list[Candidate], settings: DecontaminateSettings, drops: Drops) -> list[Candidate]:
    """Drops training rows that hold a prompt of a named suite or of the dataset's own held-out rows."""
    public = LeakIndex(settings.ngram, settings.overlap)
    for name in settings.suites:
        for row in load_suite(name, Path(expand(settings.folder))):
            public.add(name, row.id, stem(row))
    own = LeakIndex(settings.ngram, settings.overlap)
    for candidate in rows:
        if is_held_out(candidate):
            own.add(HELDOUT, candidate.row.id, stem(candidate.row))
    kept = []
    for candidate in rows:
        leak = None
        if not is_held_out(candidate):
            leak = own.find(candidate.row) or (None if candidate.source in settings.exempt else public.find(candidate.row))
        if leak:
            drops.add(candidate, "evaluation prompt", f"{leak.share:.0%} of {leak.prompt_id}", suite=leak.suite)
        else:
            kept.append(candidate)
    return kept


def refuse_nothing(read: list[Candidate], rows: list[Candidate], drops: Drops) -> None:
    """Raises InputError where no row is left, in all or of a training subset that had some."""
    if not read:
        raise InputError("the sources hold no rows", "a dataset of nothing would train nothing", "check the files that the sources name")
    left = Counter(candidate.subset for candidate in rows)
    # A source's own subset, as it came: what moved to heldout has left its subset empty as well.
    for subset in dict.fromkeys(candidate.subset for candidate in read):
        if not left[subset]:
            count = sum(drop.subset == subset for drop in drops.all)
            what = f"no row of subset '{subset}' is left: all {count:,} were dropped" if rows else f"no row is left of {len(read):,}"
            reasons = drops.biggest(subset if rows else None)
            raise InputError(what, f"most often: {reasons}", "mend the source, or relax the rule that drops them")


def parted(rows: list[Candidate]) -> Parts:
    """Subset → split → rows, in the order in which they came; held-out rows last."""
    parts: Parts = {}
    for candidate in sorted(rows, key=lambda c: (c.subset == HELDOUT, SPLITS.index(c.row.split))):
        parts.setdefault(candidate.subset, {}).setdefault(candidate.row.split, []).append(candidate.row)
    return parts


def write_dataset(output: Path, parts: Parts, arrived: list[Arrived], rows: list[Candidate], drops: Drops) -> None:
    """Writes ``<subset>/<split>.parquet``, the card and the list of drops."""
    for subset, splits in parts.items():
        (output / subset).mkdir()
        for split, kept in splits.items():
            write_rows(output / subset / f"{split}.parquet", kept)
    kept_of = Counter(candidate.source for candidate in rows)
    lines = [SourceLine(source.name, source.origin, source.licence, len(source.rows), kept_of[source.name]) for source in arrived]
    card = render_card(parts, lines, drops, sum(len(source.rows) for source in arrived))
    (output / CARD).write_text(card, encoding="utf-8")
    drops.write(output / DROPS)


def summary(parts: Parts, drops: Drops) -> list[str]:
    """What was made and what was dropped, a sentence each."""
    sizes = ", ".join(f"{subset} {sum(map(len, splits.values())):,}" for subset, splits in parts.items())
    lines = [f"rows kept: {sizes}"]
    if drops.all:
        lines.append(f"rows dropped: {drops.biggest(show=8)} (README.md shows examples)")
    return lines


def outcome(config: BuildConfig, arrived: list[Arrived], parts: Parts, read: int, drops: Drops) -> Outcome:
    """The numbers for the manifest."""
    subsets: dict[str, Any] = {}
    for subset, splits in parts.items():
        rows = [row for kept in splits.values() for row in kept]
        subsets[subset] = {
            "rows": len(rows),
            "splits": {split: len(kept) for split, kept in splits.items()},
            "tasks": dict(Counter(row.task for row in rows)),
            "languages": dict(Counter(str(row.meta.get("language")) for row in rows)),
        }
    sources = {s.name: {"rows": len(s.rows), "from": s.origin, "licence": s.licence, "sha256": s.digest} for s in arrived}
    return Outcome(
        metrics={
            "rows": sum(subset["rows"] for subset in subsets.values()),
            "read": read,
            "subsets": subsets,
            "dropped": drops.counts(),
            "sources": sources,
        },
        seeds={"starter set": "seed", "held-out groups": "seed", "near duplicates": "fixed"},
        notes=[note for source in arrived for note in source.notes],
        failed_items=len(drops.all),
        tolerated_items=int(config.max_dropped * read),
    )
