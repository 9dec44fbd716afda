"""One dataset from many sources, from top to bottom. Rows stream; what is compared of them stays in memory (``traits.py``).

    1. sources → rows → checks → staged on disk
    2. staged rows → held-out side or not → traits, and the held-out prompts to keep out of training (in the first pass, where nothing is
       to be held out by lot)
    3. staged rows → copies, held-out groups and evaluation prompts out → Parquet, card, list of drops

The split comes before the duplicates are looked for, so that a prompt which several subsets share is held out once; and before the search
for evaluation prompts, which compares what is left for training with what is held out.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safework_cli.artifacts import Artifact
from safework_cli.errors import ConfigError, InputError, nearest
from safework_cli.stage import Outcome, WorkDir
from safework_cli.suites import load_suite, stem
from safework_data.card import SourceLine, render_card
from safework_data.checks import TemplateCheck, examined, settle
from safework_data.contamination import Leak, LeakIndex
from safework_data.drops import DROPS, Candidate, Drops
from safework_data.duplicates import NearCopies, exact_copies, repeated_ids
from safework_data.settings import HELDOUT, BuildConfig, DecontaminateSettings, expand
from safework_data.sources import Arrived, read_dataset, read_source
from safework_data.splits import HoldOut, is_held_out
from safework_data.staging import Staging
from safework_data.tally import Output, Part, by_subset, total
from safework_data.traits import Traits, digest64

CARD = "README.md"
STAGED = "staged"
SUBSET_RULES = ("require_thought", "require_reply", "require_label", "check_replies")


def build(config: BuildConfig, datasets: Mapping[str, Artifact], work: WorkDir, template: TemplateCheck | None = None) -> Outcome:
    """Builds the dataset into ``work.output``.

    Args:
        datasets: further rows, by the name of their source.
        template: what a model's chat template makes of a row.

    Raises:
        InputError: a source is missing or broken, or a subset that had rows ends with none.
    """
    drops = Drops(work.output / DROPS)
    folder = work.path / STAGED
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        read = Read(Staging(folder / "rows.arrow"), config)
        for name, arrive in arrivals(config, datasets):
            with work.progress.phase(f"reading {name}") as phase:
                for _ in read.through(arrive(), config, drops, template):
                    phase.advance(1)
                    work.stop.check()
        read.staging.close()
        refuse_unknown_subsets(config, read.of_subset)
        with work.progress.phase("comparing", read.staging.count):
            compared = compare(read, config)
        with work.progress.phase("writing", read.staging.count) as phase, Output(work.output) as output:
            for candidate in left(read, compared, config, drops):
                output.add(candidate)
                phase.advance(1)
                work.stop.check()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        drops.close()
    refuse_nothing(read, output, drops)
    lines = [SourceLine(a.name, a.origin, a.licence, read.of_source[a.name], output.kept_of[a.name]) for a in read.arrived]
    (work.output / CARD).write_text(render_card(output.parts, lines, drops, read.rows, work.output), encoding="utf-8")
    for line in summary(output.parts, drops):
        work.progress.note(line)
    return outcome(config, read, output.parts, drops)


def arrivals(config: BuildConfig, datasets: Mapping[str, Artifact]) -> Iterator[tuple[str, Callable[[], Arrived]]]:
    """What is read, in order: (what a person would call it, how it is opened)."""
    for source in config.sources:
        yield source.kind, partial(read_source, source, config.seed)
    for name, dataset in sorted(datasets.items()):  # as the fingerprint has them
        yield dataset.ref, partial(read_dataset, name, dataset)


class Read:
    """The first pass: rows that pass every check, on disk, what was counted on the way, and what is compared of them.

    Attributes:
        traits: of all rows.
        own: the held-out prompts.
    """

    def __init__(self, staging: Staging, config: BuildConfig):
        settings = config.decontaminate
        self.staging = staging
        self.hold_out = HoldOut(config.heldout, set(config.require_label), config.seed)
        self.traits = Traits(near=config.near_duplicate_threshold is not None)
        self.own = LeakIndex(settings.ngram, settings.overlap)
        self.arrived: list[Arrived] = []
        self.of_source: Counter[str] = Counter()
        self.of_subset: Counter[str] = Counter()

    @property
    def rows(self) -> int:
        return self.of_source.total()

    def through(self, source: Arrived, config: BuildConfig, drops: Drops, template: TemplateCheck | None) -> Iterator[Candidate]:
        """Checks and stages a source's rows, and hands each on for counting."""
        self.arrived.append(source)
        for candidate, fault in examined(source.rows, config, template):
            self.of_source[source.name] += 1
            self.of_subset[candidate.subset] += 1
            if fault:
                drops.add(candidate, *fault)
            else:
                settle(candidate)
                self.hold_out.note(candidate)
                self.staging.add(candidate)
                if self.hold_out.share == 0:  # its side is known now, and not only when all rows have been seen
                    self.notice(self.hold_out.place(candidate))
            yield candidate

    def notice(self, candidate: Candidate) -> None:
        self.traits.add(candidate)
        if is_held_out(candidate):
            self.own.add(HELDOUT, candidate.row.id, stem(candidate.row))

    def again(self) -> Iterator[tuple[int, Candidate]]:
        """Every staged row with its place, on its side of the split."""
        for place, candidate in enumerate(self.staging):
            yield place, self.hold_out.place(candidate)


