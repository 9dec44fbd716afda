"""Moves the decision's threshold to 0 in a trained model, by the scale of its last normalisation, at the least cost to everything else.

Training does not leave the threshold where it belongs: on held-out prompts it wanders by one to three nats while the training rows stay
the same, and an offset in the loss moved it by one and a half to four times the offset. Here it is moved once, after training. With the
output u of the last normalisation multiplied by 1 + ε, to first order

    log-odds of a verdict     change by  ε · a,   a = mean over the measured prompts of u ⊙ ∂(log-odds)/∂u
    log-probability of a token changes by  ε · b,   b = u ⊙ (w_token − E_p[w])    (w: rows of the output embedding)

and of all ε with ε · a = −threshold, the one with the least mean squared change of the replies' tokens is

    ε = −threshold · M⁻¹ a / (aᵀ M⁻¹ a),   M = mean of b bᵀ, the empirical Fisher information of ε:

one natural-gradient step (Amari 1998). Its cost is ½ εᵀ M ε nats a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from safework_cli.core.stage import WorkDir
from safework_cli.models.vision import base_of
from safework_sft.decision import Decision
from safework_sft.encode import IGNORE

NORMS = ("norm", "final_layernorm", "ln_f", "final_layer_norm")
"""Names of a decoder's last normalisation."""
ROWS = 64
"""Rows whose replies the cost is estimated on."""
ROUNDS, CLOSE = 3, 0.1
"""Corrections at most, since the change is linear to first order only; nats from 0 at which no further one is made."""
FAR = 0.5
"""Nats from 0 at which the threshold counts as not moved."""
DAMPING = 1e-3
"""Of M's mean diagonal, added to it."""


def least_change(effect_D: torch.Tensor, score_KD: torch.Tensor, by: float) -> tuple[torch.Tensor, float]:
    """ε (D,) with ε · effect = by at the least cost, and that cost in nats a token.

    Args:
        score_KD: b of K tokens.
    """
    fisher_DD = (score_KD.T @ score_KD).double() / len(score_KD)
    damped_DD = fisher_DD + DAMPING * fisher_DD.diagonal().mean() * torch.eye(len(fisher_DD), dtype=torch.float64)
    direction_D = torch.linalg.solve(damped_DD, effect_D.double())
    change_D = by * direction_D / (effect_D.double() @ direction_D)
    return change_D.float(), 0.5 * float(change_D @ fisher_DD @ change_D)


def move_threshold(
    model: Any, decision: Decision, input_ids: Sequence[list[int]], labels: Sequence[list[int]], work: WorkDir
) -> tuple[dict[str, float], str]:
    """Moves the threshold to 0, in the model's weights.

    Args:
        input_ids, labels: of training rows without images; every n-th of them counts.

    Returns:
        the threshold before and after, and the cost in nats a token of the replies; and why it is not near 0, empty where it is.
    """
    norm = last_norm(model)
    chosen = range(0, len(input_ids), max(1, len(input_ids) // ROWS))
    with work.progress.phase("move the verdict's threshold"), torch.no_grad():
        before = threshold = decision.threshold(decision.log_odds(model, work))
        if norm is None or not chosen:  # a finished training is not lost for it
            why = "no row is without images" if norm is not None else f"{type(base_of(model)).__name__} has none of {', '.join(NORMS)}"
            return {"before": round(before, 4), "after": round(before, 4), "cost": 0.0}, _why_not(before, why)
        kept, cost = [weight.detach().clone() for weight in norm.parameters()], 0.0
        for _ in range(ROUNDS):
            if abs(threshold) <= CLOSE:
                break
            score_KD = torch.cat([scores(model, input_ids[row], labels[row]) for row in chosen])
            change_D, once = least_change(decision.effect(model, head_input), score_KD, -threshold)
            scale(norm, change_D)
            cost += once
            threshold = decision.threshold(decision.log_odds(model, work))
        if abs(threshold) > abs(before):  # an architecture whose logits do not follow
            for weight, old in zip(norm.parameters(), kept, strict=True):
                weight.copy_(old)
            threshold, cost = before, 0.0
    figures = {"before": round(before, 4), "after": round(threshold, 4), "cost": round(cost, 6)}
    return figures, _why_not(threshold, f"the scale of the last normalisation moves it from {before:+.2f} no nearer to 0")


def _why_not(threshold: float, why: str) -> str:
    return f"the verdict's threshold is {threshold:+.2f}: {why}" if abs(threshold) > FAR else ""


def scores(model: Any, ids: Sequence[int], labels: Sequence[int]) -> torch.Tensor:
    """(K, D) b of a row's K supervised tokens."""
    device = base_of(model).device
    places = torch.tensor([place for place in range(len(ids) - 1) if labels[place + 1] != IGNORE], device=device)
    target_K = torch.tensor(labels, device=device)[places + 1]
    with head_input(model) as seen:
        logits_KV = model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0, places].float()
    weight_VD = base_of(model).get_output_embeddings().weight.float()
    u_KD = seen[0][0, places].float()
    return (u_KD * (weight_VD[target_K] - logits_KV.softmax(-1) @ weight_VD)).cpu()


@contextmanager
def head_input(model: Any) -> Iterator[list[torch.Tensor]]:
    """Over the body, what the output embedding is given."""
    seen: list[torch.Tensor] = []
    hook = base_of(model).get_output_embeddings().register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    try:
        yield seen
    finally:
        hook.remove()


def last_norm(model: Any) -> Any:
    """The normalisation whose output the output embedding is given; None where it has another name."""
    decoder = base_of(model).get_decoder()
    return next((getattr(decoder, name) for name in NORMS if hasattr(decoder, name)), None)


def scale(norm: Any, change_D: torch.Tensor) -> None:
    """Multiplies a normalisation's output by 1 + change. Some add 1 to their weight, as Gemma's do."""
    weight = norm.weight
    kept, probe = weight.detach().clone(), torch.ones_like(weight)[None]
    weight.zero_()
    adds_one = bool(norm(probe + torch.arange(len(weight), device=weight.device)).abs().sum() > 0) and getattr(norm, "bias", None) is None
    factor_D = 1 + change_D.to(weight.device, weight.dtype)
    weight.copy_((1 + kept) * factor_D - 1 if adds_one else kept * factor_D)
    if getattr(norm, "bias", None) is not None:
        norm.bias.mul_(factor_D)
