"""Judge replies with verifiers: of a dataset, of generations, or of a JSONL, CSV or Parquet file.

Takes verifiers (or rules) and replies; makes a table of verdicts. Refuses: nothing to judge, nobody to judge it, a file without prompts or
replies. What a verifier cannot score is counted, and never 0 or 1.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from safework_cli.artifacts.manifest import sha256_of
from safework_cli.artifacts.references import artifact_name
from safework_cli.errors import InputError
from safework_cli.paths import user_path
from safework_cli.stage import Inputs, Outcome, Plan, Slot, Stage, StageConfig, WorkDir, cosmetic
from safework_cli.suites.tables import format_of
from safework_cli.verifiers.rules.registry import RuleText, rule_digests


class ScoreConfig(StageConfig):
    """Settings of ``safework verifier score``."""

    file: str | None = None
    """A JSONL, CSV or Parquet file in place of `data`. Columns: `reply`, and `prompt` (text) or `messages` (a list of role and content);
    `id`, `answer` (the gold answer), `harmful` and `meta` where it has them."""
    rules: list[RuleText] = Field(default_factory=list)
    """Rule verifiers that judge as well: refusal, format, correctness, …; with parameters as in "math{time_limit_seconds: 20}"."""
    limit: int | None = Field(None, ge=1, le=10**9)
    """How many replies are judged, from the first; default all."""
    max_failed: float = Field(0.05, ge=0, le=1)
    """Share of verdicts that may be missing before the command exits with 5."""
    trust_remote_code: bool = False
    """Run Python code that the models' folders bring along."""
    chunk_rows: int = cosmetic(512, ge=1, le=2**20)
    """Replies judged between two writes; finished ones survive a kill."""
    batch_size: int = cosmetic(32, ge=1, le=2**16)
    """Replies in a forward pass."""


class ScoreStage(Stage):
    name = "verifier score"
    summary = "Judge replies with verifiers: of a dataset, of generations, or of a JSONL, CSV or Parquet file."
    Config = ScoreConfig
    inputs = {
        "data": Slot(("dataset", "generations"), "rows that end in a reply, or generations", optional=True),
        "verifiers": Slot(("verifier",), "who judges, by name, such as verifiers.safety", optional=True, many=True),
    }
    output = "generations"

    def plan(self, config: ScoreConfig, inputs: Inputs) -> Plan:
        data, judges = inputs.maybe("data"), [*inputs.many("verifiers"), *(f"rule:{name}" for name in config.rules)]
        plan = Plan(name=f"{data.name if data else artifact_name(Path(config.file or 'nothing').stem, 'replies')}-scored")
        if (data is None) == (config.file is None):
            plan.refuse("give either data=REF or file=PATH", "one of them is what is judged", "data=generations/NAME or file=replies.jsonl")
        if not judges:
            plan.refuse("nobody is to judge", "no verifier and no rule was given", "verifiers.safety=REF, or 'rules=[refusal]'")
        if config.file is not None:
            path = user_path(config.file)
            if path.is_file():
                format_of(path)
            else:
                plan.refuse(f"there is no file {path}", "", f"ls {path.parent}", kind=InputError)
        plan.lines = [f"judge {data.ref if data else config.file} by {', '.join(judges)}"]
        return plan

    def run(self, config: ScoreConfig, inputs: Inputs, work: WorkDir) -> Outcome:
        from safework_verifier.score import score

        return score(config, inputs, work)

    def external_digests(self, config: ScoreConfig) -> dict[str, str]:
        """The file's content, and what the rules rest on."""
        path = user_path(config.file) if config.file else None
        return rule_digests(config.rules) | ({"file": sha256_of(path)} if path and path.is_file() else {})


stage = ScoreStage()
