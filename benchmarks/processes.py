"""Training on two processes against training on one: DDP, ZeRO-2, ZeRO-3 and FSDP2, from the same rows and the same completions.

    python benchmarks/processes.py [--runs sft verifier m3 efficient search values] [--strategies ddp fsdp zero2 zero3] [--json]

A tiny model in float32 on the CPU, eight steps, the same rows in each step. For each strategy the difference to one process, relative to
what training changed (Euclidean norms over all weights). The control is DDP whose second process counts for nothing: it has to differ much
more. "resumed": a run that was killed by -9 after its second checkpoint and started again, against one that was not. FSDP2 on a CPU is
made possible by ``processes_site``: accelerate offers it on GPUs only. ZeRO needs deepspeed: pip install 'safework[deepspeed]'.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from processes_runs import COMMAND, DEEPSPEED, MODEL, RUNS, STRATEGIES, Run, difference, movement, prepare, running, weights

from safework_cli.core.artifacts import Store

ALIKE = 1e-4
"""The difference of the weights, relative to what training changed (Euclidean norms)."""
CONTROL = 0.1
"""The same where half of the rows do not count, at least."""
MOVED = 1.0
"""What the weights have to move by, at least (Euclidean norm)."""
MEASURED = ("sft", "verifier", "m3", "efficient", "search")
NOT_RUN = "not run: deepspeed is not installed"
SECONDS = 1800.0
"""For a command to end."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A measured number.

    Attributes:
        value: None where it was not measured.
        holds: None likewise.
        note: why not.
    """

    name: str
    value: float | None
    bar: str
    holds: bool | None
    note: str = ""


def main() -> None:
    options = parse(sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        prepare(store, tiny_model(Path(folder) / "tiny"))
        bars = []
        for name in options.runs:
            for bar in measured(store, RUNS[name], name, options.strategies):
                print(f"{bar.name}: {shown(bar)}", file=sys.stderr, flush=True)
                bars.append(bar)
    if options.json:
        print(json.dumps({"bars": [asdict(bar) for bar in bars]}))
    else:
        print("\n".join(table(bars)))
    sys.exit(any(bar.holds is False for bar in bars))


def parse(words: list[str]) -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(MEASURED))
    options.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    options.add_argument("--json", action="store_true")
    return options.parse_args(words)


def tiny_model(folder: Path) -> Path:
    from safework_cli.models.tiny import create_tiny_model

    create_tiny_model(folder, architecture="llama", seed=0)
    return folder


def measured(store: Store, run: Run, name: str, strategies: Sequence[str]) -> Iterator[Bar]:
    """The numbers of a run."""
    one = weights(store, finished(store, run, run.on("single")))
    moved = movement(weights(store, MODEL), one)
    yield Bar(f"{name}: movement", moved, f"≥ {MOVED:g}", moved >= MOVED)
    for strategy in strategies:
        what = f"{name}: {strategy}"
        if strategy in DEEPSPEED and find_spec("deepspeed") is None:
            yield Bar(what, None, f"≤ {ALIKE:g}", None, NOT_RUN)
            yield Bar(f"{what} resumed", None, "0", None, NOT_RUN)
            continue
        words = [*run.on(strategy), "save_steps=2"]
        kill(store, run, words)
        resumed = weights(store, finished(store, run, words))
        whole = weights(store, finished(store, run, [*words, "--fresh"]))
        apart = difference(one, whole) / moved
        yield Bar(what, apart, f"≤ {ALIKE:g}", apart <= ALIKE)
        lost = difference(whole, resumed) / moved
        yield Bar(f"{what} resumed", lost, "0", lost == 0)
    dropped = weights(store, finished(store, run, [*run.on("ddp"), "--fresh"], PROCESSES_DROPPED="1"))
    control = difference(one, dropped) / moved
    yield Bar(f"{name}: control, a process dropped", control, f"≥ {CONTROL:g}", control >= CONTROL)


def environment(store: Store, run: Run, more: dict[str, str]) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SAFEWORK_")}
    return kept | {"HF_HUB_OFFLINE": "1", "SAFEWORK_STORE": str(store.root)} | run.env() | more


def finished(store: Store, run: Run, words: Sequence[str], **more: str) -> str:
    """The reference that a command prints."""
    env = environment(store, run, more)
    done = subprocess.run([*COMMAND, *words], env=env, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode:
        sys.exit(f"safework {' '.join(words)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


def kill(store: Store, run: Run, words: Sequence[str]) -> None:
    """Starts a command, kills it by -9 after its second checkpoint, and waits until its processes have ended."""
    deadline = time.monotonic() + SECONDS
    process = subprocess.Popen([*COMMAND, *words], env=environment(store, run, {}), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(store.runs.glob("*/checkpoints/checkpoint-4/COMPLETE.json")):
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"safework {' '.join(words)} wrote no checkpoint of step 4")
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while running(store):
        time.sleep(0.2)


def shown(bar: Bar) -> str:
    return bar.note if bar.value is None else f"{bar.value:.2g} (bar: {bar.bar}{'' if bar.holds else ', missed'})"


def table(bars: Sequence[Bar]) -> list[str]:
    """Markdown rows, one for each number."""
    rows = ["| what | bar | measured | holds |", "| --- | --- | --- | --- |"]
    for bar in bars:
        value = bar.note if bar.value is None else f"{bar.value:.2g}"
        rows.append(f"| {bar.name} | {bar.bar} | {value} | {'–' if bar.holds is None else 'yes' if bar.holds else '**no**'} |")
    return rows


if __name__ == "__main__":
    main()
