"""One round of sampling: a group of completions for each prompt, judged; groups without a signal are sampled again with other prompts.

The second half is dynamic sampling (DAPO, arXiv 2503.14476): without it, prompts that are always right or always wrong shrink the batch
that the gradient is taken over. Here a group has no signal where it is all right or all wrong in its task, whatever its summed rewards are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch

from safework_cli.core.errors import TooManyFailed
from safework_cli.data.row import Row
from safework_cli.engines.protocol import Sampling, TokenEngine, derived_seed
from safework_cli.environments.search.index import SearchIndex
from safework_cli.environments.search.runner import EpisodeLimits, Transcript, run_episodes
from safework_cli.models.vision import Vision
from safework_cli.verifiers.contract import Verdict
from safework_rl.advantages import overlong_penalty
from safework_rl.config import RlConfig
from safework_rl.curriculum import Curriculum
from safework_rl.objectives import Objective


@dataclass(slots=True)
class Sample:
    """A completion and what it earned.

    Attributes:
        row: the prompt, as a position among the run's rows.
        prompt_ids, token_ids: as the model saw and sampled them; for an episode, retrieved text is among ``token_ids``.
        mask: 1 on tokens that the policy sampled; logprobs: their log-probabilities, 0.0 where mask is 0. (T,) each.
        reply: the text that is judged and shown; an episode's whole exchange.
        vision: what the prompt's pictures gave; one object for the group.
        transcript: of an episode.
        reward: in [0, 1] (search: up to 1 + λ), less an over-long penalty; NaN where a verifier could not score the reply.
        correct: see ``rewards.Scored``.
        truncated: it did not end by itself.
    """

    row: int
    prompt_ids: list[int]
    token_ids: list[int]
    mask: list[int]
    logprobs: list[float]
    reply: str
    vision: Vision | None = None
    transcript: Transcript | None = None
    reward: float = math.nan
    correct: bool | None = None
    truncated: bool = False
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Sampled tokens."""
        return sum(self.mask)


Group = list[Sample]


@dataclass(slots=True)
class Round:
    """What a round made.

    Attributes:
        drawn: a group for each prompt that the curriculum named: what the policy does, unselected. Metrics are taken from it.
        kept: the same with groups without a signal replaced, as far as others were found: what is trained on.
        attempts: how often was sampled.
        replaced: groups that were.
    """

    drawn: list[Group]
    kept: list[Group]
    attempts: int = 1
    replaced: int = 0


