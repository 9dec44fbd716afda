"""The evidence: long runs as one command each, their records, the bars, and the tables of docs/results.md and README.md.

    python benchmarks/evidence.py run demo --seed 0    # run it again after any stop: finished steps are recognised
    python benchmarks/evidence.py list                 # the runs, their seeds, and which are recorded
    python benchmarks/evidence.py run long --only m3   # this step and what it needs, without a record
    python benchmarks/evidence.py plan                 # estimated minutes of each run; with a run's name, its commands as well
    python benchmarks/evidence.py table                # writes the tables of docs/results.md and README.md
    python benchmarks/evidence.py --json               # every bar with what was measured

``run`` writes benchmarks/evidence/RUN-seedN.json. Artifacts are in SAFEWORK_STORE, or ./artifacts. The public sets of a long run are read
from SAFEWORK_DATA.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from evidence_bar import judged
from evidence_bars import BARS
from evidence_records import EvidenceError, Record, Step, curve_of, evaluations_of, read_records, write_record
from evidence_runs import ROOT, Definition, Done, commands, definitions, estimates, execute
from evidence_tables import filled

PAGES = (ROOT / "docs" / "results.md", ROOT / "README.md")


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object with every bar")
    parts = parser.add_subparsers(dest="part")
    run = parts.add_parser("run", help="run or resume a run with one seed, and write its record")
    run.add_argument("name")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--only", nargs="+", default=[], metavar="STEP", help="only these steps and what they need; no record is written")
    plan = parts.add_parser("plan", help="print the estimated minutes of the runs, or of one run with its commands")
    plan.add_argument("name", nargs="?")
    table = parts.add_parser("table", help="write the tables of docs/results.md and README.md")
    table.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the page is not up to date")
    parts.add_parser("list", help="list the runs")
    given = parser.parse_args(words)
    try:
        return {"run": _run, "plan": _plan, "table": _table, "list": _list, None: _bars}[given.part](given)
    except EvidenceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def bars() -> list[dict[str, Any]]:
    """Every bar with what the records in the repository say."""
    runs, known = read_records(), definitions()
    return [judged(bar, runs, known[bar.run].seeds if bar.run else ()) for bar in BARS]


def _bars(given: argparse.Namespace) -> int:
    lines = bars()
    if given.json:
        print(json.dumps({"bars": lines}, ensure_ascii=False, indent=1))
        return 0
    for line in lines:
        value = "not run" if line["value"] is None else f"{line['value']:.4g}"
        note = f"; {line['note']}" if line["note"] and line["value"] is not None else ""
        print(f"{'holds' if line['holds'] else 'no   '}  {line['name']}: {value} (bar: {line['bar']}){note}")
    return 0


def _run(given: argparse.Namespace) -> int:
    known = definitions()
    done, measures = execute(known, given.name, given.seed, lambda line: print(line, file=sys.stderr), given.only)
    if given.only:
        print(*(f"{step.name}\t{step.ref}" for step in done), sep="\n")
        return 0
    record = record_of(given.name, given.seed, done, measures, known[given.name])
    print(write_record(record).relative_to(ROOT))
    return 0


def record_of(run: str, seed: int, done: Sequence[Done], measures: dict[str, Any], definition: Definition) -> Record:
    """The record of finished steps, from their artifacts."""
    from common import device

    from safework_cli.core.artifacts import default_store

    store = default_store(None)
    artifacts = {step.name: store.resolve(step.ref) for step in done}
    own = definition.recorded() if definition.starts_from else set(artifacts)  # the others are in the record of the run above
    measured = {name: artifact for name, artifact in artifacts.items() if artifact.kind == "evaluation" and name in own}
    suites, evaluations = evaluations_of({name.removeprefix("eval-"): artifact for name, artifact in measured.items()})
    steps = [
        Step(
            name=step.name,
            command=step.command,
            ref=artifacts[step.name].ref,
            digest=artifacts[step.name].digest,
            seconds=round(artifacts[step.name].manifest.wall_seconds, 1),
            commit=artifacts[step.name].manifest.git_commit,
            metrics={key: artifacts[step.name].manifest.metrics.get(key) for key in definition.keep.get(step.name, [])},
        )
        for step in done
    ]
    return Record(
        record_version=1,
        run=run,
        seed=seed,
        command=f"python benchmarks/evidence.py run {run} --seed {seed}",
        commit=_git("rev-parse", "HEAD"),
        uncommitted=bool(_git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/evidence")),  # other records
        machine=device(),
        final=definition.final,
        steps=steps,
        suites=suites,
        evaluations=evaluations,
        measures=measures,
        curves={name: curve for name, artifact in artifacts.items() if (curve := curve_of(artifact))},
    )


def _git(*words: str) -> str:
    finished = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    if finished.returncode != 0:
        raise EvidenceError(f"a record names its commit, and git says: {finished.stderr.strip()}")
    return finished.stdout.strip()


def _plan(given: argparse.Namespace) -> int:
    known, total = definitions(), 0.0
    if given.name is None:
        for name, definition in known.items():
            minutes = estimates(known, name)
            shared = sum(minutes[step] for step in minutes if definition.starts_from and step not in definition.minutes)
            own = sum(minutes.values()) - shared
            more = f", and {shared:.0f} of {definition.starts_from}, once" if shared else ""
            print(f"{name:20s} {own:5.0f} min a seed{more}; seeds {', '.join(map(str, definition.seeds))}")
            total += own * len(definition.seeds)
        print(f"{'all':20s} {total:5.0f} min with every seed")
        return 0
    planned_commands = commands(known, given.name)
    minutes = estimates(known, given.name)
    for planned in planned_commands:
        words = {"step": "safework", "measure": "python"}[planned.kind]
        print(f"{planned.name} ({minutes[planned.name]:g} min): {words} {planned.text}")
    print(f"all: {sum(minutes.values()):.0f} min a seed")
    return 0


def _list(given: argparse.Namespace) -> int:
    recorded = read_records()
    for name, definition in definitions().items():
        seeds = [record.seed for record in recorded.get(name, ())]
        print(f"{name:20s} seeds {definition.seeds}, recorded {seeds}: {definition.about}")
    return 0


def _table(given: argparse.Namespace) -> int:
    stale = 0
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = filled(before, read_records(), definitions())
        stale += before != after
        if not given.check:
            page.write_text(after, encoding="utf-8")
            print(f"{page.relative_to(ROOT)}: {'written' if before != after else 'up to date'}")
        elif before != after:
            print(f"{page.relative_to(ROOT)} is not up to date: python benchmarks/evidence.py table", file=sys.stderr)
    return int(given.check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
