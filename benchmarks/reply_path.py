"""The files that one reply of an RL step passes through, from the end of its sampling to its loss.

    python benchmarks/reply_path.py [--json]

Runs two updates of ``safework rl m3`` on a tiny random model, and traces every call of a function of the project (``src``, ``stages``)
between the return of the engine that sampled and the return of the trainer's loss. A file counts where a function of it is called with
a sampled reply's text, its token ids, its reward or its advantage: as an argument, in a container or in an object that is an argument.
The verifiers that judge the reply are listed separately and not counted, each is called with the reply and returns a verdict; so are
methods of the objects themselves, whose only such argument is ``self``. Exits with 1 where more than MOST files count.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

MOST = 5
ROOT = Path(__file__).resolve().parents[1]
DEEPEST = 4
"""Levels of containers and objects that are searched."""


class Trace:
    """A profile function that collects files.

    Attributes:
        path: files that count, with the functions in them.
        judges: files of verifiers, with the functions in them.
    """

    def __init__(self) -> None:
        self.path: dict[str, set[str]] = {}
        self.judges: dict[str, set[str]] = {}
        self._texts: set[str] = set()
        self._ids: set[tuple[int, ...]] = set()
        self._numbers: set[tuple[float, ...]] = set()
        self._sampling = self._judging = 0
        self._open = False
        self._files: dict[CodeType, str | None] = {}

    def __call__(self, frame: FrameType, event: str, result: Any) -> None:
        if event not in ("call", "return"):
            return
        code = frame.f_code
        if code not in self._files:
            path = Path(code.co_filename)
            own = path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in ("src", "stages")
            self._files[code] = str(path.relative_to(ROOT)) if own else None
        file, name = self._files[code], code.co_name
        if file is None:
            return
        change = 1 if event == "call" else -1
        if name == "generate_ids":
            self._sampling += change
            if event == "return":
                self._note_sampled(result)
                self._open = True
        elif name in ("compute_loss", "_compute_loss") and file.endswith("trl_adapter.py") and event == "return":
            self._open = False
        elif name == "judged":
            self._judging += change
        if event == "return":
            if type(result).__name__ == "Scored":
                self._numbers.add(tuple(result.reward))
            elif name == "advantages":
                self._numbers.add(tuple(result.flatten().tolist()))
        elif self._open and not self._sampling and not name.startswith("<") and self._receives(frame):
            judge = self._judging or "/verifiers/" in file
            (self.judges if judge else self.path).setdefault(file, set()).add(name)

    def _note_sampled(self, groups: Any) -> None:
        for group in groups or ():
            for completion in group:
                self._texts.add(completion.text)
                self._ids.add(tuple(completion.token_ids))

    def _receives(self, frame: FrameType) -> bool:
        code = frame.f_code
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        return any(self._holds(frame.f_locals.get(name), DEEPEST) for name in names if name not in ("self", "cls"))

    def _holds(self, value: Any, depth: int) -> bool:
        import torch

        if isinstance(value, str):
            return value in self._texts
        if isinstance(value, torch.Tensor):
            return self._is_known(value)
        if depth == 0 or isinstance(value, (int, float, bytes, type(None), torch.nn.Module)):
            return False
        if isinstance(value, (list, tuple)) and value and all(isinstance(item, (int, float)) for item in value):
            return tuple(value) in self._ids or tuple(value) in self._numbers
        return any(self._holds(item, depth - 1) for item in parts(value))

    def _is_known(self, tensor: Any) -> bool:
        """Whether a tensor holds the ids of a reply in a row, or all rewards, or all advantages of a step, or a part of those."""
        if tensor.dim() == 2 and not tensor.is_floating_point():
            return any(" ".join(map(str, ids)) in " ".join(map(str, row)) for row in tensor.tolist() for ids in self._ids if len(ids) > 2)
        values = tuple(tensor.detach().flatten().tolist()) if tensor.dim() in (1, 2) and tensor.is_floating_point() else ()
        known = [numbers for numbers in self._numbers if len(values) > 1 and len(numbers) >= len(values)]
        spans = (numbers[start : start + len(values)] for numbers in known for start in range(len(numbers) - len(values) + 1))
        return any(all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(values, span, strict=True)) for span in spans)


def parts(value: Any) -> Iterator[Any]:
    """What a container or a dataclass holds."""
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, (list, tuple, set)):
        yield from value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from (getattr(value, field.name, None) for field in dataclasses.fields(value))


def traced(folder: Path) -> Trace:
    """Two updates of m3 on a tiny model in this folder, traced."""
    from safework_cli.core.artifacts import Manifest, Store
    from safework_cli.core.artifacts.store import now
    from safework_cli.core.artifacts.transfer import import_folder
    from safework_cli.core.progress import Progress, make_display
    from safework_cli.core.signals import StopRequest
    from safework_cli.core.stage import Inputs, WorkDir
    from safework_cli.data.row import Message, Row, write_rows
    from safework_cli.models.tiny import create_tiny_model
    from safework_rl.m3.config import M3Config
    from safework_rl.m3.stage import stage

    store = Store(folder / "store")
    create_tiny_model(folder / "model", architecture="llama", seed=0)
    model = import_folder(store, folder / "model", "tiny")
    rows = [Row(f"s{i}", "general", [Message(role="user", content=f"Name {i} letters.")]) for i in range(4)]
    for row in rows:  # what random replies earn differs
        row.meta["constraints"] = [{"type": "contains", "text": letter} for letter in "aeknst"]
    staged = store.staging()
    (staged / "rl").mkdir()
    write_rows(staged / "rl" / "rows.parquet", rows)
    empty = Manifest(kind="dataset", name="d", version=0, created=now(), stage="b", stage_version=1, fingerprint="d", files=[], digest="")
    data = store.commit(staged, empty)
    (folder / "run").mkdir()
    config = M3Config(
        max_steps=2, num_generations=4, per_device_train_batch_size=8, gradient_accumulation_steps=1, steps_per_generation=2,
        max_completion_length=16, filter_groups=False, preflight=0, require_gradient=False, save_steps=100, max_dropped=1.0,
        phases=[{"tasks": ["general"], "share": 1.0}], rewards={"general": {"constraints": 1.0}}, format={"mode": "term", "weight": 0.1},
    )  # fmt: skip
    progress = Progress(folder / "run", make_display(quiet=True))
    work = WorkDir(folder / "run", "0" * 64, progress, StopRequest())
    trace = Trace()
    sys.setprofile(trace)
    try:
        stage.run(config, Inputs({"model": model, "data": data.with_subset("rl"), "verifiers": {}}), work)
    finally:
        sys.setprofile(None)
        progress.close()
    return trace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trace = traced(Path(folder))
    if options.json:
        path, judges = ({file: sorted(names) for file, names in sorted(files.items())} for files in (trace.path, trace.judges))
        print(json.dumps({"files": len(path), "most": MOST, "path": path, "judges": judges}))
    else:
        for title, files in (("between sampling and loss", trace.path), ("verifiers (not counted)", trace.judges)):
            print(f"{len(files)} files {title}")
            for file, functions in sorted(files.items()):
                print(f"  {file}: {', '.join(sorted(functions))}")
    sys.exit(len(trace.path) > MOST)


if __name__ == "__main__":
    main()
