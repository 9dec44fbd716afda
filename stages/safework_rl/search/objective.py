"""The objective of deliberative search: right answers under a constraint on reliability."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from safework_cli.core.launch.world import World
from safework_cli.data.row import Row
from safework_cli.environments.search.measures import AUROC, JudgedEpisode
from safework_cli.environments.search.runner import Transcript
from safework_cli.statistics.calibration import concordance
from safework_cli.training.group import spread
from safework_cli.verifiers.contract import Exchange, Verdict, Verifier, judged
from safework_cli.verifiers.rules import rule_verifier
from safework_rl.lagrange import Multiplier
from safework_rl.losses.contract import Weighting
from safework_rl.objectives import Scored, group_mean
from safework_rl.search.config import OF_EVALUATION, SearchConfig


class SearchObjective:
    """Deliberative search: right answers under a constraint on reliability (`docs/safeladder.md` 6).

        R = R_format·(0.1·R_format + 0.9·R_acc + λ·R_reliab)
        R_reliab = 1 if (right and confidence ≥ ζ) or (wrong and confidence < ζ) else 0

    λ is updated once a rollout from its mean R_reliab; a transcript out of format is not reliable. "std" divides by the deviation of
    being right, and not by that of R: where every answer of a group is right, or none is, R varies by λ·R_reliab only, and its own
    deviation would divide λ away.
    """

    def __init__(
        self, judge: Verifier, multiplier: Multiplier, certain: int, weighting: Weighting, threshold: float, world: World | None = None
    ):
        self._judge, self.multiplier, self._certain, self._weighting, self._threshold = judge, multiplier, certain, weighting, threshold
        self._world = world or World()
        self._last: dict[str, float] = {}

    def score(self, rows: Sequence[Row], replies: Sequence[str], transcripts: Sequence[Transcript] | None) -> Scored:
        assert transcripts is not None
        verdicts = self._verdicts(rows, transcripts)
        rewards: list[float] = []
        correct: list[bool | None] = []
        named: list[dict[str, Verdict]] = []
        for transcript, verdict in zip(transcripts, verdicts, strict=True):
            episode, in_format = self._episode(transcript, verdict), transcript.well_formed
            reliable = episode.values(self._certain)["reliability"]
            reward = in_format * (0.1 + 0.9 * episode.right + self.multiplier.value * reliable)
            rewards.append(math.nan if verdict.score is None else float(reward))
            correct.append(None if verdict.score is None else episode.right and in_format)
            named.append({
                "correctness": verdict,
                "format": Verdict(float(in_format), label=transcript.ending),
                "reliability": Verdict(reliable, label=f"confidence {transcript.confidence}"),
            })  # fmt: skip
        self._last = {f"search/{name}": value for name, value in self._means(transcripts, verdicts).items()}
        return Scored(rewards, correct, named)

    def measure(self, rows: Sequence[Row], transcripts: Sequence[Transcript]) -> dict[str, float]:
        """What an evaluation measures of its episodes, and how many of them it is not of (``NAME/failed``), because their answers could not
        be scored; nothing where none could. The AUROC is 0.5 where confidences do not differ, or answers are all right or all wrong."""
        verdicts = self._verdicts(rows, transcripts)
        episodes = [self._episode(t, v) for t, v in zip(transcripts, verdicts, strict=True) if v.score is not None]
        if not episodes:
            return {}
        means = self._means(transcripts, verdicts)
        stated = [(episode.confidence, episode.right) for episode in episodes if episode.confidence is not None]
        ranked = np.asarray(stated, dtype=np.float64).reshape(-1, 2)
        measured = {name: means[name] for name in OF_EVALUATION if name != AUROC} | {AUROC: concordance(ranked[:, 0], ranked[:, 1])}
        failed = len(verdicts) - len(episodes)
        return measured | ({f"{name}/failed": failed for name in measured} if failed else {})

    def _verdicts(self, rows: Sequence[Row], transcripts: Sequence[Transcript]) -> list[Verdict]:
        """Each process judges its share, and all get all verdicts: an answer that one of them judges too slowly is unscorable in all."""
        pairs = zip(rows, transcripts, strict=True)
        exchanges = [Exchange(row.prompt, t.answer or "", row.answer, meta=row.meta) for row, t in pairs]
        return spread(self._world, exchanges, partial(judged, self._judge))

    def _episode(self, transcript: Transcript, verdict: Verdict) -> JudgedEpisode:
        right = verdict.score is not None and verdict.score >= self._threshold and transcript.answer is not None
        return JudgedEpisode(right, transcript.confidence, transcript.well_formed, transcript.searches)

    def _means(self, transcripts: Sequence[Transcript], verdicts: Sequence[Verdict]) -> dict[str, float]:
        """Shares of the episodes whose answers could be scored (reliability: NaN where none could), and means over all of what they did."""
        scored = [self._episode(t, verdict) for t, verdict in zip(transcripts, verdicts, strict=True) if verdict.score is not None]
        values = [episode.values(self._certain) for episode in scored]
        unsure = [episode.right for episode in scored if episode.confidence is not None and not episode.sure(self._certain)]
        shares = {name: sum(value[name] for value in values) / max(1, len(values)) for name in ("true_certain", "false_certain")}
        shares |= {
            "true_uncertain": sum(unsure) / max(1, len(values)),
            "false_uncertain": (len(unsure) - sum(unsure)) / max(1, len(values)),
        }
        count = len(transcripts)
        return shares | {
            "reliability": sum(value["reliability"] for value in values) / len(values) if values else math.nan,
            "searches": sum(t.searches for t in transcripts) / count,
            "reads": sum(t.reads for t in transcripts) / count,
            "malformed": sum(t.malformed for t in transcripts) / count,
            "unanswered": sum(t.ending != "answered" for t in transcripts) / count,
        }

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


def search(config: SearchConfig, world: World | None = None) -> SearchObjective:
    """The objective of ``rl search``; an episode has a reward of its own.

    Args:
        world: this process among those of the run.
    """
    r = config.reliability
    multiplier = Multiplier(r.multiplier, r.threshold, r.step, r.low, r.high, r.decay)
    return SearchObjective(rule_verifier("correctness"), multiplier, r.certain, config.weighting, config.correct_threshold, world)
