"""``safework runs``: what the runs of a store are doing, and the log of one."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Optional

import typer

from safework_cli.cli.hints import HintGroup
from safework_cli.cli.json_output import print_json
from safework_cli.cli.options import STORE
from safework_cli.core.terminal import console, visible

JSON = typer.Option(False, "--json", help="Print JSON on stdout.")
RUN = typer.Argument(
    None,
    metavar="[RUN]",
    help="A run's name or the beginning of it, or the artifact that it made. The newest run where none is given.",
    show_default=False,
)
SECONDS_BETWEEN_LOOKS = 0.5


class RunsGroup(HintGroup):
    word = "runs"


def command() -> Any:
    app = typer.Typer(
        cls=RunsGroup,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        help="List the runs of a store, show one, follow its log.",
    )
    app.callback()(lambda: None)

    @app.command(name="ls", help="List runs, the newest last: running, stopped, failed and done.")
    def list_runs(
        unfinished: bool = typer.Option(False, "--unfinished", help="Only those that have made no artifact."),
        store: Optional[Path] = STORE,
        as_json: bool = JSON,
    ) -> None:
        from safework_cli.core.artifacts import default_store
        from safework_cli.core.formats import age
        from safework_cli.core.run_states import runs_of

        where = default_store(store)
        found = runs_of(where, finished=not unfinished)
        if as_json:
            print_json([_summary(run) for run in found])
            return
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, header_style="bold")
        for column in ("run", "stage", "state", "step", "age", ""):
            table.add_column(column, overflow="fold")
        styles = {"running": "cyan", "failed": "red", "stopped": "yellow", "done": "green"}
        now = time.time()
        for run in found:
            step = "" if run.step is None else str(run.step)
            table.add_row(
                Text(run.name), run.stage, Text(run.state, style=styles[run.state]), step, age(now - run.written), Text(run.detail)
            )
        console(width=None if sys.stdout.isatty() else 200).print(table if found else f"no runs in {where.root}")

    @app.command(help="Show what a run was asked for, its state, its last metrics and its warnings.")
    def show(name: Optional[str] = RUN, store: Optional[Path] = STORE, as_json: bool = JSON) -> None:
        from safework_cli.core.artifacts import default_store
        from safework_cli.core.run_states import find_run
        from safework_cli.core.yaml_text import dump_yaml

        run = find_run(default_store(store), name)
        metrics = run.metrics()
        shown = _summary(run) | run.request() | {"metrics": metrics[-1] if metrics else {}}
        warnings = [str(event.get("text")) for event in run.events([]) if event.get("event") == "warning"]
        shown |= {"warnings": warnings} if warnings else {}
        if as_json:
            print_json(shown)
        else:
            print(visible(dump_yaml(shown)), end="")

    @app.command(help="Print the last lines of a run's log: its phases, notes, warnings and metrics.")
    def tail(
        name: Optional[str] = RUN,
        lines: int = typer.Option(20, "-n", "--lines", min=1, help="How many events, and how many steps."),
        follow: bool = typer.Option(False, "-f", "--follow", help="Print further lines until the run ends."),
        store: Optional[Path] = STORE,
    ) -> None:
        from safework_cli.core.artifacts import default_store
        from safework_cli.core.progress import headlines
        from safework_cli.core.run_states import find_run, log_lines

        where = default_store(store)
        run = find_run(where, name)
        events, metrics = run.events([]), run.metrics()
        shown_events, shown_metrics = max(len(events) - lines, 0), max(len(metrics) - lines, 0)
        while True:
            new = [*log_lines(events[shown_events:])]
            new += [
                f"step {record['step']}: " + headlines({key: value for key, value in record.items() if key != "step"})
                for record in metrics[shown_metrics:]
            ]
            for line in new:
                print(visible(line))
            sys.stdout.flush()
            shown_events, shown_metrics = len(events), len(metrics)
            if not follow or run.state != "running":
                break
            time.sleep(SECONDS_BETWEEN_LOOKS)
            run = find_run(where, run.name)
            events, metrics = run.events([]), run.metrics()
        print(visible(f"{run.name}: {run.state}{f' ({run.detail})' if run.detail else ''}"))

    @app.command(help="Print a run's folder: events.jsonl, metrics.jsonl, checkpoints.")
    def path(name: Optional[str] = RUN, store: Optional[Path] = STORE) -> None:
        from safework_cli.core.artifacts import default_store
        from safework_cli.core.run_states import find_run

        print(find_run(default_store(store), name).folder)

    return typer.main.get_command(app)


def _summary(run: Any) -> dict[str, Any]:
    return {
        "run": run.name,
        "stage": run.stage,
        "state": run.state,
        "detail": run.detail,
        "step": run.step,
        "written": datetime.fromtimestamp(run.written, UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "fingerprint": run.fingerprint,
        "path": str(run.folder),
        "artifact": run.artifact.ref if run.artifact else None,
    }
