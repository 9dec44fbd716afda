"""What a reply earns, and what advantage that gives it in its group: routed rewards, the objectives of ``rl m3`` and ``rl efficient``, and
the advantages as pure functions.

Shapes: N groups of G completions. Rewards may be NaN where a completion could not be scored: it is left out of its group's statistics
and gets advantage 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch

from safework_cli.core.launch.world import World
from safework_cli.data.reply import make_reply
from safework_cli.data.row import Row
from safework_cli.environments.search.runner import Transcript
from safework_cli.training.group import spread
from safework_cli.verifiers.contract import Exchange, Verdict, Verifier, judged
from safework_rl.config import FormatSettings, LanguageSettings
from safework_rl.losses.contract import Weighting

if TYPE_CHECKING:
    from safework_rl.efficient.config import EfficientConfig
    from safework_rl.m3.config import M3Config

Routes = Mapping[str, Mapping[str, float]]
RewardFunction = Callable[[Sequence[Row], Sequence[str]], Sequence[float | None]]
"""A registered reward: a score in [0, 1] for each reply, None for one that it cannot score."""


@dataclass(slots=True)
class Scored:
    """Judged replies, one entry each, in order.

    Attributes:
        reward: in [0, 1] (search: up to 1 + λ); NaN where a verifier could not score the reply.
        correct: the score of the task's first verifier reaches ``correct_threshold``, and the format was kept; None where a verifier
            could not score the reply.
        verdicts: by verifier name.
    """

    reward: list[float]
    correct: list[bool | None]
    verdicts: list[dict[str, Verdict]]


class RegisteredReward:
    """A registered reward as a verifier of exchanges whose rows are known.

    Args:
        name: that it is registered under.
    """

    def __init__(self, name: str, function: RewardFunction):
        self.name, self._function = name, function
        self._rows: dict[int, Row] = {}

    def over(self, rows: Sequence[Row], exchanges: Sequence[Exchange]) -> RegisteredReward:
        """The same for these exchanges, each of the row at its place."""
        bound = RegisteredReward(self.name, self._function)
        bound._rows = {id(exchange): row for row, exchange in zip(rows, exchanges, strict=True)}
        return bound

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        scores = self._function([self._rows[id(exchange)] for exchange in exchanges], [exchange.reply for exchange in exchanges])
        unscored = f"the reward '{self.name}' returned None"
        return [Verdict(None, error=unscored) if score is None else Verdict(float(score)) for score in scores]


class TaskRewards:
    """R = Σ w_j·R_j / Σ w_j over the verifiers of the row's task; format and language are gates (R·0 where they fail) or further terms.

    The official code sums without normalising, which gives tasks with more verifiers more pull (`docs/safeladder.md` 3.2); here every
    task's reward is in [0, 1].

    Args:
        routes: task → verifier name → weight. The first verifier of a task is the one that says whether the reply is right.
        verifiers: by name, "format" and "language" among them.
        form, language: how these two count.
        threshold: score of the first verifier from which a reply is right.
        world: this process among those of the run: each judges its share, and all get all verdicts.
    """

    def __init__(
        self,
        routes: Routes,
        verifiers: Mapping[str, Verifier],
        form: FormatSettings,
        language: LanguageSettings,
        threshold: float,
        world: World | None = None,
    ):
        self._world = world or World()
        self._routes, self._verifiers, self._threshold = routes, verifiers, threshold
        self._form_terms: dict[str, FormatSettings | LanguageSettings] = {"format": form}
        if language.mode != "off":
            self._form_terms["language"] = language

    def score(self, rows: Sequence[Row], replies: Sequence[str]) -> Scored:
        """Judges one reply for each row."""
        exchanges = [Exchange.of_task(row, reply) for row, reply in zip(rows, replies, strict=True)]
        verdicts: list[dict[str, Verdict]] = [{} for _ in rows]
        for name in sorted({name for row in rows for name in self._routes[row.task]} | self._form_terms.keys()):
            wanted = [i for i, row in enumerate(rows) if name in self._form_terms or name in self._routes[row.task]]
            verifier, batch = self._verifiers[name], [exchanges[i] for i in wanted]  # one batch for each verifier
            if isinstance(verifier, RegisteredReward):
                verifier = verifier.over([rows[i] for i in wanted], batch)
            judge = partial(judged, verifier)
            given = judge(batch) if self._world.size == 1 else spread(self._world, batch, judge)
            for i, verdict in zip(wanted, given, strict=True):
                verdicts[i][name] = verdict
        combined = [self._combine(self._routes[row.task], own) for row, own in zip(rows, verdicts, strict=True)]
        return Scored([reward for reward, _ in combined], [correct for _, correct in combined], verdicts)

    @property
    def verifiers(self) -> Mapping[str, Verifier]:
        """All verifiers by name."""
        return self._verifiers

    def deciding(self, task: str) -> str:
        """The verifier that says whether a reply of the task is right."""
        return next(iter(self._routes[task]))

    def _combine(self, route: Mapping[str, float], verdicts: Mapping[str, Verdict]) -> tuple[float, bool | None]:
        scores = {name: verdict.score for name, verdict in verdicts.items() if verdict.score is not None}
        if len(scores) < len(verdicts):
            return math.nan, None
        terms = {name: term.weight for name, term in self._form_terms.items() if term.mode == "term"} | dict(route)
        gates = [name for name, term in self._form_terms.items() if term.mode == "gate"]
        total = sum(terms.values())
        reward = sum(weight * scores[name] for name, weight in terms.items()) / total if total else 0.0
        if any(scores[name] < 1.0 for name in gates):
            reward = 0.0
        return reward, all(scores[name] == 1.0 for name in {"format", *gates}) and scores[next(iter(route))] >= self._threshold


class Objective(Protocol):
    """What distinguishes the stages for the one trainer. Another package registers one under ``safework.objectives``."""

    def score(self, rows: Sequence[Row], replies: Sequence[str], transcripts: Sequence[Transcript] | None) -> Scored:
        """Judges the completions of a step. Where the run has several processes, each of them calls this with all completions."""
        ...

    def deciding(self, task: str) -> str:
        """The verifier that says whether a reply of the task is right."""
        ...

    def try_answers(self, rows: Sequence[Row], answers: Sequence[str]) -> Scored:
        """Judges given answers as if the policy had given them, in perfect form."""
        ...

    def wanted(self, correct_NG: torch.Tensor, length_NG: torch.Tensor) -> torch.Tensor:
        """Which groups are worth training on, (N,); the others may be sampled again with other prompts, and have no advantage.

        Args:
            correct_NG: 1, 0, or NaN where a reply could not be scored.
            length_NG: in tokens.
        """
        ...

    def advantages(self, reward_NG: torch.Tensor, length_NG: torch.Tensor, correct_NG: torch.Tensor) -> torch.Tensor:
        """Advantages of all groups of the rollout, (N, G)."""
        ...

    def finish_step(self) -> dict[str, float]:
        """Called once a rollout, after its advantages: updates the state, and returns the objective's own numbers."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint must store."""
        ...

    def load_state(self, state: dict[str, Any]) -> None: ...


