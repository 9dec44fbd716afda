"""Settings of ``safework rl efficient``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from safework_cli.data.tasks import TaskName
from safework_rl.task_config import TaskRlConfig


class EfficientConfig(TaskRlConfig):
    """Settings of ``safework rl efficient``."""

    length_advantage: Literal["canon", "ddca"] = "canon"
    """The form of the conditional length advantage."""
    mu: float = Field(1.0, ge=0, le=1)
    """CANON: weight of the comparison between the short and the long half; 0 compares within a half."""
    alpha: float = Field(0.9, gt=0, le=1)
    """CANON: discount of long replies; 1 has no preference for length."""
    ddca_beta: float = Field(0.2, ge=0, le=1000)
    """DDCA: weight of the length advantage."""
    min_length_spread: float = Field(0.05, ge=0, le=10)
    """Sample deviation of the lengths in a group, relative to their mean, from which length counts there: DDCA divides by the deviation and
    CANON sorts by length, so that without a limit one token more or less counts as much as half the reply. 0: any difference, as in both
    papers. DDCA looks at right replies only, CANON at all replies."""
    tasks: list[TaskName] = Field(default_factory=lambda: ["safety", "value", "knowledge", "general"], min_length=1)
    """Tasks whose prompts are drawn, by task_weights."""

    @property
    def curriculum(self) -> list[tuple[Sequence[str], float]]:
        return [(self.tasks, 1.0)]

    def unused(self) -> list[str]:
        unused = super().unused()
        if "weighting" in self.loss.model_fields_set:
            unused.append("loss.weighting is not read: length_advantage weights the groups")
        of_the_other = ("mu", "alpha") if self.length_advantage == "ddca" else ("ddca_beta",)
        given = [name for name in of_the_other if name in self.model_fields_set]
        return unused + [f"{name} is not read with length_advantage={self.length_advantage}" for name in given]
