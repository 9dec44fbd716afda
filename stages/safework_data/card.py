"""The data card: a README that the ``datasets`` library reads for its configurations, and people for the counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import yaml

from safework_cli.report.text import escaped
from safework_cli.rows import Row
from safework_data.drops import Drops

SHOWN_CATEGORIES = 30


@dataclass(frozen=True, slots=True)
class SourceLine:
    """One line of the table of sources: rows as they came, before any check."""

    name: str
    origin: str
    licence: str
    rows: int
    kept: int


def front_matter(parts: Mapping[str, Mapping[str, list[Row]]], languages: Iterable[str]) -> str:
    """YAML that ``datasets.load_dataset(folder, subset)`` follows: one configuration a subset, one split a file."""
    configs = [
        {"config_name": subset, "data_files": [{"split": split, "path": f"{subset}/{split}.parquet"} for split in splits]}
        for subset, splits in parts.items()
    ]
    values = {"language": sorted(languages), "license": "other", "tags": ["safework"], "configs": configs}
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---\n"


def render_card(parts: Mapping[str, Mapping[str, list[Row]]], sources: list[SourceLine], drops: Drops, read: int) -> str:
    """The whole README.

    Args:
        parts: subset → split → rows kept.
        sources: one line each.
        drops: what went, and why.
        read: rows read, before any check.
    """
    rows = [row for splits in parts.values() for kept in splits.values() for row in kept]
    languages = {str(row.meta.get("language", "")) for row in rows} - {""}
    blocks = [
        front_matter(parts, languages),
        "# Data card\n",
        f"{read:,} rows were read, {len(drops.all):,} dropped, {len(rows):,} kept.",
        "Every dropped row is listed with its reason in `drops.jsonl`.\n",
        "## Sources\n",
        _table(
            ["source", "from", "licence", "rows read", "kept"],
            [[escaped(s.name), escaped(s.origin), escaped(s.licence or "unknown"), f"{s.rows:,}", f"{s.kept:,}"] for s in sources],
        ),
        "## Subsets\n",
        _table(
            ["subset", "split", "rows", "groups", "with a reply", "mean characters"],
            [_subset_line(subset, split, kept) for subset, splits in parts.items() for split, kept in splits.items()],
        ),
    ]
    for title, key in (("task", lambda row: row.task), ("language", lambda row: str(row.meta.get("language", "")))):
        blocks += [f"### Rows by {title}\n", _crossed(title, parts, key)]
    blocks += ["### Rows by category\n", _crossed("category", parts, lambda row: row.category or "(none)")]
    blocks += ["## Dropped\n", *_dropped(drops)]
    return "\n".join(blocks)


def _subset_line(subset: str, split: str, rows: list[Row]) -> list[str]:
    characters = sum(len(m["content"]) for row in rows for m in row.messages)
    replies = sum(row.reply is not None for row in rows)
    return [subset, split, f"{len(rows):,}", f"{len({row.group for row in rows}):,}", f"{replies:,}", f"{characters / len(rows):,.0f}"]


def _crossed(title: str, parts: Mapping[str, Mapping[str, list[Row]]], key: Callable[[Row], str]) -> str:
    counted = {subset: Counter(key(row) for rows in splits.values() for row in rows) for subset, splits in parts.items()}
    total: Counter[str] = sum(counted.values(), Counter())
    lines = [[escaped(name), *(f"{counted[subset][name]:,}" for subset in parts)] for name, _ in total.most_common(SHOWN_CATEGORIES)]
    if len(total) > SHOWN_CATEGORIES:
        lines.append([f"{len(total) - SHOWN_CATEGORIES:,} more", *("" for _ in parts)])
    return _table([title, *parts], lines)


def _dropped(drops: Drops) -> list[str]:
    if not drops.all:
        return ["Nothing was dropped.\n"]
    blocks = [_table(["reason", "rows"], [[escaped(reason), f"{count:,}"] for reason, count in drops.counts().items()])]
    suites = Counter(drop.suite for drop in drops.all if drop.suite)
    if suites:
        blocks += ["Rows dropped for holding an evaluation prompt, by suite:\n"]
        blocks += [_table(["suite", "rows"], [[escaped(suite), f"{count:,}"] for suite, count in suites.most_common()])]
    for reason in drops.counts():
        lines = [f"- {escaped(e.id)}{f' ({escaped(e.detail)})' if e.detail else ''}: {escaped(e.excerpt)}" for e in drops.examples[reason]]
        blocks.append(f"### {escaped(reason)}\n\n" + "\n".join(lines) + "\n")
    return blocks


def _table(header: list[str], lines: list[list[str]]) -> str:
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *lines]) + "\n"
