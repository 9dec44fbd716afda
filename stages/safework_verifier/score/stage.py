"""Judge replies with verifiers: of a dataset, of generations, or of a JSONL, CSV or Parquet file.

Takes verifiers (or rules) and replies; makes a table of verdicts. Refuses a run without replies, without a verifier or rule, and a file
without prompts or replies. A reply that a verifier cannot score is counted as failed; it never gets 0 or 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safework_cli.core.artifacts.manifest import sha256_of
from safework_cli.core.artifacts.references import artifact_name
from safework_cli.core.errors import InputError
from safework_cli.core.paths import user_path
from safework_cli.core.stage import Inputs, Outcome, Plan, Slot, Stage, WorkDir
from safework_cli.data.suites.tables import format_of
from safework_cli.verifiers.rules.registry import rule_digests
from safework_verifier.score.config import ScoreConfig

if TYPE_CHECKING:
    from rich.console import RenderableType

    from safework_cli.core.artifacts import Artifact


class ScoreStage(Stage):
    name = "verifier score"
    summary = "Judge replies with verifiers: of a dataset, of generations, or of a JSONL, CSV or Parquet file."
    Config = ScoreConfig
    inputs = {
        "data": Slot(("dataset", "generations"), "rows that end in a reply, or generations", optional=True),
        "verifiers": Slot(("verifier",), "verifiers by name, such as verifiers.safety", optional=True, many=True),
    }
    output = "generations"

    def plan(self, config: ScoreConfig, inputs: Inputs) -> Plan:
        data, judges = inputs.maybe("data"), [*inputs.many("verifiers"), *(f"rule:{name}" for name in config.rules)]
        plan = Plan(name=f"{data.name if data else artifact_name(Path(config.file or 'nothing').stem, 'replies')}-scored")
        if (data is None) == (config.file is None):
            plan.refuse("give either data=REF or file=PATH", "one of them has the replies", "data=generations/NAME or file=replies.jsonl")
        if not judges:
            plan.refuse("no verifier or rule given", "nothing would be judged", "verifiers.safety=REF, or 'rules=[refusal]'")
        if config.file is not None:
            path = user_path(config.file)
            if path.is_file():
                format_of(path)
            else:
                plan.refuse(f"{path} does not exist", "", f"ls {path.parent}", kind=InputError)
        plan.lines = [f"judge {data.ref if data else config.file} by {', '.join(judges)}"]
        return plan

    def show(self, artifact: Artifact) -> RenderableType:
        from safework_verifier.table import scores_table

        return scores_table(artifact)

    def run(self, config: ScoreConfig, inputs: Inputs, work: WorkDir) -> Outcome:
        from safework_verifier.score.run import score

        return score(config, inputs, work)

    def external_digests(self, config: ScoreConfig) -> dict[str, str]:
        """The file's content, and the rules' versions, parameters and libraries."""
        path = user_path(config.file) if config.file else None
        return rule_digests(config.rules) | ({"file": sha256_of(path)} if path and path.is_file() else {})


stage = ScoreStage()
