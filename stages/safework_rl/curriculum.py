"""Which prompts a run sees, in which order: drawn once, from the seed, so that a resumed run sees the same. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from safework_cli.errors import InputError
from safework_cli.rows import Row


def prompt_order(
    rows: Sequence[Row],
    phases: Sequence[tuple[Sequence[str], float]],
    steps: int,
    per_step: int,
    task_weights: Mapping[str, float],
    seed: int,
) -> list[int]:
    """Positions of the rows to train on, ``steps × per_step`` of them.

    Within a phase, tasks are drawn by weight and each task's rows in shuffled rounds: no row comes again before all of its task came.

    Args:
        phases: (tasks, share) in order; shares are relative.

    Raises:
        InputError: a phase names a task that has no rows.
    """
    chooser = random.Random(seed)
    by_task: dict[str, list[int]] = {}
    for position, row in enumerate(rows):
        by_task.setdefault(row.task, []).append(position)
    queues: dict[str, list[int]] = {}
    total = sum(share for _, share in phases)
    order: list[int] = []
    for number, (tasks, _) in enumerate(phases, 1):
        missing = [task for task in tasks if task not in by_task]
        if missing:
            raise InputError(
                f"phase {number} draws '{missing[0]}', and the data has no such rows",
                f"it has {', '.join(sorted(by_task)) or 'none'}",
                "change phases, or the data",
            )
        end = round(steps * sum(share for _, share in phases[:number]) / total) * per_step
        weights = [task_weights.get(task, 1.0) for task in tasks]
        while len(order) < end:
            task = chooser.choices(list(tasks), weights)[0]
            if not queues.get(task):
                queues[task] = by_task[task].copy()
                chooser.shuffle(queues[task])
            order.append(queues[task].pop())
    return order
