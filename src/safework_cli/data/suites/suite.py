"""What a suite is: a named test set with its files, reader, metric and sources."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safework_cli.core.errors import InputError
from safework_cli.data.row import Message, Row, Task


@dataclass(frozen=True)
class Suite:
    """A named evaluation set.

    Attributes:
        name: as recipes write it.
        file: where the set lies below the folder of public sets; with ``*`` the first of the files that match, in name order.
        task: the row's task, which decides how replies are scored: ``safety`` counts refusals and unsafe replies, the others
            compare with ``answer`` where there is one, and need a judge where there is none.
        read: makes rows of the file.
        harmful: what every prompt of the suite is; None where the question does not arise.
        hub: id on the Hugging Face hub; empty where the authors publish elsewhere only.
        split: of its rows: "test" for what is kept for evaluation, "train" for the sets of ``training.py``.
        images: its prompts hold images.
        metric: what is measured on it where that does not follow from the rows.
        tried: whether its reader was tried on the published files; the others are tested with small files of the published layout.
        upstream: where the authors publish the file that is read.
    """

    name: str
    summary: str
    file: str
    task: Task
    read: Callable[[Suite, Path], Iterator[Row]]
    upstream: str
    licence: str
    harmful: bool | None = None
    hub: str = ""
    language: str = "en"
    split: str = "test"
    images: bool = False
    metric: str = ""
    tried: bool = True

    def row(self, key: str, messages: list[Message], **fields: Any) -> Row:
        """A row of this suite; ``key`` is its id within the suite."""
        return Row(
            id=f"{self.name}/{key}", task=self.task, messages=messages, harmful=self.harmful,
            source=self.name, licence=self.licence, split=self.split, **fields,
        )  # fmt: skip

    def path(self, folder: Path) -> Path:
        """The suite's file below ``folder``. Raises InputError that says where the set comes from."""
        path = next(iter(sorted(folder.glob(self.file))), folder / self.file) if "*" in self.file else folder / self.file
        if path.is_file():
            return path
        known_as = f"hub id {self.hub}" if self.hub else "not on the hub"
        why = f"it is published at {self.upstream} ({known_as}, {self.licence})"
        if not folder.is_dir():
            raise InputError(f"suite {self.name}: the folder {folder} does not exist", why, "point folder: at the folder of public sets")
        if "*" in self.file:  # the repository of the hub is laid out like this
            do = f"hf download {self.hub} --repo-type dataset --local-dir {folder / Path(self.file).parts[0]}"
            raise InputError(f"suite {self.name}: no file matches {path}", why, do)
        raise InputError(f"suite {self.name}: the file {path} does not exist", why, f"download it and save it as {path}")
