"""Which prompts a run sees, in which order: functions of only the seed and the step, so that a resumed run sees the same. Pure."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping, Sequence

from safework_cli.core.errors import InputError
from safework_cli.data.row import Row


class Curriculum:
    """The prompts of a run: phases, each with its tasks; within a phase tasks are drawn by weight, and within a task its categories.

    Args:
        phases: (tasks, share) in order; shares are relative.
        prompts: groups that the run trains on.
        per_round: groups of a rollout; the last one may have fewer.
        task_weights: how often a task is drawn, relative to the others of its phase; 1 where not given.
        category_weights: how often a category is drawn, relative to the others of its task; 1 where not given, and "" is that of rows
            without one. A task of which no category is given draws from all of its rows alike.

    Raises:
        InputError: a phase names a task that has no rows, or only rows of categories with the weight 0.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        phases: Sequence[tuple[Sequence[str], float]],
        prompts: int,
        per_round: int,
        task_weights: Mapping[str, float],
        seed: int,
        category_weights: Mapping[str, float] | None = None,
    ):
        self._phases, self._prompts, self._per_round, self._weights, self._seed = phases, prompts, per_round, task_weights, seed
        self._ends = phase_ends([share for _, share in phases], prompts)
        self._of_category = category_weights or {}
        weighed = {row.task for row in rows if (row.category or "") in self._of_category}
        self._by_task: dict[str, dict[str, list[int]]] = {}
        """Task → category → rows, of those that are drawn; one category "" where none is given."""
        for position, row in enumerate(rows):
            category = (row.category or "") if row.task in weighed else ""
            if row.task not in weighed or self._of_category.get(category, 1.0) > 0:
                self._by_task.setdefault(row.task, {}).setdefault(category, []).append(position)
        for number, (tasks, _) in enumerate(phases, 1):
            for task in tasks:
                if task not in self._by_task:
                    raise InputError(
                        f"phase {number} draws '{task}', and the data has no such rows that can be drawn",
                        f"it has {', '.join(sorted(self._by_task)) or 'none'}",
                        "change phases or the weights of categories, or the data",
                    )

    def order(self) -> list[int]:
        """Positions of the rows to train on, whole rollouts of them: where the last one has fewer prompts, more follow that are not
        used. Each task's rows come in shuffled turns: none comes again before all of its task, or its category, came."""
        chooser = random.Random(self._seed)
        queues: dict[tuple[str, str], list[int]] = {}
        order: list[int] = []
        for place in range(math.ceil(self._prompts / self._per_round) * self._per_round):
            task = self._task(self._phase(place), chooser)
            category = self._category(self._by_task[task], chooser)
            if not queues.get((task, category)):
                queues[task, category] = self._by_task[task][category].copy()
                chooser.shuffle(queues[task, category])
            order.append(queues[task, category].pop())
        return order

    def spares(self, round_: int, attempt: int, places: Sequence[int], taken: Collection[int], skipped: Collection[str] = ()) -> list[int]:
        """Other prompts for those of a rollout whose groups gave no signal: each drawn from its phase, distinct and none of those taken.
        Fewer than there are places where the tasks have no more.

        Args:
            places: of the groups within the rollout.
            skipped: tasks whose prompts are not taken.
        """
        chooser = random.Random(f"{self._seed}/{round_}/{attempt}")
        pools = {
            task: {category: [row for row in own if row not in taken and task not in skipped] for category, own in of_task.items()}
            for task, of_task in self._by_task.items()
        }
        for of_task in pools.values():
            for pool in of_task.values():
                chooser.shuffle(pool)
        drawn: list[int] = []
        for place in places:
            phase = self._phase(round_ * self._per_round + place)
            while any(self._left(pools[task]) for task in self._phases[phase][0] if self._weights.get(task, 1.0) > 0):
                if left := self._left(pools[self._task(phase, chooser)]):
                    drawn.append(left[self._category(left, chooser)].pop())
                    break
        return drawn

    def _left(self, of_task: Mapping[str, list[int]]) -> dict[str, list[int]]:
        """The categories that have rows left."""
        return {category: pool for category, pool in of_task.items() if pool}

    def _category(self, of_task: Mapping[str, list[int]], chooser: random.Random) -> str:
        names = list(of_task)
        if len(names) == 1:
            return names[0]
        return chooser.choices(names, [self._of_category.get(name, 1.0) for name in names])[0]

    def _phase(self, place: int) -> int:
        """The phase of the prompt at a place in the run's order."""
        return next((number for number, end in enumerate(self._ends) if place < end), len(self._ends) - 1)

    def _task(self, number: int, chooser: random.Random) -> str:
        tasks = list(self._phases[number][0])
        return chooser.choices(tasks, [self._weights.get(task, 1.0) for task in tasks])[0]


def phase_ends(shares: Sequence[float], prompts: int) -> list[int]:
    """How many of a run's prompts come before the end of each phase."""
    return [round(prompts * sum(shares[: number + 1]) / sum(shares)) for number in range(len(shares))]
