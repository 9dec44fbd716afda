"""How far the engine that samples is from the policy that is trained: when that ends a run, and what it is corrected by. Pure."""

from __future__ import annotations

from typing import NamedTuple

import torch


class EngineRatio(NamedTuple):
    """π_old/π_sampled of the tokens of a rollout.

    Attributes:
        capped_BT: what each token's loss is multiplied by; 1 where nothing was sampled.
        mean: over the sampled tokens, without the cap.
        capped_share: share of the sampled tokens above the cap.
    """

    capped_BT: torch.Tensor
    mean: float
    capped_share: float


def engine_ratio(old_logp_BT: torch.Tensor, sampled_logp_BT: torch.Tensor, mask_BT: torch.Tensor, cap: float) -> EngineRatio:
    """min(π_old/π_sampled, cap) of each token: truncated importance sampling (TRL's ``token_truncate``).

    Args:
        old_logp_BT: as the trainer computes them, before the first update on the rollout.
        sampled_logp_BT: as the engine returned them.
        mask_BT: 1 on sampled tokens.
    """
    kept_BT = mask_BT.bool()
    ratio_BT = (old_logp_BT - sampled_logp_BT).masked_fill(~kept_BT, 0.0).exp()
    ratio_N = ratio_BT[kept_BT]
    return EngineRatio(ratio_BT.clamp(max=cap), float(ratio_N.mean()), float((ratio_N > cap).float().mean()))


def gap_limit(asked: float | None, first: float | None, *, in_bf16: bool) -> float:
    """The gap between sampled and trained log-probabilities from which a run stops, in nats a token.

    A healthy gap is about 1e-7 in float32. In bfloat16 it grows with the model: 2e-3 at SmolLM2-135M, 3e-3 at Qwen2.5-0.5B's shape, 3e-2
    at Qwen2.5-7B's with its weights in bfloat16 too (benchmarks/rl_step.py, random weights).

    Args:
        asked: what the user set; it is used as it is.
        first: the first rollout's gap; later ones may be ten times as large, and the limit is at least a tenth of the absolute one.
    """
    if asked is not None:
        return asked
    absolute = 0.1 if in_bf16 else 1e-3
    return absolute if first is None else min(absolute, max(absolute / 10, 10 * first))
