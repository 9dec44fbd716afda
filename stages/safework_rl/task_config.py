"""Settings that ``rl m3`` and ``rl efficient`` share: which tasks are drawn, what their replies earn, and which groups are trained on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from pydantic import Field, model_validator

from safework_cli.core.settings import ordered
from safework_cli.data.tasks import TaskWeights
from safework_rl.config import RlConfig
from safework_rl.routing import Routes, unread_routes


class TaskRlConfig(RlConfig):
    """Settings of a stage whose replies are rewarded by their task."""

    task_weights: TaskWeights = Field(default_factory=dict)
    """How often a task is drawn, relative to the others that are drawn with it; 1 where not given."""
    filter_groups: bool = True
    """Compare no rewards in groups that are all right or all wrong in the task, and look for others in place of those without a signal."""
    refill_attempts: int = Field(2, ge=0, le=1000)
    """Dynamic sampling: how often a rollout may sample other prompts for groups without a signal. 0 leaves them, without a gradient."""
    rewards: Routes = ordered(default_factory=dict, validate_default=True, inner=True)
    """Task → verifier → weight, in place of the task's usual route; the first verifier says whether a reply is right. Names: a KEY
    of verifiers.KEY, a rule (correctness, refusal, language, …), or a reward that an installed package registers. An empty route, such
    as knowledge={}: no reward, and only the KL to the reference (beta) trains on the task's replies. A route is merged into that of a
    recipe; an empty one before it replaces that: rewards.knowledge={} rewards.knowledge.refusal=1."""

    @property
    @abstractmethod
    def curriculum(self) -> list[tuple[Sequence[str], float]]:
        """The phases in order: tasks that are drawn, and share of the steps relative to the other phases."""

    @property
    def drawn(self) -> set[str]:
        """The tasks of all phases."""
        return {task for tasks, _ in self.curriculum for task in tasks}

    @property
    def refills(self) -> int:
        """How often other prompts are sampled in place of groups without a signal."""
        return self.refill_attempts if self.filter_groups else 0

    @model_validator(mode="after")
    def _some_task_is_drawn(self) -> TaskRlConfig:
        phases = self.curriculum
        for number, (tasks, _) in enumerate(phases, 1):
            if not any(self.task_weights.get(task, 1.0) for task in tasks):
                where = f"of phase {number} " if len(phases) > 1 else ""
                raise ValueError(f"task_weights is 0 for every task {where}({', '.join(tasks)}): it could draw no prompt")
        return self

    def unused(self) -> list[str]:
        unused, drawn = super().unused(), self.drawn
        unused += [f"task_weights.{task} weighs a task that is not drawn" for task in self.task_weights if task not in drawn]
        unused += unread_routes(self.rewards, drawn)
        if self.refill_attempts and "refill_attempts" in self.model_fields_set and not self.filter_groups:
            unused.append("refill_attempts is read with filter_groups=true only")
        return unused
