"""Train a principled value model: it scores a prefix of a reply for each principle, and weighs the principles by the prompt.

Takes a backbone and rollouts (prefixes with Monte-Carlo values); makes a verifier for guided search. Refuses rows without values, a
principle with too few prompts to split, and values outside [0, 1].
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from safework_cli.core.errors import SafeworkError
from safework_cli.core.plan.tokens import characters_per_token
from safework_cli.core.stage import Inputs, Outcome, Plan, Slot, Stage, WorkDir
from safework_cli.data.dataset import training_rows
from safework_cli.data.image_rows import refuse_unread_images
from safework_cli.training.tracking import plan_tracking
from safework_cli.training.work import disk_of, tokens_and_patches, training_work
from safework_verifier.values.config import ValuesConfig
from safework_verifier.values.prefixes import Prefixes, split_by_prompt, valued_rows

if TYPE_CHECKING:
    from rich.console import RenderableType

    from safework_cli.core.artifacts import Artifact


class ValuesStage(Stage):
    name = "verifier values"
    version = 5
    """5: the loss is a mean over prefixes. 4: an opened thought is opened once, held-out rows are left out. 3: measured with unrounded
    positions."""
    summary = "Train a principled value model: it scores a prefix of a reply for each principle, and weighs the principles by the prompt."
    Config = ValuesConfig
    inputs = {
        "model": Slot(("model",), "the backbone, preferably the policy itself"),
        "data": Slot(("dataset",), "prefixes with their values, made by verifier rollouts"),
    }
    output = "verifier"
    many_processes = True

    def plan(self, config: ValuesConfig, inputs: Inputs) -> Plan:
        model, data = inputs.one("model"), inputs.one("data")
        plan = Plan(name=f"{model.name}-values")
        try:
            rows, principles = valued_rows(training_rows(data), data.ref)
            parts = split_by_prompt(rows, config.eval_fraction, config.seed)
            refuse_unread_images(rows, data.ref, model)
        except SafeworkError as refusal:
            plan.refusals.append(refusal)
            return plan
        plan_tracking(plan, config.tracking)
        plan.lines += [
            f"train {model.ref} to value prefixes on {data.ref} by {', '.join(principles)}",
            f"{len(parts.train)} prefixes to train on, {len(parts.calibration)} for the temperatures, {len(parts.report)} reported",
        ]
        plan.optimizer_steps = steps_of(config, parts)
        texts = ["".join(message["content"] for message in row.messages) for row in parts.train]
        ratio = characters_per_token(model.path, texts)
        images = tokens_and_patches(model.path, parts.train, config.pixels)
        lengths = [min(len(text) / ratio + tokens, config.max_length) for text, (tokens, _) in zip(texts, images, strict=True)]
        patches = [patches for _, patches in images]
        plan.work = training_work(model.path, config, lengths, plan.optimizer_steps, "none", loads_parts=True, patches=patches)
        plan.tokens = round(plan.work.step_tokens * config.launch.world * plan.optimizer_steps)
        plan.disk_bytes = disk_of(plan.work, None if config.dtype == "auto" else config.dtype)
        return plan

    def show(self, artifact: Artifact) -> RenderableType:
        from safework_verifier.table import values_table

        return values_table(artifact)

    def run(self, config: ValuesConfig, inputs: Inputs, work: WorkDir) -> Outcome:
        from safework_verifier.values.run import train

        return train(config, inputs.one("model"), inputs.one("data"), work)


def steps_of(config: ValuesConfig, parts: Prefixes) -> int:
    """Optimiser steps that the settings give."""
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps * config.launch.world
    return config.max_steps if config.max_steps > 0 else math.ceil(math.ceil(len(parts.train) / per_step) * config.num_train_epochs)


stage = ValuesStage()
