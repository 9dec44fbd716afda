"""What the store costs: committing a large model next to writing the same bytes, and the lineage of an artifact with many ancestors.

    python benchmarks/store.py [--gigabytes 5] [--artifacts 10000] [--folder FOLDER] [--json]

Commit: a model in files of a gigabyte that are on the disk and not in memory, as those of a model larger than the memory are: hashed,
checked, flushed and renamed by ``Store.commit``. The disk's speed is that of a plain loop which reads the same files, just before and under
the same condition. Writing and flushing them is reported too, and hashing them again after the commit.

Lineage: ``safework artifacts lineage NAME --json``, the whole command, of the last artifact of a chain; each descends from the one before
and from one that all share. Median of three.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from safework_cli.core.artifacts import Store
from safework_cli.core.artifacts.manifest import InputEntry, Manifest
from safework_cli.core.artifacts.store import now

GIB = 2**30
REPEATS = 3
SPEED = 0.5
SECONDS = 1.0


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--gigabytes", type=int, default=5)
    options.add_argument("--artifacts", type=int, default=10_000)
    options.add_argument("--folder", type=Path, default=None, help="on the disk to measure; a temporary one")
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        bars = [*commit(Path(folder), given.gigabytes), lineage(Path(folder) / "many", given.artifacts)]
    if given.json:
        print(json.dumps({"bars": bars}))
        return
    print("| what | value | bar | holds |\n|---|---|---|---|")
    for one in bars:
        print(f"| {one['name']} | {one['value']} | {one['bar']} | {'yes' if one['holds'] else 'no'} |")


def commit(folder: Path, gigabytes: int) -> Iterator[dict[str, object]]:
    """Speeds in GB/s, and the ratio of commit and disk."""
    store, size = Store(folder / "store"), gigabytes * GIB / 1e9
    payload = store.staging()
    (payload / "config.json").write_text('{"model_type": "llama"}')
    shard = np.random.default_rng(0).random(GIB // 8, dtype=np.float64)
    start = time.monotonic()
    for number in range(gigabytes):
        save_file({f"w{number}": shard}, payload / f"model-{number:05}.safetensors")
    for path in payload.iterdir():
        flush(path)
    yield reported(f"{gigabytes} GiB written and flushed, GB/s", size / (time.monotonic() - start))
    del shard
    forget(payload)
    start = time.monotonic()
    for path in payload.iterdir():
        with path.open("rb", buffering=0) as handle:
            while handle.read(2**20):
                pass
    disk = size / (time.monotonic() - start)
    yield reported("the same read from the disk, GB/s", disk)
    forget(payload)
    start = time.monotonic()
    made = store.commit(payload, manifest("model", "large", {}))
    speed = size / (time.monotonic() - start)
    yield reported("the same committed, from the disk, GB/s", speed)
    ratio = round(speed / disk, 2)
    yield {"name": "commit / disk", "value": ratio, "bar": f">= {SPEED}", "holds": ratio >= SPEED}
    start = time.monotonic()
    store.verify(made, thorough=True)
    yield reported("the same hashed again, in memory where it has room, GB/s", size / (time.monotonic() - start))


def reported(name: str, value: float) -> dict[str, object]:
    return {"name": name, "value": round(value, 2), "bar": "reported", "holds": True}


def flush(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def forget(folder: Path) -> None:
    """Asks the system to forget the pages of the files in a folder."""
    for path in folder.iterdir():
        flush(path)
        with path.open("rb") as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def lineage(root: Path, count: int) -> dict[str, object]:
    """Seconds of the whole command."""
    store = Store(root)
    shared = small(store, "shared", {})
    last = shared
    for number in range(count - 1):
        last = small(store, f"a{number % 100}", {"data": shared, "model": last})
    words = [sys.executable, "-m", "safework_cli", "artifacts", "lineage", last.ref, "--store", str(root), "--json"]
    times = []
    for _ in range(REPEATS):
        start = time.monotonic()
        said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
        times.append(time.monotonic() - start)
    assert len(json.loads(said)["inputs"]) == count, "every ancestor is named"
    value = round(statistics.median(times), 2)
    return {"name": f"lineage of {count:,} artifacts, s", "value": value, "bar": f"<= {SECONDS:g}", "holds": value <= SECONDS}


def small(store: Store, name: str, inputs: dict[str, object]):
    """An artifact of a few bytes."""
    payload = store.staging()
    (payload / "text").write_text(f"{name} {len(inputs)}")
    entries = {slot: InputEntry(ref=one.ref, kind=one.kind, digest=one.digest) for slot, one in inputs.items()}
    return store.commit(payload, manifest("generations", name, entries))


def manifest(kind: str, name: str, inputs: dict[str, InputEntry]) -> Manifest:
    return Manifest(
        kind=kind, name=name, version=1, created=now(), stage="eval", stage_version=1, fingerprint="0" * 64, inputs=inputs, files=[],
        digest="",
    )  # fmt: skip


if __name__ == "__main__":
    main()
