"""Sampling by vLLM in this process against sampling by transformers' engine: tokens a second by how many replies are asked for at once.

    .venv-vllm/bin/python benchmarks/engines.py --model REF [--prompt 128] [--completion 64] [--batches 1x1 8x1 32x8] [--json]

A batch of 32x8 is 32 prompts of which each gets 8 replies, as a step of reinforcement learning asks. Each side in a process of its own, the
same prompts and seeds, temperature 1; medians of three turns after one that is not counted. Replies of different engines are of about the
same length, and the figures count the tokens that there were. In float32 the greedy replies to the first prompts are compared first.
Needs vLLM: `make install-vllm`, or a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from common import device, model_folder, parser

REPEATS = 3
SIDES = ("vllm", "hf")


def main() -> None:
    options = parse(sys.argv[1:])
    if options.side:
        print(json.dumps(measure(options)))
        return
    made = {side: run_side(side) for side in SIDES}
    same = sum(one == other for one, other in zip(made["vllm"]["greedy"], made["hf"]["greedy"], strict=True))
    rows = [
        {"batch": batch, **{side: made[side]["speeds"][batch] for side in SIDES},
         "ratio": round(made["vllm"]["speeds"][batch] / made["hf"]["speeds"][batch], 2)}
        for batch in options.batches
    ]  # fmt: skip
    setting = {name: getattr(options, name) for name in ("model", "prompt", "completion", "dtype")} | {"device": device()}
    greedy = {"equal": same, "of": len(made["hf"]["greedy"])}
    if options.json:
        print(json.dumps({"setting": setting, "rows": rows, "greedy": greedy}))
        return
    print(" ".join(f"{name}={value}" for name, value in setting.items()))
    print(f"greedy replies equal: {greedy['equal']} of {greedy['of']}")
    print("| prompts x replies | vLLM, tokens/s | transformers, tokens/s | ratio |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['batch']} | {row['vllm']} | {row['hf']} | {row['ratio']} |")


def parse(words: list[str]) -> argparse.Namespace:
    options = parser(__doc__)
    options.set_defaults(prompt=128)
    options.add_argument("--batches", nargs="+", default=["1x1", "8x1", "32x8"], metavar="PROMPTSxREPLIES")
    options.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    return options.parse_args(words)


def run_side(side: str) -> dict[str, Any]:
    env = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--side", side], env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the side '{side}' failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of each batch, and the tokens of greedy replies."""
    import random

    from safework_cli.engines.load import load_token_engine
    from safework_cli.engines.protocol import Sampling
    from safework_cli.engines.settings import EngineSettings

    own = {"vllm": {"gpu_memory_utilization": 0.2}} if options.side == "vllm" else {}
    settings = EngineSettings.model_validate({"kind": options.side} | own)
    engine = load_token_engine(settings, model_folder(options.model), batch_size=256, dtype=options.dtype)
    draw = random.Random(0)
    vocabulary = min(20_000, len(engine.tokenizer))
    prompts = [[draw.randrange(200, vocabulary) for _ in range(options.prompt)] for _ in range(256)]
    greedy = engine.generate_ids(prompts[:4], Sampling(options.completion, 0.0))
    speeds = {}
    for batch in options.batches:
        asked, replies = map(int, batch.split("x"))
        found = []
        for turn in range(REPEATS + 1):
            start = time.monotonic()
            made = engine.generate_ids(prompts[:asked], Sampling(options.completion, 1.0, seed=turn), replies)
            found.append(sum(len(one.token_ids) for of_prompt in made for one in of_prompt) / (time.monotonic() - start))
        speeds[batch] = round(statistics.median(found[1:]), 1)
    return {"speeds": speeds, "greedy": [made[0].token_ids for made in greedy]}


if __name__ == "__main__":
    main()
