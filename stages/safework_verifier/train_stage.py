"""Train a verifier that labels replies: safety, value, knowledge or helpfulness.

Takes a model and a dataset whose rows carry ``meta.label`` and end in the reply; makes a verifier: the model's folder with
``verifier.json``. Refuses: unknown labels, one class only, rows without labels beyond ``tolerated_missing_labels``, data that
cannot be split by prompt, labels that no token can tell apart.
"""

from __future__ import annotations

import json
import math
from typing import Literal

from pydantic import Field, model_validator

from safework_cli.artifacts.payload import parameter_count
from safework_cli.errors import SafeworkError
from safework_cli.lm.settings import Lora, SupervisedConfig
from safework_cli.stage import Inputs, Outcome, Plan, Slot, Stage, WorkDir
from safework_cli.verifiers.spec import SHORT_TEMPLATES, LabelSpec, preset
from safework_verifier.attacks import REFUSALS
from safework_verifier.rows import Parts, check_layers, labelled_rows, take_apart

CHARACTERS_PER_TOKEN = 4.0


class VerifierTrainConfig(SupervisedConfig):
    """Settings of ``safework verifier train``."""

    task: Literal["safety", "refusal", "value", "knowledge", "helpfulness"] = "safety"
    """Which label set is learned: its labels, codes and score map. Safety has six classes; refusal tells full and
    partial refusals from compliance; value is good or bad; knowledge grades a reply TRUE or FALSE against the gold answer; helpfulness
    asks whether a harmless query was answered."""
    instruction: Literal["definitions", "short"] = "definitions"
    """What the judge is told: every class defined, or one line. "short" costs a third of the tokens and suits backbones that learn
    the classes from examples."""
    learning_rate: float = Field(2e-5, gt=0, le=1)
    """Peak learning rate. (Usable defaults: 2e-5 in full, 2e-4 with LoRA; SafeWork-R1's own are not known.)"""
    per_device_eval_batch_size: int = Field(32, ge=1, le=2**16)
    """Rows per forward pass when judging."""
    max_length: int = Field(1024, ge=32, le=10**7)
    """Tokens of a whole judge prompt, in training and ever after; a longer reply loses its middle, and both are counted."""
    keep_layers: int | None = Field(None, ge=1, le=10_000)
    """Backbone depth: keep the first n layers and drop the rest, for a judge that costs that much less in every later step."""
    head: Literal["keep", "probe"] = "keep"
    """Where the labels' output embeddings come from: those of the model, or a logistic regression on its features before any gradient step
    (LP-FT, arXiv 2202.10054). "probe" unties the output embedding."""
    probe_l2: float = Field(0.01, ge=0, le=1e6)
    """Weight of the squared norm in that regression."""
    train_layers: int | None = Field(None, ge=0, le=10_000)
    """Train the top n layers and the final norm only; embeddings and lower layers stay as they are, and so much of the backward pass
    falls away. 0 trains none: the probe alone is the verifier."""
    lora: Lora | None = None
    """Train adapters in place of all weights."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the saved weights, and so of judging; "auto" is the fast one of this machine. Training keeps float32 weights."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    class_weights: Literal["balanced", "sqrt", "none"] = "sqrt"
    """Weight of a class's rows in the loss: inversely to its count, to the square root of its count, or not at all."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target spread evenly over all labels."""
    eval_fraction: float = Field(0.15, gt=0, lt=1)
    """Share of rows held out, whole prompt groups at a time, where the data has no rows of split "test". Half of them fit the
    temperature, the other half is reported."""
    tolerated_missing_labels: float = Field(0.0, ge=0, le=1)
    """Share of rows that may lack a label or a reply; they are left out and counted."""
    reading: Literal["hard", "soft"] = "hard"
    """The verifier's score: that of the most probable label, or the expected one."""
    use_harmful: bool = False
    """Where a prompt is known to be harmful or not, let only labels possible for it compete."""
    min_probability: float = Field(0.0, ge=0, lt=1)
    """Label probability below which a verdict is an error: the verifier says that it does not know."""
    attacked_share: float = Field(0.0, ge=0, le=1)
    """Attacked copies of training rows to learn from as well, as a share of them; in other words than the card's attack sheet."""
    cut_short_share: float = Field(0.0, ge=0, le=1)
    """Of the refusals whose first sentence refuses already: the share to learn from once more as that sentence alone. Some models refuse in
    one sentence, others lecture; a judge that has read the one kind calls the other compliance."""
    attack_rows: int = Field(50, ge=0, le=10**6)
    """Held-out rows that each attack of the card's sheet is tried on; 0 leaves the sheet out."""
    min_accuracy: float = Field(0.0, ge=0, le=1)
    """Gate: accuracy on the reported rows; below it the command exits with 4."""

    @model_validator(mode="after")
    def _possible(self) -> VerifierTrainConfig:
        if self.lora is not None and self.train_layers is not None:
            raise ValueError("lora and train_layers exclude each other: adapters sit in every layer")
        if self.train_layers == 0 and self.head != "probe":
            raise ValueError("train_layers=0 without head=probe would train nothing")
        return self

    def spec(self) -> LabelSpec:
        """The verifier to be, before its temperature is known."""
        spec = preset(self.task)
        if self.instruction == "short":
            spec.template, spec.strict_template = SHORT_TEMPLATES[self.task]
        for key in ("max_length", "reading", "use_harmful", "min_probability"):
            setattr(spec, key, getattr(self, key))
        return spec