class _TaskObjective:
    """Judges by routed rewards, wants every group, and has no state."""

    def __init__(self, rewards: TaskRewards):
        self.rewards = rewards

    def score(self, rows: Sequence[Row], replies: Sequence[str], transcripts: Sequence[Transcript] | None) -> Scored:
        return self.rewards.score(rows, replies)

    def deciding(self, task: str) -> str:
        return self.rewards.deciding(task)

    def try_answers(self, rows: Sequence[Row], answers: Sequence[str]) -> Scored:
        return self.rewards.score(rows, [make_reply("…", answer) for answer in answers])  # a thought without words has no language

    def wanted(self, correct_NG: torch.Tensor, length_NG: torch.Tensor) -> torch.Tensor:
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

    def wanted(self, correct_NG: torch.Tensor, length_NG: torch.Tensor) -> torch.Tensor:
        return mixed_groups(correct_NG) if self._filter else super().wanted(correct_NG, length_NG)

    def advantages(self, reward_NG: torch.Tensor, length_NG: torch.Tensor, correct_NG: torch.Tensor) -> torch.Tensor:
        unwanted_N1 = ~self.wanted(correct_NG, length_NG)[:, None]  # out of "clip_filter"'s count of groups that vary, too
        return group_mean(reward_NG.masked_fill(unwanted_N1, math.nan), self._weighting)


