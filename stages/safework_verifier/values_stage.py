"""Train a principled value model: it scores a prefix of a reply for each principle, and weighs the principles by the prompt.

Takes a backbone and rollouts (prefixes with Monte-Carlo values); makes a verifier for guided search. Refuses: rows without values, a
principle with too few prompts to split, values outside [0, 1].
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from safework_cli.artifacts.payload import parameter_count
from safework_cli.errors import SafeworkError
from safework_cli.lm.settings import SupervisedConfig
from safework_cli.stage import Inputs, Outcome, Plan, Slot, Stage, WorkDir, training_rows
from safework_verifier.prefixes import Prefixes, take_apart, valued_rows


class ValuesConfig(SupervisedConfig):
    """Settings of ``safework verifier values``."""

    learning_rate: float = Field(2e-5, gt=0, le=1)
    """Peak learning rate of the backbone."""
    head_learning_rate: float = Field(1e-3, gt=0, le=1)
    """Peak learning rate of the heads, which begin at zero."""
    per_device_eval_batch_size: int = Field(32, ge=1, le=2**16)
    """Prefixes per forward pass when measuring."""
    max_length: int = Field(1024, ge=32, le=10**7)
    """Tokens of prompt and prefix, in training and ever after."""
    train_layers: int | None = Field(None, ge=0, le=10_000)
    """Train the top n layers, the final norm and the heads only; 0 trains the heads alone."""
    routing_weight: float = Field(0.2, ge=0, le=1000)
    """Weight of the routing's loss beside that of the values."""
    eval_fraction: float = Field(0.2, gt=0, lt=1)
    """Share of the prompts held out; half of them fit the temperatures, the other half is reported."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the saved weights; "auto" is the fast one of this machine."""


class ValuesStage(Stage):
    name = "verifier values"
    version = 4  # 3: measured with unrounded positions; 4: an opened thought is opened once, held-out rows are left out
    summary = "Train a principled value model: it scores a prefix of a reply for each principle, and weighs the principles by the prompt."
    Config = ValuesConfig
    inputs = {
        "model": Slot(("model",), "the backbone, best the policy itself"),
        "data": Slot(("dataset",), "prefixes with their values, as verifier rollouts makes them"),
    }
    output = "verifier"

    def plan(self, config: ValuesConfig, inputs: Inputs) -> Plan:
        model, data = inputs.one("model"), inputs.one("data")
        plan = Plan(name=f"{model.name}-values")
        try:
            rows, principles = valued_rows(training_rows(data), data.ref)
            parts = take_apart(rows, config.eval_fraction, config.seed)
        except SafeworkError as refusal:
            plan.refusals.append(refusal)
            return plan
        plan.lines = [
            f"train {model.ref} to value prefixes on {data.ref} by {', '.join(principles)}",
            f"{len(parts.train)} prefixes to learn from, {len(parts.calibration)} for the temperatures, {len(parts.report)} reported",
        ]
        plan.optimizer_steps = steps_of(config, parts)
        parameters = parameter_count(model.path)
        plan.memory_bytes, plan.disk_bytes = 16 * parameters + 2**30, 14 * parameters
        return plan

    def run(self, config: ValuesConfig, inputs: Inputs, work: WorkDir) -> Outcome:
        from safework_verifier.values_train import train

        return train(config, inputs.one("model"), inputs.one("data"), work)


def steps_of(config: ValuesConfig, parts: Prefixes) -> int:
    """Optimiser steps that the settings ask for."""
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    return config.max_steps if config.max_steps > 0 else math.ceil(math.ceil(len(parts.train) / per_step) * config.num_train_epochs)


stage = ValuesStage()
