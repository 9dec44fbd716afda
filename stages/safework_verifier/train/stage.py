"""Train a verifier that labels replies: safety, refusal, value, knowledge or helpfulness.

Takes a model and a dataset whose rows carry ``meta.label`` and end in the reply; makes a verifier: the model's folder with
``verifier.json``. Refuses unknown labels, a single class, rows without labels beyond ``tolerated_missing_labels``, data that
cannot be split by prompt, and labels whose tokens do not differ.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from safework_cli.core.errors import SafeworkError
from safework_cli.core.plan.tokens import characters_per_token
from safework_cli.core.stage import Inputs, Outcome, Plan, Slot, Stage, WorkDir
from safework_cli.data.dataset import read_dataset
from safework_cli.data.image_rows import refuse_unread_images
from safework_cli.training.tracking import plan_tracking
from safework_cli.training.work import disk_of, tokens_and_patches, training_work
from safework_cli.verifiers.image_text import require_reader
from safework_cli.verifiers.spec import LabelSpec
from safework_verifier.attacks import REFUSALS
from safework_verifier.rows import Parts, check_layers, labelled_rows, split_by_prompt, unused_calibration
from safework_verifier.train.config import VerifierTrainConfig

if TYPE_CHECKING:
    from rich.console import RenderableType

    from safework_cli.core.artifacts import Artifact


class VerifierTrainStage(Stage):
    name = "verifier train"
    version = 9  # 7: accuracy's interval by prompt, warm-up begins above 0; 8: baselines "…_given_harmful"; 9: the two decisions of safety
    summary = "Train a verifier that labels replies: safety, refusal, value, knowledge or helpfulness."
    Config = VerifierTrainConfig
    inputs = {
        "model": Slot(("model",), "the backbone, an instruct model"),
        "data": Slot(("dataset",), "rows with meta.label that end in the reply, such as starter:verifier"),
    }
    output = "verifier"
    many_processes = True

    def plan(self, config: VerifierTrainConfig, inputs: Inputs) -> Plan:
        model, data = inputs.one("model"), inputs.one("data")
        plan = Plan(name=f"{model.name}-{config.task}")
        spec = config.spec()
        try:
            if spec.read_image_text:
                require_reader()
            items, missing = labelled_rows(read_dataset(data), spec, config.tolerated_missing_labels)
            parts = split_by_prompt(items, missing, config.eval_fraction, config.seed, calibrate_on=config.calibrate_on)
            if not spec.read_image_text:
                refuse_unread_images([item.row for item in items], data.ref, model)
            layers = json.loads((model.path / "config.json").read_text()).get("num_hidden_layers")
            check_layers(layers, config.keep_layers, config.train_layers)
        except SafeworkError as refusal:
            plan.refusals.append(refusal)
            return plan
        if config.cut_short_share and not REFUSALS & set(spec.labels):
            plan.refuse(
                f"cut_short_share={config.cut_short_share:g}: a {config.task} verifier has no label for refusals", "", "leave it out"
            )
        _estimate(plan, config, spec, parts, model)
        plan_tracking(plan, config.tracking)
        plan.lines += [
            f"train {model.ref} to label {config.task} on {data.ref}: {len(parts.train)} rows",
            f"hold out {len(parts.calibration)} rows to fit the temperature and {len(parts.report)} to report, split by prompt",
            *(f"{name}: " + ", ".join(f"{label} {n}" for label, n in counts.items()) for name, counts in parts.counts(spec).items()),
        ]
        if text := unused_calibration(config.calibrate_on, items):
            plan.lines.append(f"warning: {text}")
        if missing:
            plan.lines.append(f"{missing} rows without label or reply are left out")
        return plan

    def show(self, artifact: Artifact) -> RenderableType:
        from safework_verifier.table import labels_table

        return labels_table(artifact)

    def run(self, config: VerifierTrainConfig, inputs: Inputs, work: WorkDir) -> Outcome:
        from safework_verifier.train.run import train

        return train(config, inputs.one("model"), inputs.one("data"), work)


def _estimate(plan: Plan, config: VerifierTrainConfig, spec: LabelSpec, parts: Parts, model: Artifact) -> None:
    """Steps, tokens, and what they ask of the machine."""
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps * config.launch.world
    epoch_steps = math.ceil(len(parts.train) / per_step)
    plan.optimizer_steps = config.max_steps if config.max_steps > 0 else math.ceil(epoch_steps * config.num_train_epochs)
    if config.train_layers == 0:
        plan.optimizer_steps = 0
    texts = [spec.template + one.exchange.question + one.exchange.final for one in parts.train]
    ratio = characters_per_token(model.path, texts)
    images = tokens_and_patches(model.path, [one.row for one in parts.train], config.pixels)
    lengths = [min(len(text) / ratio + tokens, config.max_length) for text, (tokens, _) in zip(texts, images, strict=True)]
    patches = [patches for _, patches in images]
    loads_parts = config.head != "probe"
    plan.work = training_work(model.path, config, lengths, plan.optimizer_steps, "last", loads_parts=loads_parts, patches=patches)
    passes = plan.optimizer_steps + (epoch_steps if config.head == "probe" else 0)
    plan.tokens = round(sum(lengths) / len(lengths) * per_step * passes)
    plan.disk_bytes = disk_of(
        plan.work, None if config.dtype == "auto" else config.dtype, adapters_only=config.lora is not None and config.lora.keep == "adapter"
    )


stage = VerifierTrainStage()
