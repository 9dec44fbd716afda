"""Fine-tune a model on reasoned replies (chain-of-thought SFT).

Takes a model and a dataset whose rows end in a reply; makes a model. Refuses: rows that the chat template refuses or whose reply writes
a control token (beyond ``max_dropped``), a supervised-token share of 0 % or 100 %, a turn that does not end in a stop token, rows with
images, zero rows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field

from safework_cli.artifacts.payload import parameter_count
from safework_cli.errors import SafeworkError
from safework_cli.lm.settings import Lora, SaveDtype, SupervisedConfig
from safework_cli.lm.templates import TemplateName
from safework_cli.stage import Inputs, Outcome, Plan, Slot, Stage, TaskWeights, WorkDir, require_rows, training_rows
from safework_sft.mixture import weighted_positions

if TYPE_CHECKING:
    from rich.console import RenderableType

    from safework_cli.artifacts import Artifact


class SftConfig(SupervisedConfig):
    """Settings of ``safework sft``."""

    learning_rate: float = Field(1e-5, gt=0, le=1)
    """Peak learning rate. (Usable defaults: 1e-5 in full, 1e-4 with LoRA; SafeWork-R1's own are not known.)"""
    per_device_train_batch_size: int = Field(8, ge=1, le=2**16)
    """Rows per forward pass on each device."""
    warmup_ratio: float = Field(0.03, ge=0, le=1)
    """Share of the steps in which the learning rate rises."""
    task_weights: TaskWeights = Field(default_factory=dict)
    """Task → how often its rows are seen: 0.3 takes three rows in ten, 2 takes each twice, 0 none; 1 where a task is not named."""
    max_length: int = Field(2048, ge=8, le=10**7)
    """Tokens of a row, prompt and reply; a longer row is dropped by name and counted, never cut."""
    max_dropped: float = Field(0.05, ge=0, le=1)
    """Share of rows that may be dropped before the run is refused."""
    chat_template: TemplateName = "model"
    """Template to train with and to save with the model: `model` (its own), `training` (TRL's variant of it, which keeps thoughts of
    earlier turns) or a name that TRL ships, such as `qwen3_training`."""
    lora: Lora | None = None
    """Train adapters in place of all weights."""
    train_layers: int | None = Field(None, ge=1, le=10_000)
    """Train this many of the top layers (and the final norm) alone: on a CPU nearly twice as fast. All weights where null."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    save_dtype: SaveDtype = "source"
    """Type of the saved weights: that of the model's own files, or another. Training itself keeps float32 weights."""
    sample_prompts: int = Field(8, ge=0, le=10_000)
    """Replies sampled after training to measure the stop rate and the format."""
    sample_max_tokens: int = Field(192, ge=1, le=10**6)
    """Tokens of such a reply at most."""
    min_stop_rate: float = Field(0.0, ge=0, le=1)
    """Gate: the share of sampled replies that must end by themselves; below it the command exits with 4."""


class SftStage(Stage):
    name = "sft"
    version = 4  # 4: held-out rows are left out; a reply is trained on as it would be sampled, and by the model's own loss
    summary = "Fine-tune a model on reasoned replies (chain-of-thought SFT)."
    Config = SftConfig
    inputs = {
        "model": Slot(("model",), "the model to start from"),
        "data": Slot(("dataset",), "rows that end in an assistant reply, such as starter:cot"),
    }
    output = "model"

    def plan(self, config: SftConfig, inputs: Inputs) -> Plan:
        model, data = inputs.one("model"), inputs.one("data")
        plan = Plan(name=f"{model.name.split('-sft')[0]}-sft")
        try:
            found = training_rows(data)
            require_rows(len(found), data, "rows")
            rows = len(weighted_positions(found, config.task_weights, config.seed))
        except SafeworkError as refusal:
            plan.refusals.append(refusal)
            return plan
        per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
        if config.max_steps > 0:
            plan.optimizer_steps = config.max_steps
        else:
            plan.optimizer_steps = math.ceil(rows / per_step * config.num_train_epochs)
        parameters = parameter_count(model.path)
        trained = parameters if config.lora is None else parameters // 50
        plan.memory_bytes = (
            4 * parameters + 12 * trained + 2**30
        )  # float32 weights; gradient and two Adam moments; activations and libraries
        plan.disk_bytes = 4 * parameters + 2 * (4 * parameters + 8 * trained)
        plan.lines = [
            f"train {model.ref} ({parameters / 1e6:.0f} M weights{', LoRA' if config.lora else ''}) on {data.ref} ({rows} rows)",
            f"{per_step} rows a step, learning rate {config.learning_rate:g}, loss on assistant tokens only",
            f"then sample {config.sample_prompts} replies and report how many stop",
        ]
        if config.lora and config.train_layers:
            plan.refuse("lora and train_layers are both given", "adapters sit in every layer", "choose one")
        if config.lora and config.learning_rate < 2e-5:
            plan.lines.append("note: adapters usually want a learning rate near 1e-4")
        return plan

    def show(self, artifact: Artifact) -> RenderableType:
        """The numbers to look at first."""
        from rich.text import Text

        metrics = artifact.manifest.metrics
        told = [
            f"loss {metrics['loss_first']} → {metrics['loss_last']} in {metrics['steps']} steps of {metrics['rows']} rows",
            f"supervised {100 * metrics['supervised_share']:.1f} % of {metrics['tokens']} tokens",
        ]
        if sampled := metrics["samples"]:
            rates = f"{100 * sampled['stop_rate']:.0f} % stopped, {100 * sampled['format_rate']:.0f} % in the format"
            told.append(f"of {sampled['n']} sampled replies {rates}, {sampled['mean_tokens']:.0f} tokens each")
        if dropped := sum(metrics["dropped"].values()):
            told.append(f"{dropped} rows dropped")
        return Text("\n".join(told))

    def run(self, config: SftConfig, inputs: Inputs, work: WorkDir) -> Outcome:
        from safework_sft.train import train

        return train(config, inputs.one("model"), inputs.one("data"), work)


stage = SftStage()
