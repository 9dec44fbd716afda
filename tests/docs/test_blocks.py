"""The shell blocks of the pages work as printed: those marked ``<!-- run: tiny -->`` are executed, in the order of their page.

A page's folder holds what its text says the reader has: ``./mymodel`` (tiny, random), ``rows.jsonl``, and the recipes of a clone. Nothing
in a block is replaced. Files that a page prints (``<!-- file: data.yaml -->``) are saved first. Environment variables make the runs
small, as a reader could.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pages import PAGES, ROOT, files, name_of, shell_blocks

SMALL = {
    "SAFEWORK_SFT__MAX_STEPS": "2",
    "SAFEWORK_SFT__MAX_DROPPED": "0.9",  # a byte-level tokenizer makes rows long
    "SAFEWORK_SFT__PER_DEVICE_TRAIN_BATCH_SIZE": "4",
    "SAFEWORK_SFT__SAMPLE_PROMPTS": "2",
    "SAFEWORK_SFT__SAMPLE_MAX_TOKENS": "8",
    "SAFEWORK_VERIFIER_TRAIN__HEAD": "probe",
    "SAFEWORK_VERIFIER_TRAIN__TRAIN_LAYERS": "0",
    "SAFEWORK_VERIFIER_TRAIN__INSTRUCTION": "short",
    "SAFEWORK_VERIFIER_TRAIN__MAX_LENGTH": "384",
    "SAFEWORK_VERIFIER_TRAIN__ATTACK_ROWS": "2",
    "SAFEWORK_RL_M3__MAX_STEPS": "2",
    "SAFEWORK_RL_M3__NUM_GENERATIONS": "2",
    "SAFEWORK_RL_M3__PER_DEVICE_TRAIN_BATCH_SIZE": "4",
    "SAFEWORK_RL_M3__GRADIENT_ACCUMULATION_STEPS": "1",
    "SAFEWORK_RL_M3__MAX_COMPLETION_LENGTH": "16",
    "SAFEWORK_RL_M3__PREFLIGHT": "0",  # the judge is as random as the model
    "SAFEWORK_RL_M3__REQUIRE_GRADIENT": "false",
    "SAFEWORK_EVAL__MAX_TOKENS": "16",
    "SAFEWORK_SEARCH__MAX_TOKENS": "16",
    "SAFEWORK_SEARCH__STEP_TOKENS": "8",
    "SAFEWORK_SEARCH__LIMIT": "2",
}
"""Settings that would be chosen by the size of a real model."""
RUNNABLE = [page for page in PAGES if any(block.kind == "run" for block in shell_blocks(page))]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_shell_block_says_whether_it_is_run(page: Path):
    unmarked = [block.line for block in shell_blocks(page) if not block.kind]
    assert not unmarked, f"{page}, lines {unmarked}: write <!-- run: tiny --> or <!-- not run: REASON --> on the line before the block"
    assert {block.detail for block in shell_blocks(page) if block.kind == "run"} <= {"tiny"}


def test_the_pages_of_the_first_ten_minutes_are_run():
    assert {"README.md", "docs/your-model.md"} <= {name_of(page) for page in RUNNABLE}


@pytest.fixture
def desk(tmp_path: Path, tiny_model: Path) -> Path:
    """A folder with a model, rows and the recipes."""
    shutil.copytree(tiny_model, tmp_path / "mymodel")
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    rows = [{"prompt": f"What is {i} plus {3 * i}?", "response": f"{i} plus {3 * i} is {4 * i}."} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", RUNNABLE, ids=name_of)
def test_the_blocks_of_a_page_run(page: Path, desk: Path, forks):
    for name, text in files(page).items():
        (desk / name).write_text(text, encoding="utf-8")
    blocks = [block for block in shell_blocks(page) if block.kind == "run"]
    script = "\n".join(["set -euo pipefail", *(f"# {name_of(page)}, line {block.line}\n{block.text}" for block in blocks)])
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SAFEWORK_")} | SMALL
    environment["PATH"] = os.pathsep.join([str(forks.folder), str(Path(sys.executable).parent), environment["PATH"]])
    done = subprocess.run(["bash", "-xc", script], cwd=desk, env=environment, capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
