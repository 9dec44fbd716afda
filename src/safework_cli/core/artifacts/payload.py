"""What each kind of payload must be, checked by reopening it before it is committed. Imports no torch."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from safework_cli.core.artifacts.adapters import BASE, check_adapter, read_base
from safework_cli.core.errors import InputError

TRUNCATED = ("not fully covered", "header too small", "invalid header length")
"""What safetensors says of a file of another length than its header says."""


def check_payload(folder: Path, kind: str) -> None:
    """Raises InputError where the folder is empty or is not what its kind promises."""
    if not any(path.is_file() for path in folder.rglob("*")):
        raise InputError(
            f"the {kind} in {folder} is empty", "nothing was written", "this is a bug in the stage that made it: please report it"
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
    if (folder / BASE).exists():
        read_base(folder)
        check_adapter(folder)
    for file, header in weight_headers(folder).items():
        for name, entry in header.items():
            if 0 in entry["shape"]:
                raise InputError(f"{file} holds an empty tensor", f"{name} has shape {entry['shape']}")


def has_weights(folder: Path) -> bool:
    """Whether a folder holds weights, or says that it should: without them it is a configuration to plan with."""
    return any(folder.glob("*.safetensors")) or (folder / "model.safetensors.index.json").exists()


def weight_headers(folder: Path) -> dict[Path, dict[str, Any]]:
    """The tensors of each of a folder's safetensors files: name → dtype and shape. No tensor is read.

    Raises:
        InputError: there is none, a file is damaged or truncated, or the index names a file that is not there.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(
            f"{folder} has no safetensors weights",
            "pickled weights are refused: loading them runs code",
            "convert them: `model.save_pretrained(folder)`",
        )
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            named = set(json.loads(index.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError):
            raise InputError(f"{index} is damaged", "it holds no weight_map", "fetch the file again") from None
        if missing := sorted(str(name) for name in named - {file.name for file in files}):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise InputError(f"{folder} has no {missing[0]}{more}", f"{index.name} names it", "fetch the missing files")
    return {file: safetensors_header(file) for file in files}


def safetensors_header(file: Path) -> dict[str, Any]:
    """Name → dtype and shape of the tensors of a file, by safetensors' own reader, which checks header, offsets and size.

    Raises:
        InputError: no such header, or the file is shorter or longer than it says.
    """
    try:
        with safe_open(file, framework="numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
            return {name: {"dtype": part.get_dtype(), "shape": part.get_shape()} for name, part in slices.items()}
    except OSError as error:
        raise InputError(f"{file} cannot be read", error.strerror or str(error), "check the folder") from None
    except SafetensorError as error:
        why = str(error).removeprefix("Error while deserializing header: ")
        what = "is truncated" if any(text in why for text in TRUNCATED) else "is not a safetensors file"
        raise InputError(f"{file} {what}", why, "fetch the file again") from None


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
    """The number of weights in a folder's safetensors, from their headers; of an adapter's base, where the folder holds an adapter. Raises
    InputError where they are damaged."""
    if base := read_base(folder):
        return base.parameters
    return sum(prod(entry["shape"]) for header in weight_headers(folder).values() for entry in header.values())
