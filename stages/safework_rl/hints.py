"""Hints at what may be wrong with a run, from its curves. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

WINDOW = 10
"""Rollouts that are looked at together: the mean of one is mostly noise."""


def hints(history: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Hints by kind, of the rollouts so far.

    Args:
        history: the metrics of the first update of each rollout, oldest first; none need have every number.

    Returns:
        What compares needs 2·WINDOW rollouts: the first window is what the last one is compared with. λ and verifiers need one window of
        rollouts that have their numbers: one that did not draw a task has none of its.
    """
    hints_by_kind: dict[str, str] = {}
    recent, first = list(history[-WINDOW:]), list(history[:WINDOW])
    if len(_series(history, "search/lambda_pinned")) >= WINDOW and all(_series(history, "search/lambda_pinned")[-WINDOW:]):
        now = {name: _series(history, f"search/{name}")[-1] for name in ("lambda", "threshold", "reliability_ema")}
        hints_by_kind["lambda"] = (
            f"λ has been at its bound ({now['lambda']:.3g}) for {WINDOW} rollouts: the constraint (reliability ≥ {now['threshold']:.2g}, "
            f"now {now['reliability_ema']:.2f}) may be out of reach, or is inactive"
        )
    for name in sorted({key for step in history for key in step if key.startswith("verifier/") and not key.endswith("/std")}):
        values, spreads = _series(history, name)[-WINDOW:], _series(history, f"{name}/std")[-WINDOW:]
        same = len(values) == WINDOW and max(spreads) < 0.01 and max(values) - min(values) < 0.02
        if same and not name.endswith(("/format", "/language")):  # the form of a reply is meant to saturate
            hints_by_kind[f"saturated {name}"] = (
                f"{name} has been {fmean(values):.2f} for every reply of its last {WINDOW} rollouts: no learning signal"
            )
    if len(history) < 2 * WINDOW:
        return hints_by_kind
    reward, distinct = _change(first, recent, "reward"), _change(first, recent, "replies/distinct")
    if reward and distinct and reward[1] > reward[0] + 0.05 and distinct[1] < 0.7 and distinct[1] < distinct[0] - 0.2:
        hints_by_kind["repeating"] = (
            f"the reward rose from {reward[0]:.2f} to {reward[1]:.2f} while the replies of a group became the same "
            f"({distinct[0]:.0%} distinct at first, {distinct[1]:.0%} now): look at the samples, the verifier may be gamed"
        )
    length = _change(first, recent, "completions/mean_length")
    if length and length[1] < 0.5 * length[0]:
        hints_by_kind["length"] = f"replies fell from {length[0]:.0f} tokens to {length[1]:.0f}: check that the reasoning is still present"
    return hints_by_kind


def why_idle(steps: Sequence[Mapping[str, float]], skipped: int = 0) -> str:
    """Why steps made no update, as far as their numbers say.

    Args:
        steps: metrics of the steps; only the first one of a rollout has its groups' numbers.
        skipped: how many of them were skipped for a gradient that was not finite.
    """
    if skipped and skipped == len(steps):
        return f"the gradients of all {skipped} steps were NaN or infinite"
    reasons = []
    if skipped:
        reasons.append(f"{skipped} gradients were NaN or infinite")
    equal, zero = _series(steps, "groups/zero_variance"), _series(steps, "advantage/zero_share")
    if equal and min(equal) == 1:
        reasons.append("in every group all replies earned the same")
    elif zero and min(zero) == 1:
        reasons.append(
            "every advantage was 0, though the rewards of some groups differed: none of those had a right reply and a wrong one "
            "(filter_groups), or its replies could not be scored"
        )
    elif zero:
        reasons.append(f"the gradient was 0 although {1 - fmean(zero):.0%} of the groups had advantages")
    return "; ".join(reasons) or "the numbers of the groups do not say why"


CLIPPED, FORCE = 1e-3, 1e-2
"""Share of clipped tokens, and of the gradient that the drift cancels, below which CPGD's constants did not act."""


def idle_constants(steps: Sequence[Mapping[str, float]], beta: float) -> str | None:
    """A sentence where neither CPGD's clip nor its drift acted in any update of a run, and no KL held the policy either; else None.

    Args:
        steps: metrics of every update; those that are the first of their rollout cannot differ from the policy that sampled.
        beta: weight of the KL to the starting model.
    """
    later = [step for step in steps if "cpgd/log_ratio" in step and step["cpgd/log_ratio"] > 1e-6]
    if beta or not later:
        return None
    clipped, force, ratio = (max(step[f"cpgd/{name}"] for step in later) for name in ("clip_share", "drift_force", "log_ratio"))
    if clipped >= CLIPPED or force >= FORCE:
        return None
    return (
        f"only the learning rate held the policy: the clip removed {clipped:.2%} of the tokens at most, and the drift cancelled "
        f"{force:.2%} of the gradient (the mean |ln ratio| of an update was {ratio:.2g} at most); loss.epsilon near that number, "
        "loss.drift_coef near 1 or beta near 0.02 would hold it"
    )


def _series(steps: Sequence[Mapping[str, float]], name: str) -> list[float]:
    return [step[name] for step in steps if name in step]


def _change(first: Sequence[Mapping[str, float]], last: Sequence[Mapping[str, float]], name: str) -> tuple[float, float] | None:
    """Means of a number over the two windows, or None where one of them has none."""
    before, after = _series(first, name), _series(last, name)
    return (fmean(before), fmean(after)) if before and after else None
