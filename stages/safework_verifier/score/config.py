"""Settings of ``safework verifier score``."""

from __future__ import annotations

from pydantic import Field

from safework_cli.core.settings import StageConfig, cosmetic
from safework_cli.verifiers.rules.registry import RuleText


class ScoreConfig(StageConfig):
    """Settings of ``safework verifier score``."""

    file: str | None = None
    """A JSONL, CSV or Parquet file in place of `data`. Columns: `reply`, and `prompt` (text) or `messages` (a list of role and content);
    optional: `id`, `answer` (the gold answer), `harmful` and `meta`."""
    rules: list[RuleText] = Field(default_factory=list)
    """Rules that judge, in addition to verifiers: refusal, format, correctness, …; with parameters as in "math{time_limit_seconds: 20}"."""
    limit: int | None = Field(None, ge=1, le=10**9)
    """The number of replies to judge, from the first; default all."""
    max_failed: float = Field(0.05, ge=0, le=1)
    """Share of verdicts that may be missing before the command exits with 5."""
    trust_remote_code: bool = False
    """Run Python code from the models' folders."""
    chunk_rows: int = cosmetic(512, ge=1, le=2**20)
    """Replies judged between two writes; finished ones survive a kill."""
    batch_size: int = cosmetic(32, ge=1, le=2**16)
    """Replies in a forward pass."""
