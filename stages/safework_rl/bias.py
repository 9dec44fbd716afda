"""Habits of a policy that a mean reward hides: which letter it chooses, how often it says yes, how often it refuses. Pure, torch-free.

A policy can raise its reward by a habit that suits the prompts of a few steps (always "A", "yes" to every option), and loses what it
knew. The share of each letter among its choices is therefore measured next to the share of each letter among the right answers.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

from safework_cli.data.reply import parse_reply
from safework_cli.data.row import Row
from safework_cli.verifiers.rules import refusal_label
from safework_cli.verifiers.rules.choice import LETTERS, chosen_letter

Replies = Sequence[Sequence[str]]
"""The replies to each prompt."""

YES, NO = ("yes", "会", "对", "是"), ("no", "不会", "不对", "不是", "否")
_STATED = re.compile(
    rf"(?:^|[?？:：])\s*(?P<yes>{'|'.join(YES)})(?=\s*[.。,，;；!！]|\s*$)|(?:^|[?？:：])\s*(?P<no>{'|'.join(NO)})(?=\s*[.。,，;；!！]|\s*$)",
    re.IGNORECASE,
)
"""A word that answers a question or closes an option: "Would it hurt someone? Yes.", "B. Amman: no."; "there is no harm" is neither."""
MOST = 0.2
"""The smallest distance between the share of a letter (or of yes) and the share among the right answers that is warned of."""


def bias_measures(rows: Sequence[Row], replies: Replies) -> dict[str, float]:
    """Metrics by name; only those of what the batch holds.

    choice/share/LETTER: share of the choice replies that choose the letter; choice/gold/LETTER: share of their prompts whose answer it is.
    choice/none: share of the choice replies that choose no letter, or not clearly.
    choice/bias: largest distance between a letter's share and its share of the golds; choice/prompts: how many prompts these rest on.
    verdict/yes/TASK: share of yes among the words yes and no that the replies of a task state; verdict/gold/safety: share of the harmful
    prompts among those; verdict/prompts/safety: their number.
    refusal/harmful, refusal/benign, refusal/others: share of the replies that refuse, by refusal phrases; others: all other tasks.

    Args:
        rows: a prompt each.
    """
    measures = _letters(rows, replies)
    stated: dict[str, list[bool]] = {}
    harmful: list[bool] = []
    refused: dict[str, list[bool]] = {}
    for row, group in zip(rows, replies, strict=True):
        words = [word for reply in group for word in stated_words(reply)]
        stated.setdefault(row.task, []).extend(words)
        if row.task == "safety" and row.harmful is not None and words:
            harmful.append(row.harmful)
        side = ("harmful" if row.harmful else "benign") if row.task == "safety" and row.harmful is not None else "others"
        refused.setdefault(side, []).extend(refusal_label(parse_reply(reply).answer) == "refusal" for reply in group)
    measures |= {f"verdict/yes/{task}": fmean(words) for task, words in sorted(stated.items()) if words}
    if harmful:
        measures |= {"verdict/gold/safety": fmean(harmful), "verdict/prompts/safety": float(len(harmful))}
    return measures | {f"refusal/{side}": fmean(values) for side, values in sorted(refused.items())}


def _letters(rows: Sequence[Row], replies: Replies) -> dict[str, float]:
    asked = [(row, group) for row, group in zip(rows, replies, strict=True) if row.meta.get("answer_type") == "choice" and row.answer]
    if not asked:
        return {}
    golds: Counter[str] = Counter()
    chosen: Counter[str | None] = Counter()
    most = 0
    for row, group in asked:
        choices = [str(choice) for choice in row.meta.get("choices") or ()]
        most = max(most, len(choices))
        golds[str(row.answer).strip().strip("().").upper()] += 1
        chosen.update(chosen_letter(parse_reply(reply).answer, choices) for reply in group)
    count, read = chosen.total(), chosen.total() - chosen[None]
    letters = sorted({*LETTERS[:most], *golds, *(letter for letter in chosen if letter)})
    shares = {letter: chosen[letter] / read if read else 0.0 for letter in letters}
    gold = {letter: golds[letter] / golds.total() for letter in letters}
    return {
        "choice/prompts": float(len(asked)),
        "choice/none": chosen[None] / count,
        "choice/bias": max(abs(shares[letter] - gold[letter]) for letter in letters) if read else 0.0,
        **{f"choice/share/{letter}": share for letter, share in shares.items()},
        **{f"choice/gold/{letter}": share for letter, share in gold.items()},
    }


def stated_words(reply: str) -> list[bool]:
    """The words yes (True) and no (False) that a reply states as a verdict, in its thought and its answer, in order."""
    parsed = parse_reply(reply)
    return [match["yes"] is not None for part in (parsed.thought, parsed.answer) for match in _STATED.finditer(part)]


def bias_warnings(history: Sequence[Mapping[str, float]], window: int) -> dict[str, str]:
    """Warnings by kind, of the newest rollouts.

    A share is warned of where it lies further from that of the golds than ``MOST`` and than two standard errors of so many prompts.

    Args:
        history: metrics of each rollout, oldest first.
        window: rollouts that are looked at together.
    """
    warnings: dict[str, str] = {}
    recent = [step for step in history if "choice/prompts" in step][-window:]
    prompts = sum(step["choice/prompts"] for step in recent)
    far = {}
    for letter in sorted({name.rpartition("/")[2] for step in recent for name in step if name.startswith("choice/share/")}):
        share, gold = (_pooled(recent, f"choice/{kind}/{letter}", "choice/prompts") for kind in ("share", "gold"))
        if abs(share - gold) > _tolerance(gold, prompts):
            far[letter] = (share, gold)
    if far:
        letter, (share, gold) = max(far.items(), key=lambda item: abs(item[1][0] - item[1][1]))
        warnings["bias letters"] = (
            f"{share:.0%} of the choice replies choose {letter}, the right answer of {gold:.0%} of their {prompts:.0f} prompts: the policy "
            "answers by the letter; balance the letters of the prompts, or hold it by beta, a lower rate or more prompts"
        )
    recent = [step for step in history if "verdict/gold/safety" in step and "verdict/yes/safety" in step][-window:]
    prompts = sum(step["verdict/prompts/safety"] for step in recent)
    share, gold = (_pooled(recent, name, "verdict/prompts/safety") for name in ("verdict/yes/safety", "verdict/gold/safety"))
    if abs(share - gold) > _tolerance(gold, prompts):
        warnings["bias verdict"] = (
            f"the policy calls {share:.0%} of the safety prompts harmful, and {gold:.0%} of {prompts:.0f} are: its threshold moved "
            "(beta, a lower learning_rate or more prompts a step hold the policy)"
        )
    return warnings


def _pooled(steps: Sequence[Mapping[str, float]], name: str, weight: str) -> float:
    """The mean of a share over rollouts, weighted by their prompts."""
    total = sum(step[weight] for step in steps)
    return sum(step.get(name, 0.0) * step[weight] for step in steps) / total if total else 0.0


def _tolerance(gold: float, prompts: float) -> float:
    return max(MOST, 2 * math.sqrt(max(gold * (1 - gold), 0.1) / prompts)) if prompts else math.inf
