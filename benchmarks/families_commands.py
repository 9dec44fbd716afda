"""The commands of the table in ``families.py``: each in a process of its own, which is forked so that libraries are loaded once."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

STEPS = ["max_steps=1", "per_device_train_batch_size=4", "gradient_accumulation_steps=1", "learning_rate=1e-4"]
RL = [
    *STEPS, "num_generations=2", "max_completion_length=8", "require_gradient=false", "preflight=0", "language={mode: 'off'}",
    "format={mode: term, weight: 0.1}", "save_steps=1",
]  # fmt: skip
M3 = [*RL, "phases=[{tasks: [general], share: 1}]", "rewards={general: {correctness: 1.0}}", "filter_groups=false"]
JUDGE = ["task=value", "instruction=short", "max_length=900", "eval_fraction=0.4", "attack_rows=0", *STEPS]
EVAL = ["max_tokens=4", "dtype=float32", "max_failed=0", "suites=[{name: k, rows: {task: general}}]"]
SEARCH = ["method=best_of_n", "candidates=2", "max_tokens=6", "batch_prompts=4", "guide.g=rule:correctness", "max_failed=1"]
ROLLOUTS = [
    "rules={general: correctness}", "replies=4", "prefixes=2", "continuations=2", "max_tokens=24",
    "boundaries=[a, e, i, o, u, b, c, d, s, t, r, ' ']",
    "max_failed=1",
]  # fmt: skip
COT = ["rules=[]", "samples=8", "max_tokens=6", "max_failed=1"]
COLUMNS: dict[str, list[str]] = {
    "build model=, img": ["data", "build", "data.rows=DATA:img", "model=MODEL", "--name", "built-img"],
    "build model=, text": ["data", "build", "data.rows=DATA:text", "model=MODEL", "--name", "built-text"],
    "preview img": ["data", "preview", "DATA/img", "--model", "MODEL", "-n", "1"],
    "preview text": ["data", "preview", "DATA/text", "--model", "MODEL", "-n", "1"],
    "sft img": ["sft", "model=MODEL", "data=DATA/img", *STEPS, "sample_prompts=1", "sample_max_tokens=4", "--name", "sft-img"],
    "sft text": ["sft", "model=MODEL", "data=DATA/text", *STEPS, "sample_prompts=1", "sample_max_tokens=4", "--name", "sft-text"],
    "m3 img": ["rl", "m3", "model=MODEL", "data=DATA/img", *M3, "--name", "m3-img"],
    "m3 mixed": ["rl", "m3", "model=MODEL", "data=DATA/mixed", *M3, "share_prompts=false", "--name", "m3-mixed"],
    "m3 img after sft text": ["rl", "m3", "model=sft-text", "data=DATA/img", *M3, "--name", "m3-after"],
    "efficient img": ["rl", "efficient", "model=MODEL", "data=DATA/img", *RL, "tasks=[general]", "rewards={general: {correctness: 1.0}}"],
    "verifier train img": ["verifier", "train", "model=MODEL", "data=DATA/judged-img", *JUDGE, "--name", "judge-img"],
    "verifier train text": ["verifier", "train", "model=MODEL", "data=DATA/judged-text", *JUDGE, "--name", "judge-text"],
    "verifier score img": ["verifier", "score", "data=DATA/judged-img", "verifiers.j=judge-img", "limit=4"],
    "rollouts img": ["verifier", "rollouts", "model=MODEL", "data=DATA/img", *ROLLOUTS, "--name", "rolled-img"],
    "values img": ["verifier", "values", "model=MODEL", "data=rolled-img", "eval_fraction=0.4", "max_length=900", *STEPS],
    "cot img": ["data", "cot", "model=STOPS", "data=DATA/img", *COT, "--name", "cot-img"],
    "eval img": ["eval", "model=MODEL", "data=DATA/img", *EVAL, "--name", "eval-img"],
    "eval text": ["eval", "model=MODEL", "data=DATA/text", *EVAL, "--name", "eval-text"],
    "search img": ["search", "model=MODEL", "prompts=DATA/img", *SEARCH, "--name", "search-img"],
    "search text": ["search", "model=MODEL", "prompts=DATA/text", *SEARCH, "--name", "search-text"],
}
"""Column → what is typed."""


def write_data(folder: Path) -> None:
    """Rows of text, with images, of both, and with labels."""
    from exactness import image, row
    from safework_cli.data.row import Message, Row, write_rows

    def colour(number: int) -> dict[str, Any]:
        return image(40 + 8 * (number % 3), 40, 1 + number)

    def rows(kind: str, count: int = 12) -> list[Row]:
        made = []
        for number in range(count):
            seen = kind == "img" or (kind == "mixed" and number % 2 == 0)
            asked = "<image>Which number is it?" if seen else f"Which number is it, {number}?"  # images alone make prompts different
            one = row(number, asked, str(number), *([colour(number)] if seen else []))
            one.answer, one.meta = str(number), {"answer_type": "exact"}
            made.append(one)
        return made

    def judged(kind: str) -> list[Row]:
        made = rows(kind, 40)
        for number, one in enumerate(made):
            one.task, one.meta = "value", {"label": ("good", "bad")[number % 2]}
            one.messages[-1] = Message(role="assistant", content=("yes", "no")[number % 2])
        return made

    for name in ("img", "text", "mixed"):
        (folder / name).mkdir(parents=True)
        write_rows(folder / name / "rows.parquet", rows(name))
    for name in ("img", "text"):
        (folder / f"judged-{name}").mkdir()
        write_rows(folder / f"judged-{name}" / "rows.parquet", judged(name))


def commands_of(family: str, text_model: Path, folder: Path, say: Any) -> dict[str, dict[str, str]]:
    """Column → its kind, and why where it is not ✓."""
    import tiny_vision

    if not (folder / "model" / "config.json").exists():
        tiny_vision.create(family, text_model, folder / "model")
    tiny_vision.stops_soon(folder / "model", folder / "stops")
    write_data(folder / "data")
    found: dict[str, dict[str, str]] = {}
    for column, words in COLUMNS.items():
        start = time.monotonic()
        typed = words
        for name in ("MODEL", "STOPS", "DATA"):
            typed = [word.replace(name, str(folder / name.lower())) for word in typed]
        code, output = forked(typed, folder)
        found[column] = judged_cell(column, code, output, folder)
        note = "" if found[column]["kind"] == "✓" else f" {found[column]['why']}"
        print(f"  {family}, {column}: {found[column]['kind']}{note} ({time.monotonic() - start:.0f} s)", file=say, flush=True)
    return found


def forked(words: list[str], folder: Path) -> tuple[int, str]:
    """Exit status and output of ``safework WORDS``."""
    log = folder / "output.txt"
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # replaces the thread pool that the fork leaves; two threads that do so at once fail
        code = 1
        with suppress(BaseException), log.open("wb", buffering=0) as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
            os.environ["SAFEWORK_STORE"] = str(folder / "store")
            sys.argv = ["safework", *words]
            try:
                from safework_cli.cli.main import main

                main()
                code = 0
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else 1
            except BaseException:
                import traceback

                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")


EXCEPTION = re.compile(r"[A-Z]\w*(Error|Exception)\b")
"""A message that names a Python exception is not a refusal with a reason."""


def judged_cell(column: str, code: int, output: str, folder: Path) -> dict[str, str]:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    last = " ".join(lines[-3:])[:400]
    if "Traceback" in output or code not in (0, 2, 3, 4, 5):
        return {"kind": "T", "why": last}
    if code:
        at = next((place for place, line in enumerate(lines) if line.lower().startswith("error")), None)
        why = last if at is None else " ".join(lines[at : at + 2])[:400]
        return {"kind": "T" if EXCEPTION.search(why) else "R", "why": why}
    if why := CHECKS.get(column, lambda *_: "")(output, folder):
        return {"kind": "W", "why": why}
    return {"kind": "✓", "why": ""}


def _preview(output: str, _: Path) -> str:
    if "<image>" in output:
        return "the literal <image> is among the tokens"
    return "" if "Which number is it" in output.replace("\n", "") else "the question is not among the tokens"


def _processor(output: str, folder: Path) -> str:
    from safework_cli.core.artifacts import default_store
    from safework_cli.models.load import load_tokenizer
    from safework_cli.models.processors import load_processor

    made = default_store(folder / "store").resolve("sft-text", ("model",)).path
    load_processor(made)
    same = load_tokenizer(made).chat_template == load_tokenizer(folder / "model").chat_template
    return "" if same else "the saved model has another template"


def _replies_differ(name: str, folder: Path) -> str:
    """Prompts differ in a digit, or in their images, only: a model that gets none of it would give one reply to all, with equal
    probabilities."""
    import pyarrow.parquet as pq

    from safework_cli.core.artifacts import default_store

    made = default_store(folder / "store").resolve(name, ("generations",)).path
    candidates = pq.read_table(made / "generations.parquet")["candidates"].to_pylist()
    return "" if len(set(candidates)) == len(candidates) else "different prompts have the same candidates"


def _rows_keep_images(name: str, folder: Path) -> str:
    from safework_cli.core.artifacts import default_store
    from safework_cli.data.row import read_rows

    asked = {row.id: row.images for row in read_rows(folder / "data" / "img")}
    made = read_rows(default_store(folder / "store").resolve(name, ("dataset",)).path)
    kept = made and all(row.images == asked[row.id.partition("#")[0].partition("@")[0]] for row in made)
    return "" if kept else "rows have other images than their prompts"


CHECKS: dict[str, Callable[[str, Path], str]] = {
    "preview img": _preview,
    "preview text": _preview,
    "sft text": _processor,
    "rollouts img": lambda _, folder: _rows_keep_images("rolled-img", folder),
    "cot img": lambda _, folder: _rows_keep_images("cot-img", folder),
    "search img": lambda _, folder: _replies_differ("search-img", folder),
    "search text": lambda _, folder: _replies_differ("search-text", folder),
}
"""Column → what would be wrong although the command ended with 0."""
