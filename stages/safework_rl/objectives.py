"""The three objectives: what a completion earns, and what advantage that gives it in its group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from safework_cli.episode.runner import Transcript
from safework_cli.rows import Row
from safework_cli.verifiers.contract import Exchange, Verdict, Verifier
from safework_rl.advantages import Weighting, canon, ddca, group_mean, keep_mixed_groups
from safework_rl.lagrange import Multiplier
from safework_rl.rewards import Scored, TaskRewards


class Objective(Protocol):
    """What distinguishes the stages for the one trainer."""

    def score(self, rows: Sequence[Row], replies: Sequence[str], transcripts: Sequence[Transcript] | None) -> Scored:
        """Judges the completions of this process."""
        ...

    def advantages(self, reward_NG: torch.Tensor, length_NG: torch.Tensor, correct_NG: torch.Tensor) -> torch.Tensor:
        """Advantages of all groups of the step, (N, G)."""
        ...

    def finish_step(self) -> dict[str, float]:
        """Called once a step, with its rewards given: moves what moves between steps, and returns the objective's own numbers."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep."""
        ...

    def load_state(self, state: dict[str, Any]) -> None: ...


class _Stateless:
    """For objectives that remember nothing between steps."""

    def finish_step(self) -> dict[str, float]:
        return {}

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None: ...


class M3Objective(_Stateless):
    """Multimodal, multitask, multiobjective: the group-mean advantage of the routed reward."""

    def __init__(self, rewards: TaskRewards, weighting: Weighting, filter_groups: bool):
        self._rewards, self._weighting, self._filter = rewards, weighting, filter_groups

    def score(self, rows: Sequence[Row], replies: Sequence[str], transcripts: Sequence[Transcript] | None) -> Scored:
        return self._rewards.score(rows, replies)

    def advantages(self, reward_NG: torch.Tensor, length_NG: torch.Tensor, correct_NG: torch.Tensor) -> torch.Tensor:
        advantage_NG = group_mean(reward_NG, self._weighting)
        return keep_mixed_groups(advantage_NG, correct_NG) if self._filter else advantage_NG


class EfficientObjective(_Stateless):
    """Safe and efficient: the conditional length advantage (a stand-in for CALE; see ``advantages``)."""

    def __init__(self, rewards: TaskRewards, form: str, *, mu: float, alpha: float, beta: float):
        self._rewards, self._form, self._mu, self._alpha, self._beta = rewards, form, mu, alpha, beta

    def score(self, rows: Sequence[Row], replies: Sequence[str], transcripts: Sequence[Transcript] | None) -> Scored:
        return self._rewards.score(rows, replies)

    def advantages(self, reward_NG: torch.Tensor, length_NG: torch.Tensor, correct_NG: torch.Tensor) -> torch.Tensor:
        if self._form == "canon":
            return canon(reward_NG, length_NG, correct_NG, mu=self._mu, alpha=self._alpha)
        return ddca(reward_NG, length_NG, correct_NG, beta=self._beta)


class SearchObjective:
    """Deliberative search: right answers under a constraint on reliability (`docs/safeladder.md` 6).

        R = R_format·(0.1·R_format + 0.9·R_acc + λ·R_reliab)
        R_reliab = 1 if (right and confidence ≥ ζ) or (wrong and confidence < ζ) else 0

    λ is updated once a step from the batch's mean R_reliab; a transcript out of format is not reliable.
    """

    def __init__(self, judge: Verifier, multiplier: Multiplier, certain: int, weighting: Weighting, threshold: float):
        self._judge, self.multiplier, self._certain, self._weighting, self._threshold = judge, multiplier, certain, weighting, threshold
        self._last: dict[str, float] = {}

    def score(self, rows: Sequence[Row], replies: Sequence[str], transcripts: Sequence[Transcript] | None) -> Scored:
        assert transcripts is not None
        exchanges = [Exchange(row.prompt, t.answer or "", row.answer, meta=row.meta) for row, t in zip(rows, transcripts, strict=True)]
        verdicts = self._judge.judge(exchanges)
        rewards, correct, named, reliable = [], [], [], []
        quadrants = {"true_certain": 0, "false_certain": 0, "true_uncertain": 0, "false_uncertain": 0}
        for transcript, verdict in zip(transcripts, verdicts, strict=True):
            right = verdict.score is not None and verdict.score >= self._threshold and transcript.answer is not None
            certain = (transcript.confidence or 0) >= self._certain
            in_format = transcript.well_formed
            is_reliable = in_format and right == certain
            if transcript.ending == "answered":
                quadrants[f"{'true' if right else 'false'}_{'certain' if certain else 'uncertain'}"] += 1
            reward = in_format * (0.1 + 0.9 * right + self.multiplier.value * is_reliable)
            rewards.append(math.nan if verdict.score is None else float(reward))
            correct.append(right and in_format)
            reliable.append(float(is_reliable))
            named.append({
                "correctness": verdict,
                "format": Verdict(float(in_format), label=transcript.ending),
                "reliability": Verdict(float(is_reliable), label=f"confidence {transcript.confidence}"),
            })  # fmt: skip
        count = len(transcripts)
        self._last = {f"search/{name}": number / count for name, number in quadrants.items()}
        self._last |= {
            "search/reliability": sum(reliable) / count,
            "search/searches": sum(t.searches for t in transcripts) / count,
            "search/reads": sum(t.reads for t in transcripts) / count,
            "search/malformed": sum(t.malformed for t in transcripts) / count,
            "search/unanswered": sum(t.ending != "answered" for t in transcripts) / count,
        }
        return Scored(rewards, correct, named)

    def advantages(self, reward_NG: torch.Tensor, length_NG: torch.Tensor, correct_NG: torch.Tensor) -> torch.Tensor:
        return group_mean(reward_NG, self._weighting)

    def finish_step(self) -> dict[str, float]:
        """Moves λ."""
        self.multiplier.update(self._last["search/reliability"])
        assert self.multiplier.mean is not None
        return self._last | {
            "search/lambda": self.multiplier.value,
            "search/reliability_ema": self.multiplier.mean,
            "search/threshold": self.multiplier.threshold,
        }

    def state(self) -> dict[str, Any]:
        return {"multiplier": self.multiplier.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.multiplier = Multiplier(**state["multiplier"])
