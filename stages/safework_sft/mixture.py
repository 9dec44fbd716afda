"""How often each task's rows are seen. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from safework_cli.core.errors import InputError
from safework_cli.data.row import Row


def weighted_positions(rows: Sequence[Row], weights: Mapping[str, float], seed: int) -> list[int]:
    """Positions of rows, each as often as its task's weight says: 0.3 takes three rows in ten, 2 takes each twice, 0 none.

    Which three in ten is decided by a hash of the row's id and the seed, so a smaller weight takes a part of what a larger one takes.

    Raises:
        InputError: a weight names a task that has no rows, or nothing is left.
    """
    by_task: dict[str, list[int]] = {}
    for position, row in enumerate(rows):
        by_task.setdefault(row.task, []).append(position)
    if missing := [task for task in weights if task not in by_task]:
        has = f"it has {', '.join(sorted(by_task))}"
        raise InputError(f"task_weights names '{missing[0]}', and the data has no such rows", has, "change task_weights, or the data")
    chosen: list[int] = []
    for task, positions in by_task.items():
        weight = weights.get(task, 1.0)
        ranked = sorted(positions, key=lambda position: hashlib.sha256(f"{seed}/{rows[position].id}".encode()).digest())
        chosen += positions * int(weight) + ranked[: round((weight - int(weight)) * len(positions))]
    if not chosen:
        raise InputError("task_weights leave no row", "nothing would be trained", "give some task a weight above 0")
    return sorted(chosen)