class Rollouts:
    """Samples and judges rounds.

    Args:
        rows: of the run; completions name theirs by its position.
        engine: makes the engine over the policy as it is now.
        encode: makes token ids of a row, and what its pictures gave.
        search: index and limits, where completions are search episodes.
        refill: attempts to replace groups without a signal; 0 leaves them, without an advantage.
    """

    def __init__(
        self,
        config: RlConfig,
        objective: Objective,
        rows: Sequence[Row],
        curriculum: Curriculum,
        engine: Callable[[], TokenEngine],
        encode: Callable[[Row], tuple[list[int], Vision | None]],
        search: tuple[SearchIndex, EpisodeLimits] | None = None,
        *,
        refill: int = 0,
    ):
        self._config, self._objective, self._rows, self._curriculum = config, objective, rows, curriculum
        self._engine, self._encode = engine, encode
        self._search, self._refill = search, refill

    def round(self, number: int, rows: Sequence[int]) -> Round:
        """Samples num_generations completions of each of these rows.

        What is drawn depends on the run's seed, the round's number, the attempt, the prompt and the completion's number in its group, so a
        resumed run draws what the uninterrupted one would have drawn.

        Args:
            number: of the round, from 0: which replacements it may take, and its draws.

        Raises:
            TooManyFailed: more replies than tolerated could not be scored.
        """
        drawn = self._groups(rows, number, 0)
        self._refuse_unscorable(flat(drawn))
        done = Round(drawn, list(drawn))
        taken = set(rows)
        while stale := self._stale(done.kept):
            if done.attempts > self._refill:
                break
            spares = self._curriculum.spares(number, done.attempts, stale, taken)
            if not spares:
                break
            taken.update(spares)
            fresh = self._groups(spares, number, done.attempts)
            useless = {*self._stale(fresh), *(i for i, group in enumerate(fresh) if any(s.correct is None for s in group))}
            for place, group in zip(stale, (g for i, g in enumerate(fresh) if i not in useless), strict=False):
                done.kept[place] = group
                done.replaced += 1
            done.attempts += 1
        return done

    def _stale(self, groups: list[Group]) -> list[int]:
        correct_NG = torch.tensor([[as_number(sample.correct) for sample in group] for group in groups])
        return [i for i, wanted in enumerate(self._objective.wanted(correct_NG).tolist()) if not wanted]

    def _groups(self, rows: Sequence[int], number: int, attempt: int) -> list[Group]:
        size, seed = self._config.num_generations, derived_seed(self._config.seed, "rollout", number, attempt)
        samples = self._sample([row for row in rows for _ in range(size)], seed)
        self._judge(samples)
        return [samples[i : i + size] for i in range(0, len(samples), size)]

    def _sample(self, rows: Sequence[int], seed: int) -> list[Sample]:
        engine = self._engine()
        # TRL trains the distribution that is sampled from
        sampling = Sampling(self._config.max_completion_length, self._config.temperature, seed=seed, logprobs_at=self._config.temperature)
        if self._search is not None:
            index, limits = self._search
            transcripts = run_episodes(engine, index, [self._rows[row].prompt for row in rows], limits, sampling)
            return [
                Sample(
                    row, t.prompt_ids, t.token_ids, t.mask, t.logprobs, _exchange_text(t), transcript=t, truncated=t.ending != "answered"
                )
                for row, t in zip(rows, transcripts, strict=True)
            ]
        encoded = {row: self._encode(self._rows[row]) for row in dict.fromkeys(rows)}
        groups = engine.generate_ids([encoded[row][0] for row in rows], sampling, visions=[encoded[row][1] for row in rows])
        return [
            Sample(
                row, c.prompt_ids, c.token_ids, [1] * len(c.token_ids), c.logprobs, c.text, encoded[row][1],
                truncated=c.finish_reason == "length",
            )
            for row, (c,) in zip(rows, groups, strict=True)
        ]  # fmt: skip

    def _judge(self, samples: list[Sample]) -> None:
        rows = [self._rows[sample.row] for sample in samples]
        transcripts = [t for sample in samples if (t := sample.transcript) is not None]
        scored = self._objective.score(rows, [sample.reply for sample in samples], transcripts or None)
        o = self._config.overlong
        length_B = torch.tensor([len(sample.token_ids) for sample in samples])  # retrieved text counts towards the limit
        penalties = overlong_penalty(length_B, self._config.max_completion_length, o.buffer, o.factor).tolist()
        for sample, reward, correct, verdicts, penalty in zip(
            samples, scored.reward, scored.correct, scored.verdicts, penalties, strict=True
        ):
            sample.reward, sample.correct, sample.verdicts = reward + penalty, correct, verdicts

    def _refuse_unscorable(self, samples: list[Sample]) -> None:
        failed = [sample for sample in samples if math.isnan(sample.reward)]
        if len(failed) > self._config.max_unscorable * len(samples):
            name, error = next((name, v.error) for name, v in failed[0].verdicts.items() if v.error)
            raise TooManyFailed(
                f"{len(failed)} of {len(samples)} replies of a step could not be scored (verifier '{name}': {error})",
                f"max_unscorable tolerates {self._config.max_unscorable:.0%}; training on what is left would be training on something else",
                "fix the verifier or the rows; the same command then resumes from the last checkpoint",
            )


def as_number(correct: bool | None) -> float:
    """1, 0, or NaN for a reply that could not be scored."""
    return math.nan if correct is None else float(correct)


def flat(groups: Sequence[Group]) -> list[Sample]:
    """The samples of groups, in order."""
    return list(chain.from_iterable(groups))


def _exchange_text(transcript: Transcript) -> str:
    return "\n".join(f"[{message['role']}] {message['content']}" for message in transcript.messages[1:])
