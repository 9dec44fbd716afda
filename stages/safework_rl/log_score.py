"""The log score of a stated confidence: a loss at the tokens that state it.

A policy gradient on a choice of probability p is proportional to p·(1 − p): a policy that is certain of every answer hardly learns to doubt
from being wrong, whatever that costs. The log score −log(1 − p) of a choice that should not have been made is a proper scoring rule, and
its gradient is largest where p is near 1 (Gneiting and Raftery 2007, "Strictly proper scoring rules, prediction, and estimation").
"""

from __future__ import annotations

import torch

FLOOR = 0.05
"""Added to 1 − p: the gradient's factor p/(1 − p) stays below its inverse."""


def log_score_loss(logp_BT: torch.Tensor, weight_BT: torch.Tensor) -> torch.Tensor:
    """Σ over completions of w·−log p where the confidence was right to state (w > 0), and of |w|·−log(1 − p + FLOOR) where not, scalar.

    Args:
        logp_BT: log-probabilities of the completion tokens under the policy that is trained, with gradient; p is the product over the
            tokens of the confidence.
        weight_BT: w at these tokens, 0 elsewhere.
    """
    stated_BT = weight_BT != 0
    weight_B = weight_BT.sum(1) / stated_BT.sum(1).clamp(min=1)
    logp_B = (logp_BT * stated_BT).sum(1)
    against_B = -torch.log1p(FLOOR - logp_B.exp())
    return torch.where(weight_B > 0, -weight_B * logp_B, -weight_B * against_B).sum()
