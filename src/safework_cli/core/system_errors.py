"""What an error of the operating system or of a library means for a user: no space, no permission, no memory.

Libraries often hide the original error. torch says ``RuntimeError: PytorchStreamWriter failed writing file``, safetensors and
tokenizers put ``os error 28`` into a text, numpy counts the bytes that it could not write. So errors are recognised by number where they
have one, by text where they have none, and where neither is clear by what is left on the disk. Imports no torch.
"""

from __future__ import annotations

import errno
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safework_cli.core.errors import InputError, OutOfMemory, RunAgain, SafeworkError
from safework_cli.core.formats import size

FULL = {
    errno.ENOSPC: "no space left in {where}",
    errno.EDQUOT: "the disk quota is used up in {where}",
    errno.EFBIG: "a file in {where} would be larger than this process may write (ulimit -f)",
}
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
NOT_A_FOLDER = (errno.ENOTDIR, errno.EEXIST)

_FULL_TEXT = {
    errno.ENOSPC: re.compile(r"no space left on device|os error 28\b|errno 28\b|disk is full|disk full", re.IGNORECASE),
    errno.EDQUOT: re.compile(r"quota exceeded|os error 122\b|errno 122\b", re.IGNORECASE),
    errno.EFBIG: re.compile(r"file too large|os error 27\b|errno 27\b", re.IGNORECASE),
}
_FAILED_WRITE = re.compile(
    r"PytorchStreamWriter failed|inline_container|failed writing|file write failed|requested and \d+ written|error writing|write error"
    r"|could not write|cannot write|failed to write|unexpected pos|I/O error",
    re.IGNORECASE,
)
"""What libraries say of a write that failed, whatever the cause."""
NEARLY_FULL_BYTES = 16 * 2**20
"""Space left on a disk on which a write has just failed without a reason given: below it, the reason is clear."""

_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|unable to allocate|bad_alloc|not enough memory", re.IGNORECASE
)
MEMORY_SETTINGS = (
    "per_device_train_batch_size", "generation_batch_size", "per_device_eval_batch_size", "batch_size", "num_generations", "max_length",
    "max_completion_length", "max_prompt_length", "max_tokens", "chunk_rows", "workers",
)  # fmt: skip
"""Settings that memory grows with, the most effective first."""
WEIGHTS, GRADIENTS, OPTIMISER, REFERENCE = "weights", "gradients", "optimiser state", "the reference model"
ACTIVATIONS = "activations, logits and the rest"
"""What holds memory in training."""


class TrainingOutOfMemory(MemoryError):
    """A pass of a training loop found no memory.

    Args:
        reason: what the allocator said.
        consumers: what held memory at that moment → its bytes.
    """

    def __init__(self, reason: str, consumers: Mapping[str, int]):
        super().__init__(reason)
        self.consumers = dict(consumers)


def explain(error: BaseException, store: Path | None = None, config: Any = None) -> SafeworkError | None:
    """The error that a user can act on; None where the cause is not the machine's space, permissions or memory.

    Args:
        store: the store's folder, which is named where the error names no file.
        config: the settings of the stage (a pydantic block) that ran.
    """
    if isinstance(error, SafeworkError):
        return None
    links = list(chain(error))
    for link in links:
        if (number := _full(link)) is not None:
            return _no_space(link, number, store)
    for link in chain(error, contexts=False):  # what a library met and coped with explains no later error
        if isinstance(link, OSError) and link.errno in FORBIDDEN:
            return _forbidden(link, store)
        if isinstance(link, OSError) and link.errno in NOT_A_FOLDER and store is not None and store.exists() and not store.is_dir():
            return InputError(f"the store {store} is not a folder", "", "choose another one with --store or SAFEWORK_STORE")
        if is_out_of_memory(link):
            return _no_memory(link, config)
    if any(_FAILED_WRITE.search(str(link)) for link in links) and (crowded := _most_crowded(store)):
        return _no_space(links[0], errno.ENOSPC, crowded)
    return None


