"""Adapters as artifacts: a model's folder with low-rank changes in place of the weights, and the name of the model that they change."""

from __future__ import annotations

import builtins
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from safework_cli.core.artifacts.manifest import Artifact
from safework_cli.core.errors import InputError

BASE = "base.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_AGAIN = "run the stage that made it again with --fresh"


class Base(BaseModel):
    """What ``base.json`` of an adapter says of the model that it changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ref: str
    """The base's reference when the adapter was trained."""
    digest: str = Field(pattern="^[0-9a-f]{64}$")
    """The base's digest: what decides whether a model is the base."""
    dtype: Literal["float32", "bfloat16", "float16"]
    """The type that the sum of base and adapter is rounded to, as a merged model would be saved."""
    parameters: int = Field(ge=1)
    """Weights of the base."""

    def write(self, folder: Path) -> None:
        (folder / BASE).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


class Finds(Protocol):
    """What is asked of a store, which looks for bases itself when it resolves a reference."""

    def resolve(self, reference: str, kinds: tuple[str, ...], *, verify: bool) -> Artifact: ...

    def verify(self, artifact: Artifact) -> None: ...

    def ancestor(self, reference: str) -> Artifact | None: ...

    def list(self, kind: str, *, damaged: builtins.list[InputError]) -> Sequence[Artifact]: ...


def read_base(folder: Path) -> Base | None:
    """What a folder says of its adapter's base; None where it holds a whole model. Raises InputError where that is damaged."""
    file = Path(folder) / BASE
    try:
        return Base.model_validate_json(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{file} cannot be read", error.strerror or str(error), "check the folder") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(f"{file} is damaged", f"{where}: {first['msg']}", _AGAIN) from None


def is_adapter(artifact: Artifact) -> bool:
    """Whether an artifact holds an adapter, by the files of its manifest."""
    return any(entry.path == BASE for entry in artifact.manifest.files)


def check_adapter(folder: Path) -> None:
    """Raises InputError where a folder with ``base.json`` is not a whole adapter, or holds the weights of a whole model as well."""
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).exists():
            raise InputError(f"{folder} has no {name}", f"{BASE} says that it holds an adapter", _AGAIN)
    if any(folder.glob("model*.safetensors")):
        raise InputError(f"{folder} holds a whole model and an adapter", "which of the two is meant is not clear", "remove one of them")


def base_of(store: Finds, artifact: Artifact, *, verify: bool = False) -> Artifact | None:
    """The model that an adapter changes: the one of its recorded reference, or another artifact with the same digest. None for what is
    not an adapter.

    Args:
        verify: compare the base's files, too.

    Raises:
        InputError: the base is missing, damaged or another model now; or the adapter lies outside the store.
    """
    base = read_base(artifact.path) if is_adapter(artifact) else None
    if base is None:
        return None
    if artifact.external is not None:
        raise InputError(
            f"{artifact.ref} holds an adapter of {base.ref}, and is not in the store",
            "an adapter is loaded with its base, which is looked up in the adapter's own store",
            f"safework artifacts import {artifact.path}",
        )
    found: Artifact | None = None
    try:
        found = store.resolve(base.ref, ("model",), verify=False)
        why = f"{found.ref} is another model now, with digest {found.digest[:12]}…"
    except InputError as error:
        why = error.what
    if found is None or found.digest != base.digest:
        found = base_in_store(store, artifact)
    if found is None:
        raise InputError(
            f"{artifact.ref} is an adapter of {base.ref}, and that model is not here",
            f"{why}; the adapter was trained on the model with digest {base.digest[:12]}…, and gives other replies on any other",
            "make or import that model again",
        )
    if verify:
        try:
            store.verify(found)
            base_of(store, found, verify=True)
        except InputError as error:
            raise InputError(f"the base of {artifact.ref} cannot be used: {error.what}", error.why, error.do) from None
    return found


def base_in_store(store: Finds, artifact: Artifact) -> Artifact | None:
    """The same where it is an artifact of this store; None where it is not, and for what is not an adapter. Asks no hub."""
    with suppress(InputError):
        base = read_base(artifact.path) if is_adapter(artifact) else None
        if base is None:
            return None
        named = store.ancestor(base.ref)
        if named is not None and named.external is None and named.digest == base.digest:
            return named
        return next((model for model in reversed(store.list("model", damaged=[])) if model.digest == base.digest), None)
    return None


def refuse_adapter(folder: Path) -> None:
    """Raises InputError where the folder holds an adapter (peft) that names no base of a store, by itself or together with full weights."""
    if not (folder / ADAPTER_CONFIG).exists() or (folder / BASE).exists():
        return
    try:
        base = json.loads((folder / ADAPTER_CONFIG).read_bytes()).get("base_model_name_or_path")
    except (ValueError, AttributeError):
        base = None
    if (folder / "config.json").exists() and any(folder.glob("model*.safetensors")):
        raise InputError(
            f"{folder} holds a whole model and an adapter",
            "which of the two is meant is not clear: loading would apply the adapter to the weights in the same folder",
            "move adapter_config.json and adapter_model.safetensors to a folder of their own; or merge them into the model first",
        )
    raise InputError(
        f"{folder} holds an adapter, not a whole model",
        f"it changes the model {base!r} and cannot be used without it" if base else "it cannot be used without the model that it changes",
        'merge it: python -c "from peft import AutoPeftModelForCausalLM as M; '
        "M.from_pretrained('ADAPTER').merge_and_unload().save_pretrained('MODEL')\", and copy the tokenizer's files there",
    )
