"""The quickstart's ladder on a tiny model: every stage, then the report, then a second run in which every stage is already done."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from evidence import record_of
from evidence_runs import Definition, Done

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(900)
def test_every_stage_runs_and_the_second_run_is_already_done(tmp_path, forks):
    binary = forks.folder / "safework"
    env = {key: value for key, value in os.environ.items() if not key.startswith("SAFEWORK_")}
    env |= {
        "PATH": f"{binary.parent}:{os.environ['PATH']}",
        "SAFEWORK_STORE": str(tmp_path / "store"),
    }
    report = tmp_path / "report.html"

    def chain() -> subprocess.CompletedProcess[str]:
        return subprocess.run(["bash", str(ROOT / "recipes" / "tiny.sh"), f"out={report}"], env=env, capture_output=True, text=True)

    first = chain()
    assert first.returncode == 0, first.stderr[-3000:]
    printed = [line.split("\t") for line in first.stdout.splitlines()]
    assert printed.pop() == ["report", str(report)] and "<html" in report.read_text()
    listed = subprocess.run([str(binary), "artifacts", "ls", "--json"], env=env, capture_output=True, text=True, check=True)
    stages = [a["stage"] for a in json.loads(listed.stdout)]
    ours = ["models pull", "data build", "data index", "sft", "verifier train", "rl m3", "rl efficient", "rl search", "eval", "search"]
    assert set(stages) == set(ours) and stages.count("eval") == 5
    for row in ("base", "sft", "rl m3", "rl efficient", "rl search"):
        assert f"│ {row}" in first.stderr

    assert "Upper right quadrant" in first.stderr and "s  eval-search      evaluation/" in first.stderr
    assert [name for name, _ in printed][-2:] == ["eval-search", "guided"]
    assert {reference for _, reference in printed} == {a["ref"] for a in json.loads(listed.stdout)}
    rows = {name: n_of(tmp_path / "store" / reference.replace("@", "/")) for name, reference in printed if name.startswith("eval-")}
    assert rows == {"eval-base": 4, "eval-sft": 2, "eval-m3": 2, "eval-efficient": 2, "eval-search": 4}

    record = evidence_of(printed, tmp_path / "store")
    assert list(record.evaluations) == ["base", "sft", "m3", "efficient", "search"] and record.evaluations["m3"].against == "base"
    assert record.suites["harmful"].n == 4 and len(record.evaluations["m3"].outcomes["harmful"]["safety"]) == 2
    assert [step.name for step in record.steps] == [name for name, _ in printed] and len(record.commit) == 40

    second = chain()
    assert second.returncode == 0
    assert second.stderr.count("already done →") == 15 and second.stdout == first.stdout
    assert subprocess.run([str(binary), "artifacts", "verify"], env=env, capture_output=True).returncode == 0


def n_of(evaluation: Path) -> int:
    """Rows of each suite of an evaluation."""
    (rows,) = {suite["rows"] for suite in json.loads((evaluation / "summary.json").read_text())["suites"].values()}
    return rows


def evidence_of(printed: list[list[str]], store: Path):
    """The record of the evidence that this ladder gives: it is checked as it is made."""
    os.environ["SAFEWORK_STORE"] = str(store)
    done = [Done(name, ["bash", "recipes/tiny.sh"], reference) for name, reference in printed]
    return record_of("tiny", 0, done, {}, Definition(about="", seeds=[0], keep={"sft": ["steps"]}))
