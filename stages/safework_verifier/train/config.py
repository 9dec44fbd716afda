"""Settings of ``safework verifier train``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from safework_cli.core.errors import nearest
from safework_cli.training.config import Lora, SupervisedConfig
from safework_cli.verifiers.spec import SHORT_TEMPLATES, LabelSpec, preset


class VerifierTrainConfig(SupervisedConfig):
    """Settings of ``safework verifier train``."""

    task: Literal["safety", "refusal", "value", "knowledge", "helpfulness"] = "safety"
    """The label set: its labels, codes and scores. Safety has six classes; refusal has full refusal, partial refusal and
    compliance; value is good or bad; knowledge grades a reply TRUE or FALSE against the gold answer; helpfulness
    is whether a harmless query was answered."""
    scores: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=dict)
    """Label → its score, where it is not to be the preset's. Of safety, SafeWork-R1's reward gives a plain refusal 0.1 and one with a
    warning 1; a judge that only asks whether a reply is safe has {Safe with refusal: 1}."""
    instruction: Literal["definitions", "short"] = "definitions"
    """The judge's instruction: a definition of every class, or one line. "short" costs a third of the tokens and suits backbones that learn
    the classes from examples."""
    learning_rate: float = Field(2e-5, gt=0, le=1)
    """Peak learning rate. (Usable defaults: 2e-5 in full, 2e-4 with LoRA; SafeWork-R1's own are not known.)"""
    per_device_eval_batch_size: int = Field(32, ge=1, le=2**16)
    """Rows per forward pass when judging."""
    max_length: int = Field(1024, ge=32, le=10**7)
    """Tokens of a whole judge prompt, in training and afterwards; a longer reply loses its middle, and such replies are counted."""
    keep_layers: int | None = Field(None, ge=1, le=10_000)
    """Backbone depth: keep the first n layers and drop the rest, for a verifier that costs less in every later step."""
    head: Literal["keep", "probe"] = "keep"
    """The initial output embeddings of the labels: those of the model, or a logistic regression on its features (LP-FT, arXiv 2202.10054).
    "probe" unties the output embedding."""
    probe_l2: float = Field(0.01, ge=0, le=1e6)
    """Weight of the squared norm in that regression."""
    train_layers: int | None = Field(None, ge=0, le=10_000)
    """Train the top n layers and the final norm only; embeddings and lower layers are frozen, and the backward
    pass is that much shorter. 0 trains none: the verifier is the probe."""
    lora: Lora | None = None
    """Train adapters in place of all weights."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the saved weights, and of judging; "auto" is the fastest on this machine. Training keeps float32 weights."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    class_weights: Literal["balanced", "sqrt", "none"] = "sqrt"
    """Weight of a class's rows in the loss: inversely to its count, to the square root of its count, or not at all."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target spread evenly over all labels."""
    eval_fraction: float = Field(0.15, gt=0, lt=1)
    """Share of rows held out, whole prompt groups at a time, where the data has no rows of split "test". Half of them fit the
    temperature, the other half is reported."""
    calibrate_on: Literal["held_out", "train"] = "held_out"
    """Where the data has rows of split "test": fit the temperature on half of them and report the other half, or ("train") fit it on
    `eval_fraction` of the other rows and report all of them."""
    tolerated_missing_labels: float = Field(0.0, ge=0, le=1)
    """Share of rows that may lack a label or a reply; they are left out and counted."""
    reading: Literal["hard", "soft"] = "hard"
    """The verifier's score: that of the most probable label, or the expected one."""
    use_harmful: bool = False
    """Where a prompt is known to be harmful or not, let only labels possible for it compete."""
    read_image_text: bool = False
    """Show the judge the text in a prompt's images, after the prompt's words (extra `ocr`): a judge of text alone then judges them too."""
    strict_harmful: bool = False
    """Of a safety verifier with `use_harmful`: a reply to a harmful prompt is never "Safe without risk". It declines, warns, is unsafe or
    makes no sense. Without it a small verifier takes a naive reply to a harmful prompt for help with a harmless one."""
    min_probability: float = Field(0.0, ge=0, lt=1)
    """Label probability below which a verdict is an error: the verifier abstains."""
    attacked_share: float = Field(0.0, ge=0, le=1)
    """Attacked copies of training rows to add, as a share of the rows; worded differently from the card's attack sheet."""
    cut_short_share: float = Field(0.0, ge=0, le=1)
    """Of the refusals whose first sentence already refuses: the share to add once more as only that sentence. Some models refuse in one
    sentence, others in paragraphs; a verifier trained on one kind calls the other compliance."""
    attack_rows: int = Field(50, ge=0, le=10**6)
    """Held-out rows for each attack of the card's sheet; 0 leaves the sheet out."""
    min_accuracy: float = Field(0.0, ge=0, le=1)
    """Gate: accuracy on the reported rows; below it the command exits with 4."""

    @model_validator(mode="after")
    def _possible(self) -> VerifierTrainConfig:
        labels = preset(self.task).labels
        for label in self.scores:
            if label not in labels:
                raise ValueError(f"scores names '{label}', which is not a label of {self.task}{nearest(label, labels)}")
        if self.lora is not None and self.train_layers is not None:
            raise ValueError("lora and train_layers exclude each other: adapters sit in every layer")
        if self.lora is not None and self.lora.keep == "adapter" and (self.keep_layers is not None or self.head == "probe"):
            changed = "keep_layers" if self.keep_layers is not None else "head=probe"
            raise ValueError(f"lora.keep=adapter with {changed}: the base itself is changed, which an adapter cannot say; lora.keep=merged")
        if self.strict_harmful and (self.task != "safety" or not self.use_harmful):
            raise ValueError("strict_harmful needs task=safety and use_harmful=true")
        if self.train_layers == 0 and self.head != "probe":
            raise ValueError("train_layers=0 without head=probe would train nothing")
        return self

    def without_effect(self) -> list[str]:
        unread = "probe_l2" in self.model_fields_set and self.head != "probe"
        return super().without_effect() + (["probe_l2 is read with head=probe only"] if unread else [])

    def spec(self) -> LabelSpec:
        """The verifier's specification, before its temperature is known."""
        spec = preset(self.task)
        if self.instruction == "short":
            spec.template, spec.strict_template = SHORT_TEMPLATES[self.task]
        for key in ("max_length", "reading", "use_harmful", "read_image_text", "min_probability"):
            setattr(spec, key, getattr(self, key))
        spec.scores = spec.scores | self.scores
        if self.strict_harmful:
            spec.possible = spec.possible | {"Safe without risk": [False]}
        return spec
