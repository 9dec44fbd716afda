"""Monitors a run's numbers: reports hints, and stops a run that has had no gradient for many steps."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from safework_cli.core.errors import GateFailed
from safework_cli.core.progress import read_metrics
from safework_cli.core.stage import WorkDir
from safework_rl.bias import bias_warnings
from safework_rl.hints import WINDOW, hints, why_idle
from safework_rl.measures import learns

LOOKED_BACK = 20 * WINDOW
"""Newest rollouts that hints are computed from, in addition to the first ones: not all of thousands are read at every step."""
ROLLOUT = "groups/attempts"
"""A number that only the first update of a rollout has."""


class Monitor(TrainerCallback):
    """Reports each kind of hint and of bias once.

    Args:
        max_idle: steps in a row without any gradient after which the run stops.
    """

    def __init__(self, work: WorkDir, max_idle: int):
        self._work, self._max_idle = work, max_idle
        self._history: list[dict[str, float]] = []
        self._reported: set[str] = set()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Reads the numbers from before a resume."""
        self._history = [step for step in read_metrics(self._work.metrics_path) if step["step"] <= state.global_step]
        rollouts = [step for step in self._history if ROLLOUT in step]
        self._reported = {*hints(rollouts), *bias_warnings(rollouts, WINDOW)}

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if logs is None or "grad_norm" not in logs:
            return
        self._history.append({name: float(value) for name, value in logs.items() if isinstance(value, (int, float))})
        rollouts = [step for step in self._history if ROLLOUT in step]  # the other updates have no numbers of replies
        recent = rollouts if len(rollouts) <= LOOKED_BACK else rollouts[:WINDOW] + rollouts[-LOOKED_BACK:]
        for kind, text in hints(recent).items():
            if kind not in self._reported:
                self._reported.add(kind)
                self._work.progress.note(f"hint: {text}")
        for kind, text in bias_warnings(recent, WINDOW).items():
            if kind not in self._reported:
                self._reported.add(kind)
                self._work.progress.warn(text)
        idle = sum(1 for _ in takewhile(lambda step: not learns(step), reversed(self._history)))
        if idle >= self._max_idle:
            start = max((i for i, step in enumerate(self._history[:-idle]) if ROLLOUT in step), default=-idle)
            since = self._history[start:] if ROLLOUT not in self._history[-idle] else self._history[-idle:]
            raise GateFailed(
                f"no step had a gradient for {idle} steps: {why_idle(since)}",
                "more steps of that kind cost time and have no effect (max_idle_steps)",
                "look at the samples; change the prompts, the rewards or the temperature",
            )
