"""The three objectives: what a completion earns, and what advantage that gives it in its group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from safework_cli.data.reply import make_reply
from safework_cli.data.row import Row
from safework_cli.environments.search.runner import Transcript
from safework_cli.verifiers.contract import Exchange, Verdict, Verifier, judged
from safework_rl.advantages import canon, ddca, group_mean, mixed_groups
from safework_rl.config import Weighting
from safework_rl.lagrange import Multiplier
from safework_rl.rewards import Scored, TaskRewards


class Objective(Protocol):
    """What distinguishes the stages for the one trainer."""

    def score(self, rows: Sequence[Row], replies: Sequence[str], transcripts: Sequence[Transcript] | None) -> Scored:
        """Judges the completions of this process."""
        ...

    def deciding(self, task: str) -> str:
        """The verifier that says whether a reply of the task is right."""
        ...

    def try_answers(self, rows: Sequence[Row], answers: Sequence[str]) -> Scored:
        """Judges given answers as if the policy had given them, in perfect form."""
        ...

    def wanted(self, correct_NG: torch.Tensor) -> torch.Tensor:
        """Which groups are worth training on, (N,); the others may be sampled again with other prompts, and have no advantage.

        Args:
            correct_NG: 1, 0, or NaN where a reply could not be scored.
        """
        ...

    def advantages(self, reward_NG: torch.Tensor, length_NG: torch.Tensor, correct_NG: torch.Tensor) -> torch.Tensor:
        """Advantages of all groups of the rollout, (N, G)."""
        ...

    def finish_step(self) -> dict[str, float]:
        """Called once a rollout, with its rewards given: moves what moves between rollouts, and returns the objective's own numbers."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep."""
        ...

    def load_state(self, state: dict[str, Any]) -> None: ...


class _TaskObjective:
    """Judges by routed rewards, wants every group, and remembers nothing between steps."""

    def __init__(self, rewards: TaskRewards):
        self.rewards = rewards

    def score(self, rows: Sequence[Row], replies: Sequence[str], transcripts: Sequence[Transcript] | None) -> Scored:
        return self.rewards.score(rows, replies)

    def deciding(self, task: str) -> str:
        return self.rewards.deciding(task)

    def try_answers(self, rows: Sequence[Row], answers: Sequence[str]) -> Scored:
        return self.rewards.score(rows, [make_reply("…", answer) for answer in answers])  # a thought without words has no language

    def wanted(self, correct_NG: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(correct_NG), dtype=torch.bool, device=correct_NG.device)

    def finish_step(self) -> dict[str, float]:
        return {}

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None: ...


class M3Objective(_TaskObjective):
    """Multimodal, multitask, multiobjective: the group-mean advantage of the routed reward."""

    def __init__(self, rewards: TaskRewards, weighting: Weighting, filter_groups: bool):
        super().__init__(rewards)
        self._weighting, self._filter = weighting, filter_groups

    def wanted(self, correct_NG: torch.Tensor) -> torch.Tensor:
        return mixed_groups(correct_NG) if self._filter else super().wanted(correct_NG)

    def advantages(self, reward_NG: torch.Tensor, length_NG: torch.Tensor, correct_NG: torch.Tensor) -> torch.Tensor:
        unwanted_N1 = ~self.wanted(correct_NG)[:, None]  # out of "clip_filter"'s count of groups that vary, too
        return group_mean(reward_NG.masked_fill(unwanted_N1, math.nan), self._weighting)


class EfficientObjective(_TaskObjective):
    """Safe and efficient: the conditional length advantage (a stand-in for CALE; see ``advantages``)."""

    def __init__(self, rewards: TaskRewards, form: str, *, mu: float, alpha: float, beta: float):
        super().__init__(rewards)
        self._form, self._mu, self._alpha, self._beta = form, mu, alpha, beta

    def advantages(self, reward_NG: torch.Tensor, length_NG: torch.Tensor, correct_NG: torch.Tensor) -> torch.Tensor:
        if self._form == "canon":
            return canon(reward_NG, length_NG, correct_NG == 1, mu=self._mu, alpha=self._alpha)
        return ddca(reward_NG, length_NG, correct_NG == 1, beta=self._beta)


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

    def wanted(self, correct_NG: torch.Tensor) -> torch.Tensor:
        """All: where every answer is right, their confidence still is or is not."""
        return torch.ones(len(correct_NG), dtype=torch.bool, device=correct_NG.device)

    def advantages(self, reward_NG: torch.Tensor, length_NG: torch.Tensor, correct_NG: torch.Tensor) -> torch.Tensor:
        return group_mean(reward_NG, self._weighting, spread_NG=correct_NG)

    def finish_step(self) -> dict[str, float]:
        """Moves λ."""
        self.multiplier.update(self._last["search/reliability"])
        assert self.multiplier.mean is not None
        return self._last | {
            "search/lambda": self.multiplier.value,
            "search/reliability_ema": self.multiplier.mean,
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
