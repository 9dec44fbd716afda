"""Have a teacher write reasoned replies, and keep those that pass: k samples a prompt, verifiers, rejection.

Takes prompts and a teacher (a model, or one behind an endpoint), and verifiers where wanted; makes rows whose replies are
`<think>reasoning</think>answer`. Prompts for which all samples fail are listed by name with their reasons. Refuses: no teacher or two, a
threshold for nobody.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from safework_cli.errors import nearest
from safework_cli.lm.endpoint import EndpointSettings
from safework_cli.stage import Inputs, Outcome, Plan, Slot, Stage, StageConfig, TaskName, Temperature, WorkDir, cosmetic
from safework_cli.verifiers.rules.registry import RuleText, bare_name, rule_digests
from safework_cli.verifiers.spec import LabelSpec, is_value_model
from safework_data.settings import SubsetName

RULES = ("format", "correctness", "refusal", "language")
SYSTEM = (
    "Reason before you answer. Write your reasoning inside <think> and </think>: what is asked, what follows step by step, who could be "
    "hurt, and a check of the result. Then write the answer for the user behind </think>, and nothing else."
)


DEFAULT_SCORE = 0.5


def refusal_score(folder: Path) -> float | None:
    """What a safety judge gives for a refusal of a harmful prompt; None for other verifiers."""
    if is_value_model(folder):
        return None
    return LabelSpec.read(folder).scores.get("Safe with refusal")


class CotConfig(StageConfig):
    """Settings of ``safework data cot``."""

    endpoint: EndpointSettings | None = None
    """Where the teacher is served, in place of `model`."""
    system: str = SYSTEM
    """What the teacher is told; it does not become part of the rows. Empty for a teacher that reasons by itself."""
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


class CotStage(Stage):
    name: ClassVar[str] = "data cot"
    version: ClassVar[int] = 3  # 3: held-out rows are left out, histories are asked; 2: every reply's id is its prompt's with a number
    summary: ClassVar[str] = "Have a teacher write reasoned replies, and keep those that pass: k samples a prompt, verifiers, rejection."
    Config = CotConfig
    inputs: ClassVar[dict[str, Slot]] = {
        "data": Slot(("dataset",), "rows whose prompts are answered, such as NAME:rl"),
        "model": Slot(("model",), "the teacher", optional=True),
        "verifiers": Slot(("verifier",), "verifiers that accept or reject, by name, such as verifiers.safety", optional=True, many=True),
    }
    output: ClassVar[str] = "dataset"

    def plan(self, config: CotConfig, inputs: Inputs) -> Plan:
        data, model, judges = inputs.one("data"), inputs.maybe("model"), inputs.many("verifiers")
        plan = Plan(name=f"{data.name}-cot")
        if (model is None) == (config.endpoint is None):
            plan.refuse(
                "give either model=REF or an endpoint", "one of them is the teacher", "model=NAME, or endpoint.url=… endpoint.model=…"
            )
        for name in config.min_scores:
            if name not in judges:
                plan.refuse(f"min_scores names '{name}'{nearest(name, judges)}", "no such verifier was given", f"add verifiers.{name}=…")
        for name, judge in judges.items():
            threshold = config.min_scores.get(name, DEFAULT_SCORE)
            if "refusal" in map(bare_name, config.rules) and (paid := refusal_score(judge.path)) is not None and paid < threshold:
                plan.refuse(
                    f"no refusal of a harmful prompt could pass '{name}'",
                    f"the rule 'refusal' wants one, and {judge.ref} scores 'Safe with refusal' {paid:g}, below {threshold:g}",
                    f"min_scores.{name}={paid:g}, or leave the rule out: rules=[format, correctness, language]",
                )
        if config.samples > 1 and config.temperature == 0:
            plan.refuse(
                f"samples={config.samples} at temperature 0", "all samples of a prompt would be the same", "samples=1, or temperature=0.8"
            )
        if config.keep > config.samples:
            plan.refuse(f"keep={config.keep} of samples={config.samples}", "more would be kept than sampled", f"samples={config.keep}")
        teacher = model.ref if model else (config.endpoint.model if config.endpoint else "nobody")
        accepted = ", ".join([*config.rules, *(f"{name} ≥ {config.min_scores.get(name, DEFAULT_SCORE):g}" for name in judges)])
        plan.lines = [
            f"ask {teacher} for {config.samples} replies to each prompt of {data.ref}",
            f"keep {config.keep} that pass: {accepted}",
        ]
        return plan

    def external_digests(self, config: CotConfig) -> dict[str, str]:
        """What the rules rest on."""
        return rule_digests(config.rules)

    def run(self, config: CotConfig, inputs: Inputs, work: WorkDir) -> Outcome:
        from safework_data.cot import construct

        return construct(config, inputs, work)


stage = CotStage()
