"""Settings of ``safework verifier wrap``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationError

from safework_cli.core.errors import ConfigError
from safework_cli.core.settings import Settings, cosmetic, verdict
from safework_cli.engines.settings import WithEngine
from safework_cli.verifiers.spec import LabelSpec, preset


class LabelSettings(Settings):
    """One label of the judge."""

    code: str
    """The judge's word for it."""
    score: float = Field(ge=0, le=1)
    """Its reward."""
    harmful: list[bool] = Field(default_factory=lambda: [True, False])
    """The prompts for which it can be right: harmful (true), harmless (false), or both."""


class WrapConfig(WithEngine):
    """Settings of ``safework verifier wrap``; settings that are not given come from the preset of the task."""

    task: Literal["safety", "refusal", "value", "knowledge", "helpfulness", "warned"] = "safety"
    """The preset that the other settings start from."""
    labels: dict[str, LabelSettings] | None = None
    """Label → its code, score and prompts, in the judge's order; default: the preset's."""
    empty_label: str | None = None
    """The label of an empty reply, given without asking the judge."""
    code_reading: Literal["first", "whole"] = "first"
    """Read the first token of a code, or the whole code where codes begin alike ("Safe with refusal", "Safe with warning")."""
    system: str | None = None
    """The system message; empty for none."""
    template: str | None = None
    """The user message, with `{query}`, `{response}` and, for graders, `{reference}`."""
    strict_template: str | None = None
    """The user message for attacks that hide their query, with `{response}` only; empty for none."""
    max_length: int = Field(4096, ge=32, le=10**7)
    """Tokens of a whole judge prompt; a longer reply loses its middle, and such replies are counted."""
    reading: Literal["hard", "soft"] = "hard"
    """The verifier's score: that of the most probable label, or the expected one."""
    use_harmful: bool = False
    """Where a prompt is known to be harmful or not, let only labels possible for it compete."""
    read_image_text: bool = False
    """Show the judge the text in a prompt's images, after the prompt's words (extra `ocr`): a judge of text alone then judges them too."""
    min_probability: float = Field(0.0, ge=0, lt=1)
    """Label probability below which a verdict is an error."""
    answer_tokens: int = Field(1024, ge=1, le=1_000_000)
    """Tokens that a served judge can write; a judge that reasons needs some for its thought."""
    attack_rows: int = Field(50, ge=0, le=10**6)
    """With data: rows that each attack of the card's sheet is tried on."""
    eval_fraction: float = Field(0.5, gt=0, lt=1)
    """With data: share of the prompt groups that is used, half to fit the temperature and half to report."""
    tolerated_missing_labels: float = Field(0.0, ge=0, le=1)
    """Share of rows that may lack a label or a reply."""
    min_accuracy: float = Field(0.0, ge=0, le=1)
    """Gate: accuracy on the reported rows; below it the command exits with 4."""
    max_failed: float = verdict(0.05, ge=0, le=1)
    """Share of the measured rows that a served judge may give no label; with more the command exits with 5, and with 4 where
    `min_accuracy` is given. It is also applied to a judge that was measured before."""
    trust_remote_code: bool = False
    """Run Python code from the model's folder."""
    per_device_eval_batch_size: int = cosmetic(16, ge=1, le=2**16)
    """Rows per forward pass."""

    def without_effect(self) -> list[str]:
        given = [name for name in ("attack_rows", "code_reading") if name in self.model_fields_set and self.engine.endpoint]
        return [f"{name} is not read with engine.kind=openai: of a served judge only its labels are read and measured" for name in given]

    def spec(self) -> LabelSpec:
        """The verifier's specification. Raises ConfigError where its parts are inconsistent."""
        base = preset(self.task).model_dump()
        if (labels := self.labels) is not None:
            if self.template is None:
                why = "the preset's message names the preset's labels, not yours"
                raise ConfigError("labels are given without a template", why, "template: …{query}…{response}… with their codes")
            base |= {
                "labels": list(labels),
                "codes": [label.code for label in labels.values()],
                "scores": {name: label.score for name, label in labels.items()},
                "possible": {name: label.harmful for name, label in labels.items()},
            }
            base["empty_label"] = self.empty_label or min(labels, key=lambda name: labels[name].score)
        given = ("empty_label", "system", "template", "strict_template")
        base |= {name: value for name in given if (value := getattr(self, name)) is not None}
        kept = ("code_reading", "max_length", "reading", "use_harmful", "read_image_text", "min_probability", "answer_tokens")
        base |= {name: getattr(self, name) for name in kept}
        endpoint = self.engine.endpoint
        base["endpoint"] = endpoint.model_dump() if endpoint else None
        try:
            return LabelSpec.model_validate(base)
        except ValidationError as error:
            raise ConfigError("the judge's settings are inconsistent", error.errors()[0]["msg"], "fix the recipe") from None
