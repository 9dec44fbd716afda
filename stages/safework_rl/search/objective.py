"""The objective of deliberative search: right answers under a constraint on reliability."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from safework_cli.data.row import Row
from safework_cli.environments.search.runner import Transcript
from safework_cli.verifiers.contract import Exchange, Verdict, Verifier, judged
from safework_cli.verifiers.rules import rule_verifier
from safework_rl.lagrange import Multiplier
from safework_rl.losses.contract import Weighting
from safework_rl.objectives import Scored, TaskRewards, group_mean
from safework_rl.search.config import SearchConfig


class SearchObjective:
    """Deliberative search: right answers under a constraint on reliability (`docs/safeladder.md` 6).

        R = R_format·(0.1·R_format + 0.9·R_acc + λ·R_reliab)
        R_reliab = 1 if (right and confidence ≥ ζ) or (wrong and confidence < ζ) else 0

    λ is updated once a rollout from its mean R_reliab; a transcript out of format is not reliable. "std" divides by the deviation of
    being right, and not by that of R: where every answer of a group is right, or none is, R varies by λ·R_reliab only, and its own
    deviation would divide λ away.
    """

    def __init__(self, judge: Verifier, multiplier: Multiplier, certain: int, weighting: Weighting, threshold: float):
        self._judge, self.multiplier, self._certain, self._weighting, self._threshold = judge, multiplier, certain, weighting, threshold
        self._last: dict[str, float] = {}

    def score(self, rows: Sequence[Row], replies: Sequence[str], transcripts: Sequence[Transcript] | None) -> Scored:
        assert transcripts is not None
        exchanges = [Exchange(row.prompt, t.answer or "", row.answer, meta=row.meta) for row, t in zip(rows, transcripts, strict=True)]
        verdicts = judged(self._judge, exchanges)
        rewards: list[float] = []
        correct: list[bool | None] = []
        named: list[dict[str, Verdict]] = []
        reliable: list[float] = []
        quadrants = {"true_certain": 0, "false_certain": 0, "true_uncertain": 0, "false_uncertain": 0}
        for transcript, verdict in zip(transcripts, verdicts, strict=True):
            right = verdict.score is not None and verdict.score >= self._threshold and transcript.answer is not None
            certain = (transcript.confidence or 0) >= self._certain
            in_format = transcript.well_formed
            is_reliable = in_format and right == certain
            if verdict.score is not None and transcript.ending == "answered":
                quadrants[f"{'true' if right else 'false'}_{'certain' if certain else 'uncertain'}"] += 1
            reward = in_format * (0.1 + 0.9 * right + self.multiplier.value * is_reliable)
            rewards.append(math.nan if verdict.score is None else float(reward))
            correct.append(None if verdict.score is None else right and in_format)
            reliable += [float(is_reliable)] if verdict.score is not None else []
            named.append({
                "correctness": verdict,
                "format": Verdict(float(in_format), label=transcript.ending),
                "reliability": Verdict(float(is_reliable), label=f"confidence {transcript.confidence}"),
            })  # fmt: skip
        count, scored = len(transcripts), max(1, len(reliable))
        self._last = {f"search/{name}": number / scored for name, number in quadrants.items()}
        self._last |= {
            "search/reliability": sum(reliable) / scored if reliable else math.nan,
            "search/searches": sum(t.searches for t in transcripts) / count,
            "search/reads": sum(t.reads for t in transcripts) / count,
            "search/malformed": sum(t.malformed for t in transcripts) / count,
            "search/unanswered": sum(t.ending != "answered" for t in transcripts) / count,
        }
        return Scored(rewards, correct, named)

    def deciding(self, task: str) -> str:
        return "correctness"

    def try_answers(self, rows: Sequence[Row], answers: Sequence[str]) -> Scored:
        pairs = zip(rows, answers, strict=True)
        transcripts = [Transcript([], row.prompt, answer=answer, confidence=10, ending="answered") for row, answer in pairs]
        return self.score(rows, list(answers), transcripts)

    def wanted(self, correct_NG: torch.Tensor, length_NG: torch.Tensor) -> torch.Tensor:
        """All: where every answer is right, their confidence still is or is not."""
        return torch.ones(len(correct_NG), dtype=torch.bool, device=correct_NG.device)

    def advantages(self, reward_NG: torch.Tensor, length_NG: torch.Tensor, correct_NG: torch.Tensor) -> torch.Tensor:
        return group_mean(reward_NG, self._weighting, spread_NG=correct_NG)

    def finish_step(self) -> dict[str, float]:
        """Moves λ."""
        self.multiplier.update(self._last["search/reliability"])
        return self._last | {
            "search/lambda": self.multiplier.value,
            # None until a reply could be scored
            "search/reliability_ema": math.nan if self.multiplier.mean is None else self.multiplier.mean,
            "search/threshold": self.multiplier.threshold,
            "search/lambda_pinned": float(self.multiplier.pinned),
        }

    def state(self) -> dict[str, Any]:
        return {"multiplier": self.multiplier.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """λ and its average; threshold, step and bounds stay those of this run's settings."""
        kept = state["multiplier"]
        self.multiplier.value = min(self.multiplier.high, max(self.multiplier.low, kept["value"]))
        self.multiplier.mean = kept["mean"]


def search(config: SearchConfig, rewards: TaskRewards | None = None) -> SearchObjective:
    """The objective of ``rl search``; an episode has a reward of its own."""
    r = config.reliability
    multiplier = Multiplier(r.multiplier, r.threshold, r.step, r.low, r.high, r.decay)
    return SearchObjective(rule_verifier("correctness"), multiplier, r.certain, config.weighting, config.correct_threshold)
