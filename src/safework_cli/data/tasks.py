"""Tasks of the ladder as settings."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from safework_cli.core.errors import nearest
from safework_cli.core.settings import Weight
from safework_cli.data.row import TASKS


def _task(name: str) -> str:
    if name not in TASKS:
        raise ValueError(f"'{name}' is not a task{nearest(name, TASKS)} (tasks: {', '.join(TASKS)})")
    return name


TaskName = Annotated[str, AfterValidator(_task)]
"""One of the ladder's tasks, in a setting."""


def _some_task(weights: dict[str, float]) -> dict[str, float]:
    if set(weights) == set(TASKS) and not any(weights.values()):
        raise ValueError("every task has the weight 0: nothing would be left")
    return weights


TaskWeights = Annotated[dict[TaskName, Weight], AfterValidator(_some_task)]
"""Task → how much of it."""
