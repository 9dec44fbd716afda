"""The page: everything gathered, one template, one file. No script, no address outside it; every text of a model is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from safework_cli.core.artifacts import Artifact, Store
from safework_cli.core.artifacts.manifest import write_where_asked
from safework_cli.core.errors import InputError
from safework_cli.core.formats import counts, duration, plain, points, size
from safework_cli.core.terminal import visible
from safework_cli.report import collect
from safework_cli.report.charts import Point, lineage, plot_45
from safework_cli.report.ladder import LadderTable, ladder_table
from safework_cli.report.quadrant import place, sentences

TEMPLATES = Path(__file__).parent / "templates"


def write_report(store: Store, out: Path, damaged: list[InputError] | None = None) -> LadderTable:
    """Writes the report of everything in a store, and returns the ladder's table.

    Args:
        damaged: takes the errors of artifacts that cannot be read and are left out.

    Raises:
        InputError: the store is empty; or an artifact's manifest is damaged, and ``damaged`` is not given.
    """
    artifacts = store.list(damaged=damaged)
    if not artifacts and damaged:
        raise damaged[0]  # a store of damaged artifacts is not an empty one
    if not artifacts:
        raise InputError(
            f"there is nothing in {store.root}",
            "a report of nothing would look like a report",
            "safework ladder -c quickstart/ladder.yaml makes some; or give --store",
        )
    return build_report(artifacts, out)


def build_report(artifacts: Sequence[Artifact], out: Path) -> LadderTable:
    """Writes one HTML file that opens offline.

    Args:
        artifacts: what to show, oldest first.
        out: the file; its folder is made.

    Returns:
        The ladder table that the page holds.
    """
    table = ladder_table(artifacts)
    shown_pairs, last_label, problems = collect.pairs(table)
    shown_verifiers, verifier_problems = collect.verifiers(artifacts)
    values: dict[str, Any] = {
        "style": Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),  # noqa: S704 - our own file
        "version": _version(),
        "artifacts": artifacts,
        "newest": max((a.manifest.created for a in artifacts), default="")[:16].replace("T", " ") + " UTC",
        "table": table,
        "plot": plot_45(_plot_points(table)) if any(r.change for r in table.rungs) else None,
        "quadrant": sentences(table),
        "runs": collect.runs(artifacts),
        "lineage": lineage(collect.lineage_nodes(artifacts)) if artifacts else None,
        "cards": collect.cards(artifacts),
        "datasets": collect.datasets(artifacts),
        "verifiers": shown_verifiers,
        "searches": collect.search_suites(table),
        "pairs": shown_pairs,
        "last_label": last_label,
        "rollouts": collect.rollouts(artifacts),
        "attention": [*_attention(artifacts), *table.warnings, *problems, *verifier_problems],
    }
    html = _environment().get_template("report.html.j2").render(values)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_where_asked(out, html.encode("utf-8"))
    return table


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    formats = {"plain": plain, "counts": counts, "duration": duration, "size": size, "points": points}
    environment.filters |= formats | {"place": place, "anchor": collect.anchor_of}
    return environment


def _finalize(value: Any) -> Any:
    """Every value that the template prints passes here; what is drawn by us is Markup and stays as it is."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else visible(value)


def _plot_points(table: LadderTable) -> list[Point]:
    return [
        Point(
            rung.label,
            rung.change["capability"],
            rung.change["safety"],
            rung.change_interval.get("capability"),
            rung.change_interval.get("safety"),
            rung.after,
        )
        for rung in table.rungs
        if rung.change
    ]


def _attention(artifacts: Sequence[Artifact]) -> list[str]:
    """What did not go as asked, of every artifact: it stands at the top of the page."""
    found = []
    for artifact in artifacts:
        manifest = artifact.manifest
        found += [f"{artifact.ref}: gate failed: {gate}" for gate in manifest.failed_gates]
        if manifest.failed_items > manifest.tolerated_items:
            found.append(f"{artifact.ref}: {manifest.failed_items} items failed, {manifest.tolerated_items} were tolerated")
    return found


def _version() -> str:
    try:
        return version("safework")
    except PackageNotFoundError:
        return "(not installed)"
