"""The measures of a step, for its log: scores of each verifier, refusals, distinct replies. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from statistics import fmean, pstdev

from safework_cli.data.row import Row
from safework_cli.verifiers.contract import UNPARSED
from safework_rl.bias import bias_measures
from safework_rl.step import Batch, Group, flat

ADVANTAGES = "advantage/nonzero"
"""A number of each update: the share of its replies that have an advantage."""
DISTILLED = "distilled"
"""A number of each update of a run in which a task has no reward: the share of its replies that only the KL to the reference trains on."""


def learns(step: Mapping[str, float]) -> bool:
    """Whether an update had a gradient that came of rewards, or of the KL on replies without a reward: that of a drift, of a KL on other
    replies or of a router does not count."""
    return step.get("grad_norm") != 0 and (step.get(ADVANTAGES, 1.0) > 0 or step.get(DISTILLED, 0.0) > 0)


def step_measures(batch: Batch, rows: Sequence[Row], unrewarded: Collection[str] = ()) -> dict[str, float]:
    """Metrics by name, of the groups as drawn: groups that were sampled to replace others were chosen by what they earned. What concerns
    rewards leaves out the tasks without one, and is missing where no other was drawn.

    unparsed: share of replies in which a rule found no answer that it can compare; their score is 0, and wrong answers are not among them.
    verifier/TASK/NAME and …/std: mean and standard deviation of a verifier's score.
    groups/zero_variance, groups/zero_variance/TASK: share of groups whose replies all earn the same; groups/replaced: groups sampled again.
    choice/…, verdict/…, refusal/…: habits of the policy (``bias.bias_measures``).
    replies/distinct: different replies of a group as a share of its replies, mean over groups.
    advantage/zero_share: share of the groups that are trained on in which no reply has an advantage.
    """
    samples = flat(batch.drawn)
    judged_groups = [group for group in batch.drawn if rows[group[0].row].task not in unrewarded]
    judged = flat(judged_groups)
    rewards = [sample.reward for sample in samples if not math.isnan(sample.reward)]
    prompts, replies = [rows[group[0].row] for group in batch.drawn], [[sample.reply for sample in group] for group in batch.drawn]
    measures = {
        "groups/replaced": float(batch.replaced),
        "groups/attempts": float(batch.attempts),
        "completions/mean_length": fmean(sample.length for sample in samples),
        "completions/clipped_ratio": fmean(sample.truncated for sample in samples),
        "replies/distinct": fmean(len({sample.reply for sample in group}) / len(group) for group in batch.drawn),
    }
    if judged:
        trained_on = [rows[group[0].row].task not in unrewarded for group in batch.kept]
        measures |= {
            "unscorable": 1 - len(rewards) / len(judged),
            "unparsed": fmean(any(v.label == UNPARSED for v in sample.verdicts.values()) for sample in judged),
            "groups/zero_variance": fmean(all_equal(group) for group in judged_groups),
            "advantage/zero_share": float((batch.advantage_NG[trained_on] == 0).all(dim=1).float().mean()),
        }
    if rewards:
        right = [sample.correct for sample in samples if sample.correct is not None]
        measures |= {"reward": fmean(rewards), "reward_std": pstdev(rewards), "correct": fmean(right)}
    scores: dict[str, list[float]] = {}
    for sample in samples:
        for name, verdict in sample.verdicts.items():
            if verdict.score is not None:
                scores.setdefault(f"verifier/{rows[sample.row].task}/{name}", []).append(verdict.score)
    for name in sorted(scores):
        measures |= {name: fmean(scores[name]), f"{name}/std": pstdev(scores[name])}
    return measures | _zero_variance(judged_groups, rows) | bias_measures(prompts, replies)


def _zero_variance(groups: Sequence[Group], rows: Sequence[Row]) -> dict[str, float]:
    equal: dict[str, list[bool]] = {}
    for group in groups:
        equal.setdefault(rows[group[0].row].task, []).append(all_equal(group))
    return {f"groups/zero_variance/{task}": fmean(values) for task, values in sorted(equal.items())}


def all_equal(group: Group) -> bool:
    """Whether the scored replies of a group all earn the same: it gives no advantage by rewards."""
    rewards = [sample.reward for sample in group if not math.isnan(sample.reward)]
    return not rewards or max(rewards) - min(rewards) < 1e-6
