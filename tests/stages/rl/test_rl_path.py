"""How many files one reply passes through between its sampling and its loss."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


def test_a_reply_passes_through_five_files():
    done = subprocess.run([sys.executable, str(BENCHMARKS / "reply_path.py"), "--json"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["files"] <= report["most"] == 5
    passed = {file.removeprefix("stages/safework_rl/"): functions for file, functions in report["path"].items()}
    assert passed["step.py"] and passed["losses/cpgd.py"] == ["__call__", "cpgd_loss"], "the whole path was traced"
    assert {"advantages", "score"} <= set(passed["objectives.py"]) and report["judges"]
