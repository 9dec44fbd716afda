"""Vision-language families on tiny random models of their own architecture, with their own chat templates: how exact each path is, and
what each command does.

    python benchmarks/families.py [--family qwen2_5_vl …] [--only exact | table] [--json]

Exact: the largest difference, in nats and over all tokens, of log-probabilities from a plain forward pass over one unpadded sequence, in
float32 (``tests/exactness.py``; of hidden states for value models).

Table: each command in a process of its own, on 12 rows with images and 12 of text. ✓ done, R refused (the reason below the table),
T a traceback or the name of a Python exception, W exit 0 and a wrong result: a text prompt that does not reach the model, a literal
``<image>`` among the tokens, an image that changes nothing, a saved model without its processor.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
os.environ["OMP_NUM_THREADS"] = "1"  # the commands are forks, and torch's threads do not survive a fork

BAR = 1e-5


def measured(family: str, text_model: Path, folder: Path) -> dict[str, float | str | None]:
    """Path → its largest error, None where the architecture does not have it, or the error that ended it."""
    import tiny_vision
    from exactness import PATHS, Model
    from safework_cli.models.load import load_model, load_tokenizer
    from safework_cli.models.processors import load_processor

    tiny_vision.create(family, text_model, folder)
    of = Model(load_model(folder, dtype="float32"), load_tokenizer(folder), load_processor(folder))
    found: dict[str, float | str | None] = {}
    for name, path in PATHS.items():
        try:
            found[name] = path(of)
        except Exception as error:
            traceback.print_exc()
            found[name] = f"{type(error).__name__}: {error}"
    return found


def cell(value: float | str | None) -> str:
    return "–" if value is None else value if isinstance(value, str) else f"{value:.0e}"


def main() -> int:
    from families_commands import COLUMNS, commands_of

    from tiny_vision import FAMILIES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--only", choices=["exact", "table"])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    import torch

    from safework_cli.models.tiny import create_tiny_model

    torch.set_num_threads(1)  # the table forks
    say = sys.stderr if options.json else sys.stdout
    exact: dict[str, dict[str, Any]] = {}
    table: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as place:
        text_model = Path(place) / "text"
        create_tiny_model(text_model)
        for family in options.family:
            folder, start = Path(place) / family, time.monotonic()
            folder.mkdir()
            if options.only != "table":
                try:
                    exact[family] = measured(family, text_model, folder / "model")
                except Exception as error:
                    traceback.print_exc()
                    exact[family] = {"model": f"{type(error).__name__}: {error}"}
                errors = "  ".join(f"{name} {cell(value)}" for name, value in exact[family].items())
                print(f"{family}: {errors}  ({time.monotonic() - start:.0f} s)", file=say, flush=True)
            if options.only != "exact":
                table[family] = commands_of(family, text_model, folder, say)
    bars = [
        {"name": f"{family}, {path}", "value": value, "bar": BAR, "holds": not isinstance(value, str) and value <= BAR}
        for family, paths in exact.items()
        for path, value in paths.items()
        if value is not None
    ]
    bars += [
        {"name": f"{family}, {column}", "value": found["kind"], "bar": "✓ or R", "holds": found["kind"] in ("✓", "R")}
        for family, cells in table.items()
        for column, found in cells.items()
    ]
    if options.json:
        print(json.dumps({"exact": exact, "table": table, "bars": bars}, ensure_ascii=False, indent=1))
    elif table:
        print("| family | " + " | ".join(COLUMNS) + " |\n|" + "---|" * (len(COLUMNS) + 1))
        for family, cells in table.items():
            print(f"| {family} | " + " | ".join(cells[name]["kind"] if name in cells else "" for name in COLUMNS) + " |")
        for family, cells in table.items():
            for name, found in cells.items():
                if found["kind"] != "✓":
                    print(f"{family}, {name}: {found['why']}")
    return 0 if all(bar["holds"] for bar in bars) else 1


if __name__ == "__main__":
    sys.exit(main())