def m3(config: M3Config, rewards: TaskRewards) -> M3Objective:
    """The objective of ``rl m3``."""
    return M3Objective(rewards, config.weighting, config.filter_groups)


class EfficientObjective(_TaskObjective):
    """Safe and efficient: the conditional length advantage (in place of CALE, whose formula is not published).

    Both forms were published for rewards of 0 and 1. Here a verifier's score has decimals, and replies that are all right differ in them by
    chance; DDCA divides such differences by their deviation, so that they would count as much as right and wrong. With ``filter_groups``
    rewards are therefore compared only in groups with a right and a wrong reply, as in ``rl m3``; length counts in the others.
    """

    def __init__(self, rewards: TaskRewards, config: EfficientConfig):
        super().__init__(rewards)
        self._config = config

    def wanted(self, correct_NG: torch.Tensor, length_NG: torch.Tensor) -> torch.Tensor:
        if not self._config.filter_groups:
            return super().wanted(correct_NG, length_NG)
        several_N = (correct_NG == 1).sum(dim=1) >= 2
        return mixed_groups(correct_NG) | (several_N & self._length_counts(correct_NG, length_NG).squeeze(1))

    def advantages(self, reward_NG: torch.Tensor, length_NG: torch.Tensor, correct_NG: torch.Tensor) -> torch.Tensor:
        if self._config.filter_groups:
            compared_N1 = mixed_groups(correct_NG)[:, None]
            level_NG = torch.where(reward_NG.isnan(), reward_NG, reward_NG.nanmean(dim=1, keepdim=True))
            reward_NG = torch.where(compared_N1, reward_NG, level_NG)
        counts_N1 = self._length_counts(correct_NG, length_NG)
        right_NG = correct_NG == 1
        if self._config.length_advantage == "canon":
            advantage_NG = canon(reward_NG, length_NG, right_NG, mu=self._config.mu, alpha=self._config.alpha, discounted_N1=counts_N1)
        else:
            advantage_NG = ddca(reward_NG, length_NG, right_NG, beta=self._config.ddca_beta, active_N1=counts_N1)
        return advantage_NG.masked_fill(~self.wanted(correct_NG, length_NG)[:, None], 0.0)

    def _length_counts(self, correct_NG: torch.Tensor, length_NG: torch.Tensor) -> torch.Tensor:
        """Whether a group's lengths differ enough to be compared, (N, 1)."""
        compared_NG = torch.ones_like(correct_NG, dtype=torch.bool) if self._config.length_advantage == "canon" else correct_NG == 1
        return relative_spread(length_NG, compared_NG) > max(self._config.min_length_spread, EPSILON)


def efficient(config: EfficientConfig, rewards: TaskRewards) -> EfficientObjective:
    """The objective of ``rl efficient``."""
    return EfficientObjective(rewards, config)


# ---------------------------------------------------------------------------------------------------------- advantages: pure functions

EPSILON = 1e-6


