"""The data card: a README that the ``datasets`` library reads for its configurations, and people for the counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CardData

from safework_cli.core.artifacts.manifest import sha256_of
from safework_cli.report.text import escaped
from safework_data.build.drops import Drops
from safework_data.build.tally import Part, by_subset, languages, total

SHOWN_CATEGORIES = 30


@dataclass(frozen=True, slots=True)
class SourceLine:
    """One line of the table of sources: rows as they came, before any check."""

    name: str
    origin: str
    licence: str
    rows: int
    kept: int


def front_matter(parts: list[Part], folder: Path) -> str:
    """YAML that ``datasets.load_dataset(folder, subset)`` follows: one configuration a subset, one split a file.

    Its cache knows a folder by its last name ("v1") and this text: a digest of the rows makes the text of two datasets differ.
    """
    configs = [
        {
            "config_name": subset,
            "description": "sha256 " + " ".join(sha256_of(folder / subset / f"{p.split}.parquet")[:16] for p in of_subset),
            "data_files": [{"split": p.split, "path": f"{subset}/{p.split}.parquet"} for p in of_subset],
        }
        for subset, of_subset in by_subset(parts).items()
    ]
    values: dict[str, Any] = {"language": list(languages(parts)), "license": "other", "tags": ["safework"], "configs": configs}
    return f"---\n{CardData(**values).to_yaml()}\n---\n"


def render_card(parts: list[Part], sources: list[SourceLine], drops: Drops, read: int, folder: Path, notes: Sequence[str] = ()) -> str:
    """The whole README.

    Args:
        parts: what was kept, counted.
        sources: one line each.
        drops: what went, and why.
        read: rows read, before any check.
        folder: where the Parquet files lie.
        notes: how sources were read and what was changed, a sentence each.
    """
    blocks = [
        front_matter(parts, folder),
        "# Data card\n",
        f"{read:,} rows were read, {len(drops):,} dropped, {sum(part.rows for part in parts):,} kept.",
        "Every dropped row is listed with its reason in `drops.jsonl`.\n",
        "## Sources\n",
        table(
            ["source", "from", "licence", "rows read", "kept"],
            [[escaped(s.name), escaped(s.origin), escaped(s.licence or "unknown"), f"{s.rows:,}", f"{s.kept:,}"] for s in sources],
        ),
        "## Subsets\n",
        table(
            ["subset", "split", "rows", "groups", "with a reply", "mean characters"],
            [_subset_line(part) for part in parts],
        ),
    ]
    for what in ("task", "language", "category"):
        blocks += [f"### Rows by {what}\n", _crossed(what, parts)]
    if notes:
        blocks += ["## Notes\n", *(f"- {escaped(note)}" for note in notes), ""]
    blocks += ["## Dropped\n", *_dropped(drops)]
    return "\n".join(blocks)


def _subset_line(part: Part) -> list[str]:
    counts = f"{part.rows:,}", f"{part.groups:,}", f"{part.replies:,}", f"{part.characters / part.rows:,.0f}"
    return [part.subset, part.split, *counts]


def _crossed(what: str, parts: list[Part]) -> str:
    subsets = {subset: total(of_subset, what) for subset, of_subset in by_subset(parts).items()}
    counted = total(parts, what)
    lines = [[escaped(name), *(f"{of[name]:,}" for of in subsets.values())] for name, _ in counted.most_common(SHOWN_CATEGORIES)]
    if len(counted) > SHOWN_CATEGORIES:
        lines.append([f"{len(counted) - SHOWN_CATEGORIES:,} more", *("" for _ in subsets)])
    return table([what, *subsets], lines)


def _dropped(drops: Drops) -> list[str]:
    if not len(drops):
        return ["Nothing was dropped.\n"]
    blocks = [table(["reason", "rows"], [[escaped(reason), f"{count:,}"] for reason, count in drops.counts().items()])]
    if drops.by_suite:
        blocks += ["Rows dropped for holding an evaluation prompt, by suite:\n"]
        blocks += [table(["suite", "rows"], [[escaped(suite), f"{count:,}"] for suite, count in drops.by_suite.most_common()])]
    for reason in drops.counts():
        lines = [f"- {escaped(e.id)}{f' ({escaped(e.detail)})' if e.detail else ''}: {escaped(e.excerpt)}" for e in drops.examples[reason]]
        blocks.append(f"### {escaped(reason)}\n\n" + "\n".join(lines) + "\n")
    return blocks


def table(header: list[str], lines: list[list[str]]) -> str:
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *lines]) + "\n"
