"""The rows of a dataset artifact, and what stages require of them."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safework_cli.core.artifacts.manifest import HELDOUT
from safework_cli.core.errors import InputError, nearest
from safework_cli.data.row import HELD_OUT_NAMES, Row, stream_rows

if TYPE_CHECKING:
    from safework_cli.core.artifacts import Artifact


KEPT_DATASETS = 2
"""Datasets whose rows stay in memory: the one that a stage trains on, and the one that it measures on."""
_READ: OrderedDict[tuple[str | None, ...], tuple[Row, ...]] = OrderedDict()
"""Rows by where they are, the digest of their artifact, and the subset."""
_HELD_OUT_FILE = re.compile(rf"(?:{'|'.join(HELD_OUT_NAMES)})(?:[-_.].*)?\.parquet$", re.IGNORECASE)


def stream_dataset(artifact: Artifact) -> Iterator[Row]:
    """The rows of a dataset artifact, a batch in memory at a time. In a folder from outside the store, rows without a split are held out
    where their file is named so (test.parquet, validation-00000-of-00001.parquet)."""
    for path in artifact.row_files():
        held_out = artifact.external is not None and Path(artifact.external).is_dir() and _HELD_OUT_FILE.match(path.name)
        for row in stream_rows(path):
            if held_out and not row.split:
                row.split = "test"
            yield row


def read_dataset(artifact: Artifact) -> list[Row]:
    """Every row of a dataset artifact (of its subset, where one is named).

    A process reads a dataset once: the plan and the run of a stage get the same ``Row`` objects, in a list of their own. Rows are not to be
    changed; ``dataclasses.replace`` makes another one.

    Raises:
        InputError: which subset is meant is open, or there is none of that name.
    """
    key = (str(artifact.path), artifact.external, artifact.digest, artifact.subset)
    if key in _READ:
        _READ.move_to_end(key)
    else:
        _READ[key] = tuple(stream_dataset(artifact))
        if len(_READ) > KEPT_DATASETS:
            _READ.popitem(last=False)
    return list(_READ[key])


def training_rows(artifact: Artifact, say: Callable[[str], object] | None = None) -> list[Row]:
    """The rows that may be trained on: those that are not held out (split "test"). A reference that names the subset ``heldout`` asks for
    what is held out, and gets it.

    Args:
        say: is called with a sentence where rows were left out.

    Raises:
        InputError: the rows are all held out, or which subset is meant is open.
    """
    rows = read_dataset(artifact)
    if artifact.subset == HELDOUT:
        return rows
    kept = [row for row in rows if row.split != "test"]
    if rows and not kept:
        raise InputError(
            f"all {len(rows):,} rows of {artifact.ref} are held out for evaluation",
            'their split is "test", and such rows are not trained on',
            f"name a subset for training, or {artifact.ref.partition(':')[0]}:{HELDOUT} where you mean to train on what is held out",
        )
    if say and len(kept) < len(rows):
        say(f"{len(rows) - len(kept):,} rows of {artifact.ref} are held out (split test) and left out of training")
    return kept


def prompts_of(
    artifact: Artifact,
    *,
    tasks: Sequence[str] = (),
    sources: Sequence[str] = (),
    limit: int | None = None,
    held_out: bool = False,
    say: Callable[[str], object] | None = None,
) -> list[Row]:
    """The rows whose prompts a stage has answered, in their order.

    Args:
        tasks, sources: only rows of these; of all where empty.
        limit: so many at most.
        held_out: rows that are held out for evaluation, too.
        say: as in ``training_rows``.

    Raises:
        InputError: no row has one of the sources or one of the tasks, or no row is left.
    """
    rows = read_dataset(artifact) if held_out else training_rows(artifact, say)
    have = sorted({row.source for row in rows if row.source})
    for source in sources:
        if source not in have:
            raise InputError(f"{artifact.ref} has no rows of '{source}'{nearest(source, have)}", f"its sources: {', '.join(have)}")
    rows = [row for row in rows if not sources or row.source in sources]
    require_rows(len(rows), artifact, "prompts")
    refuse_missing_tasks("tasks", tasks, rows, f"{artifact.ref}{' of these sources' if sources else ''}")
    return [row for row in rows if not tasks or row.task in tasks][:limit]


def refuse_missing_tasks(setting: str, tasks: Sequence[str], rows: Sequence[Row], where: str) -> None:
    """Raises InputError where a setting names a task of which there are no rows: it would be left out without a word."""
    have = sorted({row.task for row in rows})
    if missing := [task for task in tasks if task not in have]:
        raise InputError(
            f"{setting} names '{missing[0]}', and {where} has no such rows", f"it has {', '.join(have)}", f"change {setting}, or the data"
        )


def require_rows(count: int, artifact: Artifact, what: str) -> None:
    """Refuses to go on with nothing: ``count`` rows of ``what`` came out of ``artifact``."""
    if count == 0:
        raise InputError(
            f"{artifact.ref} holds no {what}",
            "a stage that runs on zero rows would end green without having done anything",
            f"safework artifacts show {artifact.ref}",
        )
