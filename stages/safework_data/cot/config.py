"""Settings of ``safework data cot``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from safework_cli.core.settings import Temperature, cosmetic
from safework_cli.data.tasks import TaskName
from safework_cli.engines.settings import WithEngine
from safework_cli.verifiers.rules.registry import RuleText
from safework_cli.verifiers.spec import LabelSpec, is_value_model
from safework_data.files import SubsetName

RULES = ("format", "correctness", "refusal", "language")

SYSTEM = (
    "Reason before you answer. Write your reasoning inside <think> and </think>: what is asked, what follows step by step, who could be "
    "hurt, and a check of the result. Then write the answer for the user after </think>, and nothing else."
)

DEFAULT_SCORE = 0.5
LENIENT = "lenient"
"""The rule by which an answer that becomes the thought holds the gold answer."""


def refusal_score(folder: Path) -> float | None:
    """What a safety judge gives for a refusal of a harmful prompt; None for other verifiers."""
    if is_value_model(folder):
        return None
    return LabelSpec.read(folder).scores.get("Safe with refusal")


class CotConfig(WithEngine):
    """Settings of ``safework data cot``."""

    thought: Literal["teacher", "answer"] = "teacher"
    """Where a row's thought comes from. teacher: the teacher writes thought and answer. answer: its whole answer becomes the thought, and
    the gold answer the reply, for a teacher that answers in a sentence, such as the base model on what it knows: rows in its own words
    change it least. The answer must hold the gold one (rule lenient) and say more than it; prompts without a gold answer are left out."""
    system: str | None = None
    """The teacher's system message; it does not become part of the rows. Empty for a teacher that reasons by itself; where null, one that
    asks for a thought, and none with thought=answer."""
    samples: int = Field(4, ge=1, le=4096)
    """Replies sampled for each prompt."""
    keep: int = Field(1, ge=1, le=4096)
    """Accepted replies kept of a prompt: those with the best mean score, the earlier sampled where scores are equal."""
    temperature: Temperature = 0.8
    """Sampling temperature; 0 with several samples would give the same one again."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Nucleus mass."""
    max_tokens: int = Field(1024, ge=1, le=10**6)
    """Tokens of a reply; one that does not end within them is rejected."""
    rules: list[RuleText] = Field(default_factory=lambda: list(RULES))
    """Rules that a reply must pass where they apply: exactly one thought; the gold answer; a refusal for harmful prompts and none for
    harmless ones, where the row says which; the language of the prompt. Others by name, with parameters as in
    "math{time_limit_seconds: 20}"; those that compare answers apply to rows with one."""
    min_scores: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=dict)
    """Verifier → score from which a reply is accepted; 0.5 where not given."""
    tasks: list[TaskName] = Field(default_factory=list)
    """Only prompts of these tasks; all where empty."""
    sources: list[str] = Field(default_factory=list)
    """Only prompts of these sources, as rows name them; all where empty."""
    limit: int | None = Field(None, ge=1, le=10**9)
    """Prompts at most, the first of the data; all where not given."""
    max_rows: int | None = Field(None, ge=1, le=10**9)
    """Rows at most: of more, a sample is drawn that keeps the tasks' shares and spreads the cognitive operations evenly within each."""
    subset: SubsetName = "cot"
    """The subset that the rows go to."""
    max_failed: float = Field(0.5, ge=0, le=1)
    """Share of prompts for which every sample may fail before the command exits with 5."""
    trust_remote_code: bool = False
    """Run Python code that the model's folder brings along."""
    chunk_prompts: int = Field(8, ge=1, le=2**16)
    """Prompts sampled together; finished ones survive a kill."""
    generation_batch_size: int = cosmetic(32, ge=1, le=2**16)
    """Sequences sampled together, for a model of one's own."""

    @property
    def instruction(self) -> str:
        """The system message that the teacher gets."""
        if self.system is not None:
            return self.system
        return SYSTEM if self.thought == "teacher" else ""
