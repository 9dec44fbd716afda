"""Before a run: how many groups of each task have a learning signal, from the starting policy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean

from safework_cli.engines.protocol import TokenEngine
from safework_rl.measures import all_equal
from safework_rl.step import StepContext, flat, judge, sample

BEFORE = -1
"""The number of the rollout whose draws these are: that of no step of the run."""


@dataclass(frozen=True, slots=True)
class TaskSignal:
    """Groups of one task.

    Attributes:
        groups: how many were sampled; varying: how many of them have replies that earn different rewards.
        right, wrong: groups in which every reply is right in the task, or every reply is wrong.
        reward: mean over the replies that could be scored; None without any.
    """

    groups: int
    varying: int
    right: int
    wrong: int
    reward: float | None

    @property
    def sentence(self) -> str:
        reward = "none could be scored" if self.reward is None else f"mean reward {self.reward:.2f}"
        return f"{self.varying} of {self.groups} groups vary; {self.right} all right, {self.wrong} all wrong; {reward}"


def signal_by_task(engine: TokenEngine, run: StepContext, count: int) -> dict[str, TaskSignal]:
    """Samples and judges the groups of up to ``count`` prompts of each task, spread evenly over its rows, as a step would.

    Nothing of the run depends on it: its draws have seeds of their own.
    """
    by_task: dict[str, list[int]] = {}
    for place, row in enumerate(run.rows):
        if row.task not in run.unrewarded:
            by_task.setdefault(row.task, []).append(place)
    found = {}
    for task, places in sorted(by_task.items()):
        chosen = [places[i * len(places) // min(count, len(places))] for i in range(min(count, len(places)))]
        groups = judge(sample(engine, chosen, BEFORE, 0, run), run)
        rewards = [reply.reward for reply in flat(groups) if not math.isnan(reply.reward)]
        found[task] = TaskSignal(
            groups=len(groups),
            varying=sum(not all_equal(group) for group in groups),
            right=sum(all(reply.correct is True for reply in group) for group in groups),
            wrong=sum(all(reply.correct is False for reply in group) for group in groups),
            reward=fmean(rewards) if rewards else None,
        )
    return found