def group_mean(reward_NG: torch.Tensor, weighting: Weighting, cap: float = 3.0, *, spread_NG: torch.Tensor | None = None) -> torch.Tensor:
    """A = ω·(R − mean R), the mean over the whole group and not leave-one-out (CPGD, arXiv 2505.12504).

    The deviation is the sample's, with G − 1 below the root, as in TRL's GRPOTrainer, siiRL's CPGD and LightRFT's ``group_norm``: at
    G = 8 advantages are 1.069 times smaller than with the population's.

    Args:
        weighting: ω = 1 ("equal"); 1/std ("std", which gives GRPO's advantage); or min(cap, N / groups with std R ≠ 0)
            ("clip_filter": groups with a signal compensate for those without one).
        spread_NG: what "std" divides by the deviation of, where that is not the reward; ω = 1 in a group in which it does not vary.

    Returns:
        (N, G); all zero in a group whose rewards are equal.
    """
    centred_NG = torch.nan_to_num(reward_NG - reward_NG.nanmean(dim=1, keepdim=True))
    informative_N1 = _std(reward_NG) > EPSILON
    weight_N1 = torch.ones_like(centred_NG[:, :1])
    if weighting == "std":
        std_N1 = _std(reward_NG if spread_NG is None else spread_NG)
        weight_N1 = torch.where(std_N1 > EPSILON, 1 / (std_N1 + EPSILON), weight_N1)
    elif weighting == "clip_filter":
        share = informative_N1.float().mean().clamp(min=1 / len(reward_NG))
        weight_N1 = (1 / share).clamp(max=cap).expand_as(weight_N1)
    return torch.where(informative_N1, weight_N1 * centred_NG, torch.zeros_like(centred_NG))


def canon(
    reward_NG: torch.Tensor,
    length_NG: torch.Tensor,
    correct_NG: torch.Tensor,
    *,
    mu: float,
    alpha: float,
    discounted_N1: torch.Tensor | None = None,
) -> torch.Tensor:
    """The conditional length advantage in CANON's form (arXiv 2509.23962), in place of CALE, whose formula is not published.

    Completions are sorted by length; the short half S is the first ⌊G/2⌋, the long half L the rest (ties in their given order).

        long  i:  A = μ·(α·R − m_S) + (1−μ)·(R − m_L)
        short i:  A = μ·(R − α·m_L) + (1−μ)·(R − m_S)

    An unsafe or wrong completion never gains by being short: where it is not correct, its advantage is at most what α = 1 gives.

    Args:
        length_NG: in tokens.
        correct_NG: bool; safe and right, the format kept.
        mu: weight of the comparison between the halves, in [0, 1].
        alpha: discount of long completions, in (0, 1]; 1 has no preference for length.
        discounted_N1: groups in which long completions are discounted; all where None, those of equal lengths included.
    """
    plain_NG = _canon(reward_NG, length_NG, mu, 1.0)
    discounted_NG = _canon(reward_NG, length_NG, mu, alpha)
    if discounted_N1 is not None:
        discounted_NG = torch.where(discounted_N1, discounted_NG, plain_NG)
    return torch.where(correct_NG, discounted_NG, torch.minimum(plain_NG, discounted_NG))


