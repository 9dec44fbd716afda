"""A file of rows where a dataset is wanted, such as ``data=./rows.jsonl``: ``data build`` makes a dataset artifact of it first.

The request is that of ``safework data build sources='[{kind: file, path: …}]' near_duplicate_threshold=null``, with its settings, code and
fingerprint: an unchanged file finds the artifact that was made of it, a changed one becomes its next version. The builder is looked up by
its registered name: the core imports no stage.
"""

from __future__ import annotations

import json
from pathlib import Path

from safework_cli.core.artifacts.manifest import Manifest
from safework_cli.core.artifacts.references import PathReference, parse_reference
from safework_cli.core.config import Resolved, resolve
from safework_cli.core.registry import load_stage, stage_entries
from safework_cli.core.stage import Stage

BUILDER = "data build"
RULES = "near_duplicate_threshold=null"
"""How a file of a user's own is built where nothing else was asked for: rows that are alike, such as rows of one template, were meant."""
MAX_DROPPED = 0.05
"""Share of a file's rows that may be dropped on the way, for a stage without such a limit of its own."""
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")


def file_reference(reference: str, kinds: tuple[str, ...]) -> PathReference | None:
    """The file that a reference names, where a dataset is accepted and the file is a table by its name; None for every other reference."""
    if "dataset" not in kinds:
        return None
    parsed = parse_reference(reference)
    if not isinstance(parsed, PathReference) or not parsed.path.is_file():
        return None
    name = parsed.path.name.lower().removesuffix(".gz")
    return parsed if name.endswith(SUFFIXES) else None


def build_request(path: Path) -> tuple[Stage, Resolved]:
    """The stage that builds a dataset of a file, and what is asked of it."""
    builder = load_stage(BUILDER)
    return builder, resolve(builder, (), [sources_of(path), RULES], known_stages=list(stage_entries()))


def sources_of(path: Path) -> str:
    """The setting that names the file, as it is typed."""
    path = path.parent.resolve() / path.name  # part of the request: ./rows.jsonl and ../here/rows.jsonl are one file
    return f"sources={json.dumps([{'kind': 'file', 'path': str(path)}])}"


def dropped_note(reference: str, made: Manifest) -> str:
    """What the build left out of a file, in a sentence; empty where it kept every row."""
    if not made.failed_items:
        return ""
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in made.metrics.get("dropped", {}).items())
    return (
        f"{BUILDER} of {reference}: {made.failed_items:,} of {made.metrics['read']:,} rows dropped: {reasons} "
        f"(drops.jsonl of {made.kind}/{made.name}@v{made.version} lists them)"
    )
