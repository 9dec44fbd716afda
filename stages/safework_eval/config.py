"""Settings of ``safework eval``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from safework_cli.core.registry import entries
from safework_cli.core.settings import Temperature, cosmetic, verdict
from safework_cli.engines.settings import WithEngine
from safework_eval.gates import Gate
from safework_eval.searching import EpisodeSettings
from safework_eval.selection import JudgeChoice, SuiteBlock

SUMMARY = "summary.json"

SAMPLES = "samples.parquet"

AGAINST = "against"
"""Folder of the payload that holds the base's record where it was evaluated in the same run."""

MOST_SHARDS = 1000

Condition = Literal[
    "metric", "digest", "judge", "suites", "max_tokens", "temperature", "top_p", "seed", "template_hash", "engine", "index", "episode"
]  # fmt: skip


def share_of(text: str) -> tuple[int, int]:
    """The numbers of a share, such as "2/8"."""
    number, _, count = text.partition("/")
    return int(number), int(count)


class EvalConfig(WithEngine):
    """Settings of ``safework eval``."""

    suites: list[SuiteBlock] = Field(default_factory=list)
    """What is measured: `{name: harmful, rows: {task: safety, harmful: true}, limit: 40}` takes rows of the `data` input,
    `{suite: harmbench-test, limit: 100}` reads a public set from
    `suites_folder`, and so does a bare name, as in `[xstest, harmbench-test]`."""

    @field_validator("suites", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """A bare name is a public set, or all sets whose names begin with it: "xstest" is xstest-safe and xstest-unsafe."""
        if not isinstance(value, list):
            return value
        blocks: list[Any] = []
        for block in value:
            if not isinstance(block, str):
                blocks.append(block)
                continue
            names = entries("safework.suites")
            family = [name for name in names if name.startswith(f"{block}-")] if block not in names else []
            blocks += [{"suite": name} for name in family or [block]]
        return blocks

    limit: int | None = Field(None, ge=1, le=10**9)
    """Rows of every suite at most, in addition to the suites' own limits; none: no further limit."""
    suites_folder: str | None = cosmetic(None)
    """The folder that holds the public sets, one folder each; $SAFEWORK_DATA where it is not given. The rows that are read from it, and not
    the folder's name, are part of what is asked for."""
    judge: JudgeChoice = "auto"
    """Who decides: "rule" (refusal phrases, gold answers), "rule:NAME" or "rule:NAME{parameter: value}" (that rule), "verifier"
    (`verifiers.<metric>`; for safety and over-refusal `verifiers.judge`, else `verifiers.safety`), or "auto": that verifier for safety
    where one is given, gold answers where rows have them. All verdicts are kept where several exist."""
    require_independent: bool = cosmetic(False)
    """Refuse `verifiers.judge` where the model's training used it, or a verifier that was trained on the same prompts, or where lineage
    does not say. Without it the table, the summary and the manifest carry a warning."""
    max_tokens: int = Field(512, ge=1, le=10**6)
    """Tokens of a reply at most; a reply cut there counts as truncated."""
    temperature: Temperature = 0.0
    """0 is greedy; above it tokens are sampled, each reply by a seed derived from `seed`, its sample and its prompt."""
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    """Nucleus mass, where tokens are sampled."""
    batch_size: int = Field(16, ge=1, le=2**16)
    """Replies generated together, and exchanges judged together."""
    episode: EpisodeSettings = EpisodeSettings()
    """How search suites are answered."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number type of the weights; "auto" is bfloat16 where the hardware multiplies in it, float32 elsewhere."""
    trust_remote_code: bool = False
    """Run Python code that the models' folders bring along."""
    gates: list[Gate] = verdict(default_factory=list)
    """What must hold: `{metric: harmful.safety, min: 0.5}`, `{metric: capability, change_min: -0.02}`. The artifact is made either way;
    a gate that does not hold makes the command exit with 4. Other gates are applied to a finished evaluation without asking again."""
    max_failed: float = verdict(0.0, ge=0.0, le=1.0)
    """Share of samples that may be unscorable before the command exits with 5: of all, and, rounded up, of each suite. A sample is
    unscorable if the suite's judge, another given judge or a further metric could not score it; a suite without any score always makes
    the command exit with 5. Like the gates, applied to a finished evaluation."""
    shard: str | None = cosmetic(None)
    """Ask for one share of the replies, such as 2/8: every eighth batch, from the second. It makes generations, which the same command
    with shards.1=REF … shards.8=REF judges and sums up as one evaluation. (slurm.shards=8 does both.)"""
    allow_differences: list[Condition] = Field(default_factory=list)
    """Conditions in which an `against` evaluation may differ from this one. None by default: other differences are refused."""

    @field_validator("shard")
    @classmethod
    def _one_of_several(cls, value: str | None) -> str | None:
        if value is not None:
            number, _, count = value.partition("/")
            if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count) <= MOST_SHARDS):
                raise ValueError(f"'{value}' is not a share: 2/8 is the second of eight (at most {MOST_SHARDS})")
        return value

    @property
    def share(self) -> tuple[int, int]:
        """Which share of the batches is asked for, from 1, and of how many."""
        return share_of(self.shard or "1/1")

    def without_effect(self) -> list[str]:
        given = "dtype" in self.model_fields_set and self.engine.endpoint
        return ["dtype does not act on a served model: its server has its own"] if given else []

    def limited_suites(self) -> list[SuiteBlock]:
        """The suites, each with the smaller of its own limit and ``limit``."""
        if self.limit is None:
            return self.suites
        return [block.model_copy(update={"limit": min(block.limit or self.limit, self.limit)}) for block in self.suites]