def chain(error: BaseException, *, contexts: bool = True) -> Iterator[BaseException]:
    """An error and what it was raised from, or (``contexts``) while what was handled."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (link.__context__ if contexts else None)


def _full(error: BaseException) -> int | None:
    """The number of the error where it says that a disk, a quota or a file is full."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in FULL else None
    if isinstance(error, (SafeworkError, AssertionError)):
        return None
    text = str(error)
    return next((number for number, pattern in _FULL_TEXT.items() if pattern.search(text)), None)


def _most_crowded(store: Path | None) -> Path | None:
    """The folder, of the store and the one for temporary files, whose disk is nearly full; None where neither is."""
    left = {}
    for folder in [*([store] if store else []), Path(tempfile.gettempdir())]:
        try:
            left[folder] = shutil.disk_usage(_existing(folder)).free
        except OSError:
            continue
    crowded = min(left, key=lambda folder: left[folder], default=None)
    return crowded if crowded is not None and left[crowded] < NEARLY_FULL_BYTES else None


def _existing(folder: Path) -> Path:
    return next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())


def _no_space(error: BaseException, number: int, store: Path | None) -> RunAgain:
    where: Path | None = None
    if isinstance(error, OSError) and isinstance(error.filename, str):
        where = Path(error.filename).absolute().parent
    if store is not None and (where is None or where.is_relative_to(store)):
        where = store
    if number == errno.ENOSPC and (crowded := _most_crowded(store)):
        where = crowded if where is None or where == store else where
    do = "free some (`safework artifacts gc` lists what may go, `safework artifacts gc --yes` deletes it) and run the same command again"
    return RunAgain(
        FULL[number].format(where=where or "the folder that it writes to"),
        "what was done so far is kept",
        "raise the limit and run the same command again" if number == errno.EFBIG else do,
    )


def _forbidden(error: OSError, store: Path | None) -> InputError:
    name = Path(str(error.filename)).absolute() if error.filename is not None else None
    if store is not None and (name is None or name.is_relative_to(store) or store.is_relative_to(name)):
        return InputError(
            f"cannot write to {store}" if not _only_read(error) else f"cannot read {name}",
            str(error.strerror),
            "choose a store that you may write to with --store or SAFEWORK_STORE",
        )
    return InputError(f"no access to {name or 'a file'}", str(error.strerror), "check its permissions, or name another folder")


def _only_read(error: OSError) -> bool:
    """Whether a file is there that may not even be read."""
    if error.errno == errno.EROFS or error.filename is None:
        return False
    try:
        with open(error.filename, "rb"):
            return False
    except PermissionError:
        return True
    except OSError:
        return False


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is used up, the host's or a GPU's."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error)))


def _no_memory(error: BaseException, config: Any) -> OutOfMemory:
    """The error with the largest consumer, where it is known, and the settings that it depends on first."""
    consumers: dict[str, int] = getattr(error, "consumers", {})
    largest = max(consumers, key=lambda name: consumers[name], default=ACTIVATIONS)
    given = {name: value for name in MEMORY_SETTINGS if isinstance(value := getattr(config, name, None), int) and value > 1}
    rows = [f"lower {' or '.join(f'{name} (now {value})' for name, value in [*given.items()][:4])}"] if given else []
    if getattr(config, "gradient_checkpointing", None) is False:
        rows.append("set gradient_checkpointing=true")
    weights = ["set lora={}"] if hasattr(config, "lora") and config.lora is None else []
    if largest == REFERENCE:
        weights.append("set beta=0" if hasattr(config, "beta") else "set kl=null")
    elif consumers and getattr(getattr(config, "launch", None), "strategy", None) in ("single", "ddp"):
        weights.append("divide them among processes: launch.strategy=fsdp launch.processes=…")
    ways = [*rows, *weights] if largest == ACTIVATIONS else [*weights, *rows]
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    held = ", ".join(f"{name} {size(consumers[name])}" for name in sorted(consumers, key=lambda name: -consumers[name]) if consumers[name])
    return OutOfMemory(
        f"out of memory; {largest} took the most, {size(consumers[largest])}" if consumers else "out of memory",
        reason[:300] + (f"; in use: {held}" if held else ""),
        "; or ".join([*(ways or ["take a smaller model or shorter rows"]), "use a machine with more memory"]),
    )
