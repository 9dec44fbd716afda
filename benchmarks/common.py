"""What the benchmarks of sampling and training share."""

from __future__ import annotations

import argparse
from pathlib import Path


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options of a group: model, lengths, size, number type."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", default="smollm2", help="a reference in the store, or a folder")
    made.add_argument("--prompt", type=int, default=384, help="prompt tokens")
    made.add_argument("--completion", type=int, default=64, help="completion tokens")
    made.add_argument("--group", type=int, default=8, help="completions of the group")
    made.add_argument("--dtype", default="float32", choices=["bfloat16", "float32"])
    made.add_argument("--json", action="store_true")
    return made


def model_folder(name: str) -> Path:
    """The folder of a model, named as a folder or as a reference."""
    from safework_cli.core.artifacts import default_store

    return Path(name) if Path(name).is_dir() else default_store(None).resolve(name, ("model",)).path


def device() -> str:
    """What the figures are of."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"
