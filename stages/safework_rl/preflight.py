"""Before a run: replies that are known to be good must score 1, and junk 0. A reward that fails this would train something else."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from statistics import fmean

from safework_cli.core.errors import InputError
from safework_cli.data.reply import language_of
from safework_cli.data.row import Row
from safework_cli.verifiers.contract import Verdict
from safework_cli.verifiers.rules import bare_name
from safework_rl.objectives import Objective, Scored

REFUSAL = {"en": "I can't help with that, because somebody could be hurt.", "zh": "抱歉，我不能提供帮助，因为这会伤害别人。"}
COMPLIANCE = {"en": "Sure, this is how it is done, step by step.", "zh": "好的，下面一步一步地说明怎么做。"}
NONSENSE = {"en": "Purple xylophones seldom quarrel.", "zh": "紫色的木琴很少吵架。"}


def preflight(
    objective: Objective,
    rows: Sequence[Row],
    tasks: Collection[str],
    trained: Collection[str],
    sample: int,
    registered: Collection[str] = (),
) -> None:
    """Tries gold and junk replies on rows of every task.

    A rule that decides a task must give every gold reply 1 and every junk reply 0, and where a task's verifiers are all rules the whole
    reward of a gold reply must be 1. A trained verifier makes errors, and its best class need not be a refusal: it must score gold
    above junk, on average. A task that a registered reward decides is not tried: no reply is known to be good.

    Args:
        trained: names of verifiers that are models.
        registered: names of registered rewards.
        sample: rows of a task that are tried, spread evenly; 0 tries none.

    Raises:
        InputError: names the first reply that was judged wrongly, and by whom.
    """
    for task in sorted(tasks) if sample else ():
        of_task = [row for row in rows if row.task == task]
        tried = of_task[:: max(1, math.ceil(len(of_task) / sample))]
        deciding = objective.deciding(task)
        if deciding in registered:
            continue
        scores: dict[str, list[float]] = {}
        for kind, answer_of in (("gold", gold_answer), ("junk", junk_answer)):
            pairs = [(row, answer) for row in tried if (answer := answer_of(row, deciding)) is not None]
            if not pairs:
                continue
            scored = objective.try_answers([row for row, _ in pairs], [answer for _, answer in pairs])
            scores[kind] = [_score(row, answer, deciding, own) for (row, answer), own in zip(pairs, scored.verdicts, strict=True)]
            if deciding not in trained:
                _refuse_wrong(pairs, scores[kind], 1.0 if kind == "gold" else 0.0, kind, deciding)
            if kind == "gold":
                _refuse_short(pairs, scored, {*trained, *registered})
        if deciding in trained and len(scores) == 2 and not fmean(scores["gold"]) > fmean(scores["junk"]):
            raise InputError(
                f"the verifier '{deciding}' of the task '{task}' scores gold replies {fmean(scores['gold']):.2f} and junk "
                f"{fmean(scores['junk']):.2f} on average, over {len(scores['gold'])} rows",
                "a policy that is trained on it would learn the junk",
                "train the verifier better, or route the task to another one (preflight=0 runs without this check)",
            )


def gold_answer(row: Row, deciding: str) -> str | None:
    """An answer that the deciding verifier must give 1; None where none can be made without a model."""
    if _about_refusing(row, deciding):
        return (REFUSAL if row.harmful else COMPLIANCE)[language_of(row.question)]
    return str(row.answer) if row.answer is not None and _comparable(row, deciding) else None


def junk_answer(row: Row, deciding: str) -> str | None:
    """An answer that it must give 0; None where nonsense may be right (a constraint may well be met by it)."""
    if _about_refusing(row, deciding):
        return (COMPLIANCE if row.harmful else REFUSAL)[language_of(row.question)]
    return NONSENSE[language_of(row.question)] if _comparable(row, deciding) else None


def _about_refusing(row: Row, deciding: str) -> bool:
    return bare_name(deciding) == "refusal" or row.task == "safety"


def _comparable(row: Row, deciding: str) -> bool:
    return bare_name(deciding) not in ("format", "language", "constraints") and not row.meta.get("constraints")


def _score(row: Row, answer: str, deciding: str, verdicts: dict[str, Verdict]) -> float:
    for name, verdict in verdicts.items():
        if verdict.error is not None:
            raise InputError(
                f"the verifier '{name}' cannot score the reply {answer!r} to row {row.id}: {verdict.error}",
                "what fails on a known reply fails on sampled ones",
                "fix the row (meta.answer_type, harmful) or the verifier",
            )
    score = verdicts[deciding].score
    assert score is not None
    return score


def _refuse_wrong(pairs: Sequence[tuple[Row, str]], scores: Sequence[float], wanted: float, kind: str, deciding: str) -> None:
    wrong = [(row, answer, score) for (row, answer), score in zip(pairs, scores, strict=True) if score != wanted]
    if wrong:
        row, answer, score = wrong[0]
        raise InputError(
            f"{len(wrong)} of {len(pairs)} {kind} replies of the task '{row.task}' do not score {wanted:g}: the verifier '{deciding}' "
            f"gives {score:g} to {answer!r} on row {row.id} ({row.question[:80]!r})",
            "a reward that is wrong about known replies trains towards something else",
            "fix the gold answer or its meta.answer_type, or route the task to another verifier (preflight=0 runs without this check)",
        )


def _refuse_short(pairs: Sequence[tuple[Row, str]], scored: Scored, trained: Collection[str]) -> None:
    """Refuses a gold reply whose whole reward is below 1 although every verifier of it is a rule."""
    for (row, answer), reward, verdicts in zip(pairs, scored.reward, scored.verdicts, strict=True):
        if reward < 1 - 1e-6 and not set(verdicts) & set(trained):
            parts = ", ".join(f"{name} {verdict.score:g}" for name, verdict in verdicts.items() if verdict.score is not None)
            raise InputError(
                f"the gold reply {answer!r} to row {row.id} earns {reward:.2f} and not 1 ({parts})",
                "no reply could earn the whole reward of this task",
                f"look at rewards.{row.task} and at the row; language.mode=off where answers are in another language than their questions",
            )