def _canon(reward_NG: torch.Tensor, length_NG: torch.Tensor, mu: float, alpha: float) -> torch.Tensor:
    size = reward_NG.shape[1]
    order_NG = length_NG.argsort(dim=1, stable=True)
    is_short_NG = torch.zeros_like(length_NG, dtype=torch.bool)
    is_short_NG.scatter_(1, order_NG[:, : size // 2], True)
    nan = torch.full_like(reward_NG, torch.nan)
    mean_short_N1 = torch.where(is_short_NG, reward_NG, nan).nanmean(dim=1, keepdim=True)
    mean_long_N1 = torch.where(is_short_NG, nan, reward_NG).nanmean(dim=1, keepdim=True)
    long_NG = mu * (alpha * reward_NG - mean_short_N1) + (1 - mu) * (reward_NG - mean_long_N1)
    short_NG = mu * (reward_NG - alpha * mean_long_N1) + (1 - mu) * (reward_NG - mean_short_N1)
    return torch.nan_to_num(torch.where(is_short_NG, short_NG, long_NG))  # NaN: unscored, or a half in which nothing was scored


def ddca(
    reward_NG: torch.Tensor,
    length_NG: torch.Tensor,
    correct_NG: torch.Tensor,
    *,
    beta: float,
    active_N1: torch.Tensor | None = None,
) -> torch.Tensor:
    """The length advantage conditioned on correct completions (DDCA, arXiv 2602.02099), the other replacement of CALE.

        A = (R − mean R)/(std R + ε) + β·A_len
        A_len = −(s − mean_C s)·(n/G) on the n correct completions C, 0 elsewhere;  s = sigmoid((len − mean_C len)/(std_C len + ε))

    Deviations are the sample's, in both. A_len is 0 in a group with fewer than two correct completions or with equal lengths.

    Args:
        active_N1: groups in which A_len counts; all where None.
    """
    accuracy_NG = group_mean(reward_NG, "std")
    nan = torch.full_like(reward_NG, torch.nan)
    correct_length_NG = torch.where(correct_NG, length_NG.to(reward_NG.dtype), nan)
    mean_N1, std_N1 = correct_length_NG.nanmean(dim=1, keepdim=True), _std(correct_length_NG)
    s_NG = torch.sigmoid((correct_length_NG - mean_N1) / (std_N1 + EPSILON))
    count_N1 = correct_NG.sum(dim=1, keepdim=True)
    length_advantage_NG = -(s_NG - s_NG.nanmean(dim=1, keepdim=True)) * count_N1 / reward_NG.shape[1]
    active_NG = correct_NG & (count_N1 >= 2) & (std_N1 > EPSILON)
    if active_N1 is not None:
        active_NG = active_NG & active_N1
    return accuracy_NG + beta * torch.where(active_NG, length_advantage_NG, torch.zeros_like(length_advantage_NG))


def relative_spread(length_NG: torch.Tensor, compared_NG: torch.Tensor) -> torch.Tensor:
    """Sample deviation of the lengths of the compared completions relative to their mean, (N, 1); 0 where fewer than two are compared."""
    compared_length_NG = torch.where(compared_NG, length_NG.float(), torch.nan)
    mean_N1 = torch.nan_to_num(compared_length_NG.nanmean(dim=1, keepdim=True))
    return _std(compared_length_NG) / mean_N1.clamp(min=1)


def mixed_groups(correct_NG: torch.Tensor) -> torch.Tensor:
    """Which groups have a right and a wrong reply *in the task*, (N,); one that could not be scored (NaN) is neither.

    Filtering on the summed reward, as the official code does, keeps all-correct groups whose formats differ and drops groups that have
    only the format (`docs/safeladder.md` 3.4).
    """
    return (correct_NG == 1).any(dim=1) & (correct_NG == 0).any(dim=1)


def overlong_penalty(length_B: torch.Tensor, limit: int, buffer: int, factor: float) -> torch.Tensor:
    """DAPO's soft penalty (arXiv 2503.14476, eq. 13), (B,), to be added to the reward: 0 up to ``limit − buffer`` tokens, from there
    falling in a straight line to ``−factor`` at the limit. All 0 without a buffer.

    Args:
        length_B: completion lengths in tokens.
        limit: the longest completion.
    """
    if not buffer:
        return torch.zeros(len(length_B))
    return (-(length_B - (limit - buffer)) / buffer * factor).clamp(min=-factor, max=0.0)


def _std(value_NG: torch.Tensor) -> torch.Tensor:
    """Sample standard deviation along a group, NaN left out, (N, 1); 0 where fewer than two values are left."""
    mean_N1 = value_NG.nanmean(dim=1, keepdim=True)
    count_N1 = (~torch.isnan(value_NG)).sum(dim=1, keepdim=True)
    squares_N1 = torch.nan_to_num(value_NG - mean_N1).square().sum(dim=1, keepdim=True)
    return (squares_N1 / (count_N1 - 1).clamp(min=1)).sqrt()