@dataclass(slots=True)
class Compared:
    """What the second pass found out.

    Attributes:
        out: place → (reason, detail) of rows that go, whatever they hold.
        near: finds near duplicates among the others, or None where they are not looked for.
        held_groups: digests of the groups that are held out.
    """

    out: dict[int, tuple[str, str]]
    near: NearCopies | None
    held_groups: set[int]


def compare(read: Read, config: BuildConfig) -> Compared:
    """The second pass."""
    traits = read.traits
    if read.hold_out.share > 0:
        for _, candidate in read.again():
            read.notice(candidate)
    repeated = repeated_ids(traits)
    copies = exact_copies(traits, repeated)
    ids = read.staging.ids(place for copy in copies.values() for place in copy.others)
    out = dict.fromkeys(repeated, ("repeated id", ""))
    for place, copy in copies.items():
        named = ", ".join(ids[other] for other in copy.others)
        out[place] = copy.reason, f"of {named}" if copy.reason == "exact duplicate" else f"judged in different ways: {named}"
    near = NearCopies(traits, config.near_duplicate_threshold) if config.near_duplicate_threshold is not None else None
    return Compared(out, near, set(traits.column("group")[traits.held].tolist()))


def left(read: Read, compared: Compared, config: BuildConfig, drops: Drops) -> Iterator[Candidate]:
    """The third pass: the rows that stay, in order; the others are dropped by name."""
    settings = config.decontaminate
    public = public_prompts(settings)
    ids: dict[int, str] = {}
    for place, candidate in read.again():
        row = candidate.row
        if place in compared.out:
            drops.add(candidate, *compared.out[place])
            continue
        if compared.near is not None:
            if (other := compared.near.find(place, row)) is not None:
                drops.add(candidate, "near duplicate", f"of {ids[other]}")
                continue
            if compared.near.remembers(place):
                ids[place] = row.id
        held = is_held_out(candidate)
        if not held and digest64(row.group) in compared.held_groups:
            drops.add(candidate, "group is held out", row.group)
        elif not held and (leak := leak_of(candidate, read.own, public, settings)):
            drops.add(candidate, "evaluation prompt", f"{leak.share:.0%} of {leak.prompt_id}", suite=leak.suite)
        else:
            yield candidate


def public_prompts(settings: DecontaminateSettings) -> LeakIndex:
    """The prompts of the named suites."""
    public = LeakIndex(settings.ngram, settings.overlap)
    for name in settings.suites:
        for row in load_suite(name, Path(expand(settings.folder))):
            public.add(name, row.id, stem(row))
    return public


def leak_of(candidate: Candidate, own: LeakIndex, public: LeakIndex, settings: DecontaminateSettings) -> Leak | None:
    """The prompt of a named suite, or of the dataset's own held-out rows, that a training row holds."""
    return own.find(candidate.row) or (None if candidate.source in settings.exempt else public.find(candidate.row))


def refuse_unknown_subsets(config: BuildConfig, read: Counter[str]) -> None:
    """Raises ConfigError where a rule is for a subset that no source fills: it would hold for nothing."""
    defaults = {name for field in SUBSET_RULES for name in BuildConfig.model_fields[field].get_default(call_default_factory=True)}
    for field in SUBSET_RULES:
        for name in getattr(config, field):
            if name not in read and name not in defaults:
                raise ConfigError(f"{field} names '{name}'{nearest(name, read)}", f"subsets: {', '.join(read)}", "correct the name")


def refuse_nothing(through: Read, output: Output, drops: Drops) -> None:
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
            raise InputError(what, f"most often: {reasons}", "mend the source, or relax the rule that drops them")
    for source in through.arrived:
        if not output.kept_of[source.name]:
            what = f"no row of source '{source.name}' is left: all {through.of_source[source.name]:,} were dropped"
            raise InputError(
                what, f"most often: {drops.biggest(source=source.name)}", "mend the source, relax the rule, or leave the source out"
            )


def summary(parts: list[Part], drops: Drops) -> list[str]:
    """What was made and what was dropped, a sentence each."""
    sizes = ", ".join(f"{subset} {sum(part.rows for part in of_subset):,}" for subset, of_subset in by_subset(parts).items())
    lines = [f"rows kept: {sizes}"]
    if len(drops):
        lines.append(f"rows dropped: {drops.biggest(show=8)} (README.md shows examples)")
    return lines


def outcome(config: BuildConfig, read: Read, parts: list[Part], drops: Drops) -> Outcome:
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
            "sources": sources,
        },
        seeds={"starter set": "seed", "held-out groups": "seed", "near duplicates": "fixed"},
        notes=[note for source in read.arrived for note in source.notes],
        failed_items=len(drops),
        tolerated_items=int(config.max_dropped * read.rows),
    )
