"""What each kind of payload must be, checked by reopening it before it is committed. Imports no torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from safework_cli.errors import InputError


def check_payload(folder: Path, kind: str) -> None:
    """Raises InputError where the folder is empty or is not what its kind promises."""
    if not any(path.is_file() for path in folder.rglob("*")):
        raise InputError(
            f"the {kind} in {folder} is empty", "nothing was written", "this is a fault of the stage that made it: please report it"
        )
    {"model": _check_model, "verifier": _check_verifier, "dataset": _check_dataset}.get(kind, lambda _: None)(folder)


def _check_model(folder: Path) -> None:
    if not (folder / "config.json").exists():
        raise InputError(f"{folder} has no config.json", "a model is a Hugging Face folder")
    _check_safetensors(folder)


def _check_verifier(folder: Path) -> None:
    if not (folder / "verifier.json").exists():
        raise InputError(f"{folder} has no verifier.json", "a verifier says there which labels it gives and how they score")
    if not json.loads((folder / "verifier.json").read_bytes()).get("endpoint"):  # the weights of a served judge lie elsewhere
        _check_safetensors(folder)


def _check_safetensors(folder: Path) -> None:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(
            f"{folder} has no safetensors weights",
            "pickled weights are refused: loading them runs code",
            "convert them: `model.save_pretrained(folder)`",
        )
    for file in files:
        _check_safetensors_file(file)


def _check_safetensors_file(file: Path) -> None:
    """Reads the header: every tensor has a shape without zeros, and the file is as long as the header says."""
    size = file.stat().st_size
    with open(file, "rb") as handle:
        start = handle.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length + 8 > size:
            raise InputError(f"{file} is cut short", "its header is longer than the file")
        header = json.loads(handle.read(length))
    header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if 8 + length + end != size:
        raise InputError(f"{file} is cut short", f"its tensors end at byte {8 + length + end}, the file at {size}")
    for name, entry in header.items():
        if 0 in entry["shape"]:
            raise InputError(f"{file} holds an empty tensor", f"{name} has shape {entry['shape']}")


def _check_dataset(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise InputError(f"{folder} has no Parquet files", "a dataset is Parquet")
    for file in files:
        try:
            pq.read_metadata(file)
        except pa.ArrowInvalid as error:
            raise InputError(f"{file} is not whole", str(error)) from None


def parameter_count(folder: Path) -> int:
    """The number of weights in a folder's safetensors, from their headers."""
    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb") as handle:
            header = json.loads(handle.read(struct.unpack("<Q", handle.read(8))[0]))
        for name, entry in header.items():
            if name != "__metadata__":
                count = 1
                for side in entry["shape"]:
                    count *= side
                total += count
    return total
