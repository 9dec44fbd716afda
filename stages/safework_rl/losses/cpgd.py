"""Clipped policy gradient with policy drift (CPGD, arXiv 2505.12504), token level: settings, the loss, and its pure functions.

Torch-free when it is imported. Shapes: B completions, T completion tokens.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from safework_cli.core.settings import Settings
from safework_rl.losses.contract import Loss, LossInput, LossValue, Weighting

if TYPE_CHECKING:
    import torch


class CpgdSettings(Settings):
    """CPGD's constants. Its paper states none; these are the public implementations' (docs/safeladder.md 3.3). All except the weighting
    act on how far the policy has moved since it sampled: from a rollout's second update on (steps_per_generation, num_iterations)."""

    epsilon: float = Field(0.2, gt=0, lt=1)
    """Clip width on the ratio."""
    tight: float = Field(1.0, ge=0, le=1)
    """1: the same width at every token; below 1: tight at the start of a reply, loose at its end."""
    drift_coef: float = Field(1e-3, ge=0, le=1000)
    """Weight of the policy drift. It balances an advantage A where drift_coef × (ratio − 1) = A: with weighting=std, advantages are
    about 1, and a weight of 1 lets a ratio reach about 2, of 5 about 1.2. At 1e-3, with drift_cap=2, it balances advantages below 0.002
    only."""
    drift_cap: float = Field(2.0, gt=0, le=1e6)
    """Cap of the drift's gradient factor."""
    weighting: Weighting = "std"
    """Weight of a group's advantages: 1; 1/std (the sample's, as in TRL, siiRL and LightRFT); or N over the groups that vary."""


class Cpgd(Loss[CpgdSettings]):
    """CPGD by its settings."""

    Settings = CpgdSettings
    on_policy = "the policy that is trained is the one that sampled, so loss.epsilon, tight, drift_coef and drift_cap have no effect"

    @property
    def weighting(self) -> Weighting:
        return self.settings.weighting

    def unused(self) -> list[str]:
        given = self.settings.model_fields_set
        return ["loss.drift_cap has no effect with loss.drift_coef=0"] if not self.settings.drift_coef and "drift_cap" in given else []

    def __call__(self, batch: LossInput) -> LossValue:
        result = cpgd_loss(
            batch.logp_BT,
            batch.old_logp_BT,
            batch.advantage_B,
            batch.mask_BT,
            batch.denominator_B,
            epsilon_BT=epsilon_schedule(batch.mask_BT, self.settings.epsilon, self.settings.tight),
            drift_coef=self.settings.drift_coef,
            drift_cap=self.settings.drift_cap,
            engine_ratio_BT=batch.engine_ratio_BT,
        )
        return LossValue(result.loss, {f"cpgd/{name}": value for name, value in result._asdict().items() if name != "loss"})


class CpgdLoss(NamedTuple):
    """The loss and what is logged with it, all scalars.

    Attributes:
        loss: to be minimised.
        clip_share: share of tokens whose policy gradient the clip removed.
        drift: mean k3 estimate of KL(old ‖ new) per token, in nats.
        log_ratio: mean |ln r| per token: what ln(1 ± ε) is compared with.
        drift_force: the drift's gradient factors, α·|min(r−1, c)|, as a share of the advantages |A| that they pull against.
    """

    loss: torch.Tensor
    clip_share: torch.Tensor
    drift: torch.Tensor
    log_ratio: torch.Tensor
    drift_force: torch.Tensor


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
    engine_ratio_BT: torch.Tensor | None = None,
) -> CpgdLoss:
    """The practical CPGD objective.

    With r = π_θ/π_old of a token and A its completion's advantage,

        J = −Σ 1/denominator · [ min(ln r·A, clip(ln r, ln(1−ε), ln(1+ε))·A) − α·min(sg(r)−1, c)·ln π_θ ]

    The drift term's *value* has no meaning; its gradient is that of the k3 estimator of the forward KL with the gradient's factor
    clipped at c. (Clipping the estimator itself would push a ratio that ran away further out.)

    Args:
        logp_BT, old_logp_BT: log-probabilities of the sampled tokens under the trained and the sampling policy.
        advantage_B: group-relative advantages, already weighted.
        mask_BT: 1 on tokens that the policy sampled.
        denominator_B: as in ``LossInput``: the paper's mean over prompts of the token mean over a group.
        epsilon_BT: clip widths in (0, 1).
        drift_coef: α ≥ 0.
        drift_cap: c > 0.
        engine_ratio_BT: see ``LossInput``; the whole of a token's term is multiplied by it.
    """
    import torch

    log_ratio_BT = logp_BT - old_logp_BT
    clipped_BT = torch.minimum(torch.maximum(log_ratio_BT, torch.log1p(-epsilon_BT)), torch.log1p(epsilon_BT))
    advantage_BT = advantage_B[:, None]
    gain_BT = torch.minimum(log_ratio_BT * advantage_BT, clipped_BT * advantage_BT)
    ratio_BT = log_ratio_BT.detach().clamp(max=math.log(1e4)).exp()
    drift_factor_BT = (ratio_BT - 1).clamp(max=drift_cap)
    mask_BT = mask_BT.to(gain_BT.dtype)
    weight_BT = mask_BT if engine_ratio_BT is None else mask_BT * engine_ratio_BT
    loss = -((gain_BT - drift_coef * drift_factor_BT * logp_BT) * weight_BT / denominator_B[:, None]).sum()
    with torch.no_grad():
        tokens = mask_BT.sum().clamp(min=1)
        removed_BT = (gain_BT != log_ratio_BT * advantage_BT).to(mask_BT.dtype)
        k3_BT = ratio_BT - 1 - log_ratio_BT
        pull, push = (drift_factor_BT.abs() * mask_BT).sum(), (advantage_BT.abs() * mask_BT).sum()
        return CpgdLoss(
            loss,
            (removed_BT * mask_BT).sum() / tokens,
            (k3_BT * mask_BT).sum() / tokens,
            (log_ratio_BT.abs() * mask_BT).sum() / tokens,
            drift_coef * pull / push.clamp(min=1e-9) if push > 0 else torch.zeros(()),
        )
