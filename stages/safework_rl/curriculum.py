"""Which prompts a run sees, in which order: functions of the seed and the step alone, so that a resumed run sees the same. Pure."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence

from safework_cli.errors import InputError
from safework_cli.rows import Row


class Curriculum:
    """The prompts of a run: phases, each with its tasks; within a phase tasks are drawn by weight.

    Args:
        phases: (tasks, share) in order; shares are relative.
        rounds: how often completions are sampled (optimiser steps / passes over each batch).
        per_round: prompts of a round.
        task_weights: how often a task is drawn beside the others of its phase; 1 where not given.

    Raises:
        InputError: a phase names a task that has no rows.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        phases: Sequence[tuple[Sequence[str], float]],
        rounds: int,
        per_round: int,
        task_weights: Mapping[str, float],
        seed: int,
    ):
        self._phases, self._rounds, self._per_round, self._weights, self._seed = phases, rounds, per_round, task_weights, seed
        self._by_task: dict[str, list[int]] = {}
        for position, row in enumerate(rows):
            self._by_task.setdefault(row.task, []).append(position)
        for number, (tasks, _) in enumerate(phases, 1):
            for task in tasks:
                if task not in self._by_task:
                    raise InputError(
                        f"phase {number} draws '{task}', and the data has no such rows",
                        f"it has {', '.join(sorted(self._by_task)) or 'none'}",
                        "change phases, or the data",
                    )

    def order(self) -> list[int]:
        """Positions of the rows to train on, rounds × prompts of a round. Each task's rows come in shuffled turns: none comes again
        before all of its task came."""
        chooser = random.Random(self._seed)
        queues: dict[str, list[int]] = {}
        order: list[int] = []
        for number in range(len(self._phases)):
            while len(order) < self._end(number) * self._per_round:
                task = self._task(number, chooser)
                if not queues.get(task):
                    queues[task] = self._by_task[task].copy()
                    chooser.shuffle(queues[task])
                order.append(queues[task].pop())
        return order

    def spares(self, round_: int, attempt: int, count: int, taken: Collection[int]) -> list[int]:
        """Other prompts for a round whose groups taught nothing: drawn like the round's own, distinct and none of those taken. Fewer
        than ``count`` where the tasks have no more."""
        number = next((n for n in range(len(self._phases)) if round_ < self._end(n)), len(self._phases) - 1)
        chooser = random.Random(f"{self._seed}/{round_}/{attempt}")
        pools = {task: [row for row in self._by_task[task] if row not in taken] for task in self._phases[number][0]}
        for pool in pools.values():
            chooser.shuffle(pool)
        drawn: list[int] = []
        while len(drawn) < count and any(pools[task] for task in pools if self._weights.get(task, 1.0) > 0):
            if pool := pools[self._task(number, chooser)]:
                drawn.append(pool.pop())
        return drawn

    def _task(self, number: int, chooser: random.Random) -> str:
        tasks = list(self._phases[number][0])
        return chooser.choices(tasks, [self._weights.get(task, 1.0) for task in tasks])[0]

    def _end(self, number: int) -> int:
        """The round at which a phase ends."""
        shares = [share for _, share in self._phases]
        return round(self._rounds * sum(shares[: number + 1]) / sum(shares))
