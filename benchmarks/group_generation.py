"""Generation of a group, ours and transformers' ``generate`` with ``num_return_sequences``.

    python benchmarks/group_generation.py --model REF [--prompt 384] [--completion 64] [--group 8] [--dtype float32] [--json]
    python benchmarks/group_generation.py --model REF --groups 4 8 16    # the cost by group size

Both sides sample with the same temperature and no stop token, in turns (ours, theirs, ours, …), so that a change of the machine's load
affects both; medians. In float32 the greedy tokens of both are compared first, token for token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from common import device, model_folder, parser


def main() -> None:
    options = parse(sys.argv[1:])
    import torch

    from safework_cli.models.load import load_model, load_tokenizer

    folder = model_folder(options.model)
    tokenizer, model = load_tokenizer(folder), load_model(folder, dtype=options.dtype)
    model.generation_config.eos_token_id = None  # every reply takes all its tokens, on both sides
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(1000, 20_000, (options.prompt,), generator=generator).tolist()
    rows = []
    for group in options.groups or [options.group]:
        sides = {"ours": ours(model, tokenizer, prompt, group, options), "generate": theirs(model, tokenizer, prompt, group, options)}
        if options.dtype == "float32":
            same_tokens(sides)
        times: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(options.repeats):
            for side, run in sides.items():
                times[side].append(seconds(partial(run, 1.0)))
        medians = {side: statistics.median(found) for side, found in times.items()}
        rows.append({
            "group": group, "ours_s": round(medians["ours"], 3), "generate_s": round(medians["generate"], 3),
            "ratio": round(medians["ours"] / medians["generate"], 3), "runs": {k: [round(t, 3) for t in v] for k, v in times.items()},
        })  # fmt: skip
    setting = {name: getattr(options, name) for name in ("model", "prompt", "completion", "dtype", "repeats")} | {"device": device()}
    if options.json:
        print(json.dumps({"setting": setting, "rows": rows}))
        return
    print(" ".join(f"{name}={value}" for name, value in setting.items()))
    if options.dtype == "float32":
        print("greedy tokens: the same on both sides")
    print(f"{'group':>6} {'ours, s':>9} {'generate, s':>12} {'ratio':>7}")
    for row in rows:
        print(f"{row['group']:6} {row['ours_s']:9.2f} {row['generate_s']:12.2f} {row['ratio']:7.2f}")


def parse(words: list[str]) -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--groups", type=int, nargs="*", help="several group sizes, one after the other")
    options.add_argument("--repeats", type=int, default=5)
    return options.parse_args(words)


Side = Callable[[float], list[list[int]]]


def ours(model: Any, tokenizer: Any, prompt: list[int], group: int, options: argparse.Namespace) -> Side:
    from safework_cli.engines.hf.engine import HFEngine
    from safework_cli.engines.protocol import Sampling

    engine = HFEngine(model, tokenizer, batch_size=group)
    engine.stop_ids = []

    def run(temperature: float) -> list[list[int]]:
        (completions,) = engine.generate_ids([prompt], Sampling(options.completion, temperature, seed=1), n=group)
        return [completion.token_ids for completion in completions]

    return run


def theirs(model: Any, tokenizer: Any, prompt: list[int], group: int, options: argparse.Namespace) -> Side:
    import torch

    ids = torch.tensor([prompt], device=model.device)

    def run(temperature: float) -> list[list[int]]:
        sampled = {"do_sample": True, "temperature": temperature, "top_k": 0, "num_return_sequences": group} if temperature else {}
        with torch.inference_mode():
            found = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=options.completion, pad_token_id=tokenizer.pad_token_id,
                **({"do_sample": False} | sampled),
            )  # fmt: skip
        return found[:, len(prompt) :].tolist()

    return run


def same_tokens(sides: dict[str, Side]) -> None:
    """Greedy, so every reply of our group is the one that generate gives."""
    (expected,) = sides["generate"](0.0)
    for tokens in sides["ours"](0.0):
        if tokens != expected:
            sys.exit("the greedy tokens differ: what is timed would not be the same work")


def seconds(run: Callable[[], Any]) -> float:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
