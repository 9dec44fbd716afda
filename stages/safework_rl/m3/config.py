"""Settings of ``safework rl m3``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator

from safework_cli.core.registry import load_registered
from safework_cli.core.settings import Settings
from safework_cli.data.tasks import TaskName
from safework_rl.curriculum import phase_ends
from safework_rl.registry import OBJECTIVES, check_name, settings_of
from safework_rl.task_config import TaskRlConfig


class Phase(Settings):
    """A part of the curriculum."""

    tasks: list[TaskName] = Field(min_length=1)
    """Tasks whose prompts are drawn."""
    share: float = Field(gt=0, le=1e6)
    """Share of the steps, relative to the other phases."""


def _two_phases() -> list[Phase]:
    return [Phase(tasks=["knowledge", "general"], share=1.0), Phase(tasks=["safety", "value", "knowledge", "general"], share=2.0)]


class M3Config(TaskRlConfig):
    """Settings of ``safework rl m3``."""

    phases: list[Phase] = Field(default_factory=_two_phases, min_length=1)
    """The curriculum, in order. (That knowledge and general come first is known; the proportions are not published.)"""
    objective: str = "m3"
    """How rewards become advantages: m3, or an objective that an installed package registers."""
    objective_settings: SerializeAsAny[Settings] = Field(default_factory=Settings, validate_default=True)
    """Settings that the objective of another package declares; m3 has none besides those of the stage."""

    @field_validator("objective")
    @classmethod
    def _objective_is_registered(cls, name: str) -> str:
        return check_name(OBJECTIVES, name, "objective", without=("efficient", "search"))  # these belong to stages of their own

    @field_validator("objective_settings", mode="plain", json_schema_input_type=dict[str, Any])
    @classmethod
    def _settings_of_the_objective(cls, given: Any, info: ValidationInfo) -> Settings:
        name = info.data.get("objective", "m3")
        made = None if name == "m3" else load_registered(OBJECTIVES, name, "objective")  # ours imports torch, and has none
        return settings_of(getattr(made, "Settings", Settings), given, "objective_settings", f"objective={name}")

    @property
    def curriculum(self) -> list[tuple[Sequence[str], float]]:
        return [(phase.tasks, phase.share) for phase in self.phases]

    def unused(self) -> list[str]:
        unused = super().unused()
        start = 0
        for number, end in enumerate(phase_ends([phase.share for phase in self.phases], self.prompts_used), 1):
            if end == start:
                unused.append(f"phase {number} gets none of the {self.prompts_used} prompts of {self.max_steps} steps")
            start = end
        return unused
