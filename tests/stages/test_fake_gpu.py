"""The tests of ``on_fake_gpu.py``, in a process in which the pretended GPU is there from the start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FILE = Path(__file__).with_name("on_fake_gpu.py")


def test_every_loop_runs_on_a_gpu_that_is_pretended():
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short", str(FILE)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
