"""Settings of ``safework rl m3``."""

from __future__ import annotations

from typing import Any

from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator, model_validator

from safework_cli.core.registry import load_registered
from safework_cli.core.settings import Settings
from safework_cli.data.tasks import TaskName, TaskWeights
from safework_rl.config import RlConfig
from safework_rl.curriculum import phase_ends
from safework_rl.registry import OBJECTIVES, check_name, settings_of
from safework_rl.routing import Routes, unread_routes


class Phase(Settings):
    """A part of the curriculum."""

    tasks: list[TaskName] = Field(min_length=1)
    """Tasks whose prompts are drawn."""
    share: float = Field(gt=0, le=1e6)
    """Share of the steps, relative to the other phases."""


def _two_phases() -> list[Phase]:
    return [Phase(tasks=["knowledge", "general"], share=1.0), Phase(tasks=["safety", "value", "knowledge", "general"], share=2.0)]


class M3Config(RlConfig):
    """Settings of ``safework rl m3``."""

    phases: list[Phase] = Field(default_factory=_two_phases, min_length=1)
    """The curriculum, in order. (That knowledge and general come first is known; the proportions are not published.)"""
    task_weights: TaskWeights = Field(default_factory=dict)
    """How often a task is drawn, relative to the others of its phase; 1 where not given."""
    filter_groups: bool = True
    """Give no gradient to groups that are all right or all wrong in the task, and look for others in their place."""
    refill_attempts: int = Field(2, ge=0, le=1000)
    """Dynamic sampling: how often a rollout may sample other prompts for such groups. 0 leaves them, without a gradient."""
    rewards: Routes = Field(default_factory=dict, validate_default=True)
    """Task → verifier → weight, in place of the task's usual route; the first verifier says whether a reply is right. Names: a KEY
    of verifiers.KEY, a rule (correctness, refusal, language, …), or a reward that an installed package registers. An empty route, such
    as knowledge={}: no reward, and only the KL to the reference (beta) trains on the task's replies."""
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

    @model_validator(mode="after")
    def _some_task_is_drawn(self) -> M3Config:
        for number, phase in enumerate(self.phases, 1):
            if not any(self.task_weights.get(task, 1.0) for task in phase.tasks):
                raise ValueError(f"task_weights is 0 for every task of phase {number} ({', '.join(phase.tasks)}): it could draw no prompt")
        return self

    def unused(self) -> list[str]:
        unused = super().unused()
        drawn = {task for phase in self.phases for task in phase.tasks}
        unused += [f"task_weights.{task} weighs a task that no phase draws" for task in self.task_weights if task not in drawn]
        unused += unread_routes(self.rewards, drawn)
        if self.refill_attempts and "refill_attempts" in self.model_fields_set and not self.filter_groups:
            unused.append("refill_attempts is read with filter_groups=true only")
        start = 0
        for number, end in enumerate(phase_ends([phase.share for phase in self.phases], self.prompts_used), 1):
            if end == start:
                unused.append(f"phase {number} gets none of the {self.prompts_used} prompts of {self.max_steps} steps")
            start = end
        return unused
