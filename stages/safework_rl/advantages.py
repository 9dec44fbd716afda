"""Advantages of groups and the penalty on length, as pure functions.

Shapes: N groups of G completions. Rewards may be NaN where a completion could not be scored: it is left out of its group's statistics
and gets advantage 0.
"""

from __future__ import annotations

import torch

from safework_rl.losses.contract import Weighting

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
