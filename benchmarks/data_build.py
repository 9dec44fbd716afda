"""`safework data build` compared with a plain `datasets` + `datasketch` script: exact and near duplicates out, evaluation prompts out,
Parquet written. Both sides run in processes of their own, on the same file.

    python benchmarks/data_build.py [--rows 10000 100000 1000000] [--heldout 0.1] [--cores N] [--json]

Rows are short questions with a reply, drawn from a fixed vocabulary; one in fifty repeats an earlier one word for word, one in fifty with a
word changed, and one in a thousand holds a prompt of the held-out set. Prints rows a second and the peak of memory over all processes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

WORDS = 20_000
HELD_OUT = 500
SAMPLE_SECONDS = 0.05
SHARES = {"copy": 50, "near": 50, "leak": 1000}

PEER = """
import json, re, sys
from datasets import load_dataset
from datasketch import MinHash, MinHashLSH

rows_file, held_file, out = sys.argv[1:4]
word = re.compile(r"\\w+")

def words(text):
    return word.findall(text.lower())

def runs(tokens, size):
    return {" ".join(tokens[i : i + size]) for i in range(max(len(tokens) - size + 1, 1))}

data = load_dataset("json", data_files=rows_file, split="train", cache_dir=out + "/cache")
held = set()
for line in open(held_file):
    held |= runs(words(json.loads(line)["prompt"]), 8)

seen, lsh, keep = set(), MinHashLSH(threshold=0.8, num_perm=120, params=(20, 6)), []
kept_runs = {}
for number, row in enumerate(data):
    key = (row["prompt"], row["reply"])
    if key in seen:
        continue
    seen.add(key)
    mine = runs(words(row["prompt"]), 3)
    signature = MinHash(num_perm=120)
    signature.update_batch([run.encode() for run in mine])
    if any(len(mine & kept_runs[other]) / len(mine | kept_runs[other]) >= 0.8 for other in lsh.query(signature)):
        continue
    lsh.insert(number, signature)
    kept_runs[number] = mine
    if runs(words(row["prompt"]), 8) & held:
        continue
    keep.append(number)
data.select(keep).to_parquet(out + "/train.parquet")
print(len(keep))
"""


def write_rows(folder: Path, count: int) -> None:
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 9))) for _ in range(WORDS)]

    def text(low: int, high: int) -> str:
        return " ".join(rng.choices(vocabulary, k=rng.randint(low, high)))

    held = [text(12, 20) for _ in range(HELD_OUT)]
    with (folder / "held.jsonl").open("w") as handle:
        for prompt in held:
            handle.write(json.dumps({"prompt": prompt, "reply": ""}) + "\n")
    earlier: list[tuple[str, str]] = []
    with (folder / "rows.jsonl").open("w") as handle:
        for _ in range(count):
            draw = rng.randrange(1000)
            prompt, reply = text(10, 20), text(10, 20)
            if earlier and draw % SHARES["copy"] == 0:
                prompt, reply = rng.choice(earlier)
            elif earlier and draw % SHARES["near"] == 1:
                old, reply = rng.choice(earlier)
                prompt = old + " " + rng.choice(vocabulary)
            elif draw == 2:
                prompt = f"{text(3, 5)} {rng.choice(held)}"
            if len(earlier) < 10_000:
                earlier.append((prompt, reply))
            handle.write(json.dumps({"prompt": prompt, "reply": reply}) + "\n")


def recipe(folder: Path, heldout: float) -> Path:
    held = {
        "kind": "file",
        "name": "held",
        "path": str(folder / "held.jsonl"),
        "subset": "heldout",
        "task": "general",
        "columns": {"prompt": "prompt"},
    }
    rows = {**held, "name": "rows", "path": str(folder / "rows.jsonl"), "subset": "chat", "columns": {"prompt": "prompt", "reply": "reply"}}
    path = folder / "data.yaml"
    path.write_text(json.dumps({"sources": [rows, held], "require_reply": [], "require_thought": [], "heldout": heldout}))
    return path


def measured(command: list[str], env: dict[str, str]) -> dict[str, Any]:
    """Seconds, peak bytes and the last line of stdout of a command; bytes are of all its processes, what they share counted once."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as complained:
        running = psutil.Popen(command, env=env, stdout=said, stderr=complained, text=True)
        peak = 0
        while running.poll() is None:
            peak = max(peak, sum(map(proportional_bytes, [running, *children(running)])))
            time.sleep(SAMPLE_SECONDS)
        seconds = time.perf_counter() - started
        for stream in (said, complained):
            stream.seek(0)
        if running.returncode not in (0, 5):
            raise SystemExit(complained.read()[-2000:])
        return {"seconds": seconds, "said": said.read().strip().splitlines()[-1], "peak_bytes": peak}


def children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def proportional_bytes(process: psutil.Process) -> int:
    """Resident memory, a page that n processes share counted as an n-th."""
    try:
        return process.memory_full_info().pss
    except psutil.NoSuchProcess:
        return 0


def compare(count: int, peer: bool, heldout: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder, count)
        env = os.environ | {"SAFEWORK_STORE": str(folder / "store"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
        safework = str(Path(sys.executable).with_name("safework"))
        ours = measured([safework, "data", "build", "-c", str(recipe(folder, heldout)), "--quiet"], env)
        found = {"rows": count, "ours": ours}
        if peer:
            (folder / "peer").mkdir()
            theirs = measured([sys.executable, "-c", PEER, *(str(folder / f) for f in ("rows.jsonl", "held.jsonl", "peer"))], env)
            found |= {
                "peer": theirs,
                "seconds_ratio": ours["seconds"] / theirs["seconds"],
                "peak_ratio": ours["peak_bytes"] / theirs["peak_bytes"],
            }
            import pyarrow.parquet as pq

            kept = sum(pq.read_metadata(path).num_rows for path in (folder / "store").rglob("chat/train.parquet"))
            found["kept"] = {"ours": kept, "peer": int(theirs["said"])}
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--no-peer", action="store_true", help="run our side only")
    parser.add_argument("--heldout", type=float, default=0.0, help="share of groups that our side holds out (the peer: none)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cores", type=int, help="for both sides; default: all that this process may use")
    options = parser.parse_args()
    if options.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    cores = len(os.sched_getaffinity(0))
    results = [compare(count, not options.no_peer, options.heldout) for count in options.rows]
    if options.json:
        print(json.dumps({"cores": cores, "results": results}, indent=2))
        return
    print(f"cores: {cores} (ours takes as many processes, the peer's script one)\n")
    print("| rows | side | seconds | rows/s | peak memory | kept |")
    print("|---|---|---|---|---|---|")
    for r in results:
        for side in ("ours", "peer"):
            if side in r:
                found = r[side]
                kept = r.get("kept", {}).get(side, "")
                rate, peak = r["rows"] / found["seconds"], found["peak_bytes"] / 2**20
                print(f"| {r['rows']:,} | {side} | {found['seconds']:.1f} | {rate:,.0f} | {peak:,.0f} MiB | {kept} |")
        if "peer" in r:
            print(f"| {r['rows']:,} | ratio | {r['seconds_ratio']:.2f} | | {r['peak_ratio']:.2f} | |")


if __name__ == "__main__":
    main()
