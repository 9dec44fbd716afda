"""Settings of ``safework data build``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from safework_cli.core.errors import nearest
from safework_cli.core.settings import Settings, StageConfig
from safework_cli.data.suites import SUITES
from safework_data.build.sources_config import Source


class DecontaminateSettings(Settings):
    """Which evaluation sets the training data must not hold, and what counts as holding a prompt."""

    suites: list[str] = Field(default_factory=list)
    """Names of evaluation suites. The dataset's own held-out rows are compared as well (but see `test_model`)."""
    folder: str = "${SAFEWORK_DATA}"
    """The folder of public sets, one folder a set; read only where suites are named."""
    ngram: int = Field(default=8, ge=2, le=1000)
    """Length in words (in characters for Chinese) of the runs that are compared. A shorter prompt counts when a message equals it."""
    overlap: float = Field(default=0.5, gt=0.0, le=1.0)
    """The share of an evaluation prompt's words that a row must hold, in runs of `ngram`, for the row to be dropped."""
    exempt: list[str] = Field(default_factory=list)
    """Names of sources that are not compared with `suites` (still with the held-out rows), such as a verifier's own data."""

    @field_validator("suites")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        for name in value:
            if name not in SUITES:
                raise ValueError(f"unknown suite '{name}'{nearest(name, SUITES)} (suites: {', '.join(sorted(SUITES))})")
        return value


class BuildConfig(StageConfig):
    """Settings of ``data build``."""

    sources: list[Source] = Field(default_factory=list)
    """Where rows come from, in order, before the datasets given as `data.NAME`; of two equal rows the earlier one stays."""
    require_thought: list[str] = Field(default_factory=lambda: ["cot"])
    """Subsets whose replies must be `<think>reasoning</think>answer`, exactly one of each."""
    require_reply: list[str] = Field(default_factory=lambda: ["cot", "verifier", "judge"])
    """Subsets whose rows must end in a reply."""
    require_label: list[str] = Field(default_factory=lambda: ["verifier", "judge"])
    """Subsets whose rows must carry a gold label (meta.label)."""
    check_replies: list[str] = Field(default_factory=lambda: ["cot"])
    """Subsets whose replies are judged by rules: a gold answer must be met, a harmful prompt refused, a harmless one answered (both
    detected by phrases, where the row says which it is)."""
    languages: list[Literal["en", "zh"]] = Field(default_factory=list)
    """Languages to keep, detected by the prompt's script; empty keeps all."""
    max_characters: int = Field(default=24_000, ge=1, le=10**9)
    """Longest conversation, in characters over all its messages."""
    near_duplicate_threshold: float | None = Field(default=0.8, gt=0.0, le=1.0)
    """Jaccard similarity of three-word runs from which two prompts, and their replies, count as the same; null turns the check off."""
    decontaminate: DecontaminateSettings = Field(default_factory=DecontaminateSettings)
    """What is kept out of training data."""
    heldout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of each source's groups that is held out, for sources that are not split already. Held-out rows go to the subset
    `heldout`; of subsets that require labels they stay, as their test split."""
    trust_remote_code: bool = False
    """Run Python code that the folder of `model` brings along (its tokenizer's)."""
    max_dropped: float = Field(default=0.5, ge=0.0, le=1.0)
    """Share of rows, for whatever reason they go, up to which the run counts as a success; above it the exit code is 5."""

    @model_validator(mode="after")
    def _coherent(self) -> BuildConfig:
        if [source.kind for source in self.sources].count("starter") > 1:
            raise ValueError("sources: the starter set is named twice")
        return self