class VerifierTrainStage(Stage):
    name = "verifier train"
    version = 7  # 6: measured with unrounded positions; 7: accuracy's interval by prompt, warm-up begins above 0
    summary = "Train a verifier that labels replies: safety, value, knowledge or helpfulness."
    Config = VerifierTrainConfig
    inputs = {
        "model": Slot(("model",), "the backbone, an instruct model"),
        "data": Slot(("dataset",), "rows with meta.label that end in the reply, such as starter:verifier"),
    }
    output = "verifier"

    def plan(self, config: VerifierTrainConfig, inputs: Inputs) -> Plan:
        model, data = inputs.one("model"), inputs.one("data")
        plan = Plan(name=f"{model.name}-{config.task}")
        spec = config.spec()
        try:
            items, missing = labelled_rows(data.rows(), spec, config.tolerated_missing_labels)
            parts = take_apart(items, missing, config.eval_fraction, config.seed)
            layers = json.loads((model.path / "config.json").read_text()).get("num_hidden_layers")
            check_layers(layers, config.keep_layers, config.train_layers)
        except SafeworkError as refusal:
            plan.refusals.append(refusal)
            return plan
        if config.cut_short_share and not REFUSALS & set(spec.labels):
            plan.refuse(f"cut_short_share={config.cut_short_share:g}: a {config.task} judge has no label for refusals", "", "leave it out")
        _estimate(plan, config, spec, parts, parameter_count(model.path), layers)
        plan.lines = [
            f"train {model.ref} to label {config.task} on {data.ref}: {len(parts.train)} rows",
            f"hold out {len(parts.calibration)} rows to fit the temperature and {len(parts.report)} to report on, split by prompt",
            *(f"{name}: " + ", ".join(f"{label} {n}" for label, n in counts.items()) for name, counts in parts.counts(spec).items()),
        ]
        if missing:
            plan.lines.append(f"{missing} rows without label or reply are left out")
        return plan

    def run(self, config: VerifierTrainConfig, inputs: Inputs, work: WorkDir) -> Outcome:
        from safework_verifier.train import train

        return train(config, inputs.one("model"), inputs.one("data"), work)


def _estimate(plan: Plan, config: VerifierTrainConfig, spec: LabelSpec, parts: Parts, parameters: int, layers: int | None) -> None:
    """Steps, tokens, memory and disk, roughly: float32 weights, gradients and two Adam moments of what is trained."""
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    epoch_steps = math.ceil(len(parts.train) / per_step)
    plan.optimizer_steps = config.max_steps if config.max_steps > 0 else math.ceil(epoch_steps * config.num_train_epochs)
    characters = [len(spec.template) + len(i.exchange.question) + len(i.exchange.final) for i in parts.train]
    lengths = [min(c / CHARACTERS_PER_TOKEN, config.max_length) for c in characters]
    if config.train_layers == 0:
        plan.optimizer_steps = 0
    passes = plan.optimizer_steps + (epoch_steps if config.head == "probe" else 0)
    plan.tokens = round(sum(lengths) / len(lengths) * per_step * passes)
    kept = parameters
    if layers and config.keep_layers:
        kept = round(parameters * config.keep_layers / layers)
    share = 1.0
    if config.lora:
        share = 0.02
    elif layers and config.train_layers is not None:
        share = config.train_layers / (config.keep_layers or layers)
    plan.memory_bytes = round(4 * parameters + 12 * kept * share) + 2**30
    plan.disk_bytes = round(4 * kept + 2 * (4 * kept + 8 * kept * share))


stage = VerifierTrainStage()
