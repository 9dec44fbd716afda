"""What the tool itself costs: help, the no-op second run, and a stage's own time compared with the libraries only.

    python benchmarks/overhead.py [--json]

Medians of several runs. The stage overhead is a whole `safework sft` on a tiny model minus the same training and sampling done by
the libraries only, in one script (the imports are on both sides).
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
from pathlib import Path

REPEATS = 9
BARS = {"safework --help": 0.15, "safework sft --help": 0.50, "stage overhead": 1.0}

BARE = """
import sys, time
from pathlib import Path
from datasets import Dataset
from trl import SFTConfig, SFTTrainer
from transformers import AutoModelForCausalLM, AutoTokenizer
import torch, tempfile
folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
reply = {"role": "assistant", "content": "<think>It is.</think>Yes."}
texts = [tokenizer.apply_chat_template([{"role": "user", "content": f"Is {i} small?"}, reply], tokenize=False) for i in range(32)]
data = Dataset.from_dict({"input_ids": [tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]})
args = SFTConfig(output_dir=tempfile.mkdtemp(), max_steps=4, per_device_train_batch_size=8, use_cpu=True, bf16=False, report_to="none",
                 disable_tqdm=True, gradient_checkpointing=False, save_strategy="no")
SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer).train()
out = tempfile.mkdtemp()
model.save_pretrained(out); tokenizer.save_pretrained(out)
"""


def seconds(command: list[str], env: dict[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def median(command: list[str], env: dict[str, str], repeats: int = REPEATS) -> float:
    return statistics.median(seconds(command, env) for _ in range(repeats))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    safework = str(Path(sys.executable).with_name("safework"))
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"SAFEWORK_STORE": f"{folder}/store", "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"}
        rows = [
            ("safework --help", median([safework, "--help"], env), median([sys.executable, "-c", "import typer"], env)),
            (
                "safework sft --help",
                median([safework, "sft", "--help"], env),
                median([sys.executable, "-c", "import typer, pydantic"], env),
            ),
        ]
        model, data = prepare(safework, folder, env)
        sft = [safework, "sft", f"model={model}", f"data={data}", "max_steps=4", "sample_prompts=0", "learning_rate=1e-3"]
        script = Path(folder) / "bare.py"
        script.write_text(BARE)
        ours = median([*sft, "--fresh"], env, 3)
        bare = median([sys.executable, str(script), f"{folder}/store/model/tiny-llama/v1"], env, 3)
        rows.append(("stage overhead", ours - bare, bare))
        rows.append(("second run, already done", median(sft, env), ours))
    if options.json:
        print(
            json.dumps(
                [
                    {"what": what, "ours_s": ours, "reference_s": reference, "ratio": ours / reference, "bar_s": BARS.get(what)}
                    for what, ours, reference in rows
                ]
            )
        )
        return
    print(f"{'what':28} {'ours (s)':>9} {'reference (s)':>14} {'bar (s)':>8}")
    for what, ours, reference in rows:
        print(f"{what:28} {ours:9.2f} {reference:14.2f} {BARS.get(what, ''):>8}")
    print("reference: importing typer (help), the same training by TRL only (stage overhead), the first run (second run)")


def prepare(safework: str, folder: str, env: dict[str, str]) -> tuple[str, str]:
    """A tiny model and a small dataset in the store."""
    lines = [json.dumps({"q": f"Is {i} small?", "a": "<think>It is.</think>Yes."}) for i in range(32)]
    (Path(folder) / "rows.jsonl").write_text("\n".join(lines))
    source = f"[{{kind: file, path: {folder}/rows.jsonl, subset: cot, task: general, columns: {{prompt: q, reply: a}}, licence: none}}]"
    model = subprocess.run([safework, "models", "pull", "tiny", "-q"], check=True, env=env, capture_output=True, text=True).stdout.strip()
    command = [safework, "data", "build", f"sources={source}", "near_duplicate_threshold=null", "-q"]
    data = subprocess.run(command, env=env, capture_output=True, text=True)
    if data.returncode:
        sys.exit(data.stderr)
    return model, f"{data.stdout.strip()}:cot"


if __name__ == "__main__":
    main()
