"""Clipped policy gradient with policy drift (CPGD, arXiv 2505.12504), token level. Pure functions.

Shapes: B completions, T completion tokens; G completions of a group, N groups, B = N·G.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch


class CpgdLoss(NamedTuple):
    """The loss and what is logged beside it, all scalars.

    Attributes:
        loss: to be minimised.
        clip_share: share of tokens whose policy gradient the clip removed.
        drift: mean k3 estimate of KL(old ‖ new) per token, in nats.
    """

    loss: torch.Tensor
    clip_share: torch.Tensor
    drift: torch.Tensor


def epsilon_schedule(mask_BT: torch.Tensor, epsilon: float, tight: float) -> torch.Tensor:
    """Tight-to-loose clip widths, (B, T): ε_i = λ·ε + (1−λ)·ε·i/|y| with i = 1 … |y| (CPGD, `docs/safeladder.md` 3.3).

    Args:
        mask_BT: 1 on the tokens that the policy sampled: i and |y| count only these.
        tight: λ in [0, 1]; 1 is the constant ε.
    """
    position_BT = mask_BT.float().cumsum(1)
    share_BT = position_BT / position_BT[:, -1:].clamp(min=1)
    return tight * epsilon + (1 - tight) * epsilon * share_BT


def cpgd_loss(
    logp_BT: torch.Tensor,
    old_logp_BT: torch.Tensor,
    advantage_B: torch.Tensor,
    mask_BT: torch.Tensor,
    denominator_B: torch.Tensor,
    *,
    epsilon_BT: torch.Tensor,
    drift_coef: float,
    drift_cap: float,
) -> CpgdLoss:
    """The practical CPGD objective.

    With r = π_θ/π_old of a token and A its completion's advantage,

        J = −Σ 1/denominator · [ min(ln r·A, clip(ln r, ln(1−ε), ln(1+ε))·A) − α·min(sg(r)−1, c)·ln π_θ ]

    The drift term's *value* means nothing; its gradient is that of the k3 estimator of the forward KL with the gradient's factor
    clipped at c. (Clipping the estimator itself would push a ratio that ran away further out.)

    Args:
        logp_BT, old_logp_BT: log-probabilities of the sampled tokens under the trained and the sampling policy.
        advantage_B: group-relative advantages, already weighted.
        mask_BT: 1 on tokens that the policy sampled.
        denominator_B: per completion, the tokens of its whole group times the number of groups of the update: the paper's mean over
            prompts of the token mean over a group, whichever micro-batches the group's completions fall into.
        epsilon_BT: clip widths in (0, 1).
        drift_coef: α ≥ 0.
        drift_cap: c > 0.
    """
    log_ratio_BT = logp_BT - old_logp_BT
    clipped_BT = torch.minimum(torch.maximum(log_ratio_BT, torch.log1p(-epsilon_BT)), torch.log1p(epsilon_BT))
    advantage_BT = advantage_B[:, None]
    gain_BT = torch.minimum(log_ratio_BT * advantage_BT, clipped_BT * advantage_BT)
    ratio_BT = log_ratio_BT.detach().clamp(max=math.log(1e4)).exp()
    drift_gradient_BT = (ratio_BT - 1).clamp(max=drift_cap) * logp_BT
    mask_BT = mask_BT.to(gain_BT.dtype)
    loss = -((gain_BT - drift_coef * drift_gradient_BT) * mask_BT / denominator_B[:, None]).sum()
    with torch.no_grad():
        tokens = mask_BT.sum().clamp(min=1)
        removed_BT = (gain_BT != log_ratio_BT * advantage_BT).to(mask_BT.dtype)
        k3_BT = ratio_BT - 1 - log_ratio_BT
        return CpgdLoss(loss, (removed_BT * mask_BT).sum() / tokens, (k3_BT * mask_BT).sum() / tokens)


def reference_kl(logp_BT: torch.Tensor, reference_BT: torch.Tensor, mask_BT: torch.Tensor, denominator_B: torch.Tensor) -> torch.Tensor:
    """The k3 estimate of KL(policy ‖ reference), weighted as ``cpgd_loss`` weights tokens, scalar: r − 1 − ln r with r = π_ref/π_θ.

    The term that the official scripts add to the CPG clip (LightRFT, ``--use_kl_loss --kl_estimator k3``), without a ratio before it.
    (They average it over each reply first; here it is averaged over the tokens of a group, as the rest of the loss is.)
    """
    log_ratio_BT = reference_BT - logp_BT
    k3_BT = log_ratio_BT.exp() - 1 - log_ratio_BT
    return (k3_BT * mask_BT / denominator_B[:, None]).sum()
