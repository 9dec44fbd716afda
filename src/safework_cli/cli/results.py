"""What the command of a stage prints: the plan, the reference, and what the stage has to show."""

from __future__ import annotations

import json
from typing import Any

from safework_cli.cli.json_output import print_json
from safework_cli.core.plan.estimate import estimate_lines
from safework_cli.core.stage import Stage
from safework_cli.core.terminal import console, say

LOG_COLUMNS = 160
"""Of a table in a log file, which wraps nothing."""


def say_result(result: Any, *, as_json: bool, quiet: bool) -> None:
    """The result of a command: the reference (or one JSON object) on stdout, a summary on stderr."""
    manifest = result.artifact.manifest
    if not quiet:
        how = "already done" if result.already else f"done in {manifest.wall_seconds:.1f} s"
        say(f"{manifest.stage}: {how} → {result.artifact.ref}")
        if result.note:
            say(result.note)
    for gate in manifest.failed_gates:
        say(f"gate failed: {gate}")
    if manifest.failed_items > manifest.tolerated_items:
        say(f"error: {manifest.failed_items} items failed, {manifest.tolerated_items} are tolerated")
    if as_json:
        print_json(
            {
                "ref": result.artifact.ref,
                "already": result.already,
                "path": str(result.artifact.path),
                **manifest.model_dump(exclude={"files"}),
            }
        )
    else:
        print(result.artifact.ref)


def show_result(stage: Stage, artifact: Any) -> None:
    """What the stage has to show of a finished result, on stderr."""
    shown = stage.show(artifact)
    if shown is not None:
        out = console(stderr=True)
        if not out.is_terminal:
            out.width = LOG_COLUMNS
        out.print(shown)


def show_plan(prepared: Any, store: Any, *, as_json: bool) -> int:
    """Prints what would run: to stdout as JSON, else to stderr for people. Exits like the first refusal."""
    plan, resolved = prepared.plan, prepared.resolved
    done = store.find_run(prepared.fingerprint, prepared.kind, prepared.name)
    estimates = {
        "optimizer_steps": plan.optimizer_steps,
        "tokens": plan.tokens,
        "disk_bytes": plan.disk_bytes,
        **(plan.estimate.to_json() if plan.estimate is not None else {}),
    }
    refused = [*plan.refusals, *([plan.too_large] if plan.too_large is not None and done is None else [])]
    code = refused[0].exit_code if refused else 0
    if as_json:
        settings = {key: {"value": value, "source": source} for key, value, source in resolved.rows()}
        refusals = [{"what": r.what, "why": r.why, "do": r.do} for r in refused]
        inputs = {key: a.ref for key, a in prepared.inputs.flat().items()}
        print_json(
            {
                "stage": prepared.stage.name,
                "fingerprint": prepared.fingerprint,
                "name": prepared.name,
                "inputs": inputs,
                "settings": settings,
                "plan": plan.lines,
                "estimates": estimates,
                "refusals": refusals,
                "already": done.ref if done else None,
            }
        )
        return code
    from rich.table import Table
    from rich.text import Text

    out = console(stderr=True)
    table = Table(title=f"safework {prepared.stage.name}", title_justify="left", box=None, header_style="bold")
    for column in ("key", "value", "from"):
        table.add_column(column, overflow="fold")
    for key, artifact in prepared.inputs.flat().items():
        table.add_row(key, Text(artifact.ref), Text(resolved.sources.get(key, "")))
    for key, value, source in resolved.rows():
        table.add_row(key, Text(json.dumps(value, ensure_ascii=False)), Text(source, style="dim" if source == "default" else ""))
    out.print(table)
    for line in plan.lines:
        out.print(Text(f"  {line}"))
    for line in estimate_lines(plan):
        out.print(Text(f"  {line}"))
    out.print(
        Text(
            f"  → {prepared.kind}/{prepared.name}, fingerprint {prepared.fingerprint[:16] or 'not known before the data is built'}"
            + (f", already done as {done.ref}" if done else "")
        )
    )
    for refusal in refused:
        out.print(Text(f"refused: {refusal}", style="red"))
    return code
