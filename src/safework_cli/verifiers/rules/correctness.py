"""The rule of a row's answer type, and the check that gold answers meet it."""

from __future__ import annotations

from collections.abc import Sequence

from safework_cli.core.errors import InputError, nearest
from safework_cli.verifiers.contract import Exchange, Verdict, Verifier
from safework_cli.verifiers.rules.registry import rule_verifier

ANSWER_TYPES = ("choice", "choices", "math", "exact", "contains", "constraints")
"""The values of ``meta.answer_type``; each is the name of the rule that compares such an answer."""


class _NoRule:
    """Stands where no rule applies: every verdict is an error, because a missing rule is not a wrong answer."""

    name = "none"

    def __init__(self, why: str):
        self._why = why

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        return [Verdict(None, error=self._why) for _ in exchanges]


def rule_for(exchange: Exchange) -> Verifier:
    """The verifier of an exchange's answer, by ``meta.answer_type``. Where there is none, its verdicts are errors that say so."""
    kind = exchange.meta.get("answer_type")
    if kind in ANSWER_TYPES:
        return rule_verifier(str(kind))
    if kind is None and exchange.meta.get("constraints"):
        return rule_verifier("constraints")
    if kind is None:
        return _NoRule("the row has no meta.answer_type, so no rule can compare its answer")
    return _NoRule(f"meta.answer_type '{kind}' is not one of {', '.join(ANSWER_TYPES)}{nearest(str(kind), ANSWER_TYPES)}")


class CorrectnessRule:
    """Judges a mixed batch, each exchange by the rule of its answer type."""

    name = "correctness"
    version = 2  # answers of several letters
    rests_on = ANSWER_TYPES

    @staticmethod
    def gold_problem(exchange: Exchange) -> str | None:
        """The problem that the rule of the answer type finds; None without a gold answer or without such a rule."""
        kind = exchange.meta.get("answer_type")
        return rule_verifier(str(kind)).gold_problem(exchange) if exchange.answer is not None and kind in ANSWER_TYPES else None

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        verdicts: list[Verdict | None] = [None] * len(exchanges)
        batches: dict[int, tuple[Verifier, list[int]]] = {}
        for position, exchange in enumerate(exchanges):
            rule = rule_for(exchange)
            batches.setdefault(id(rule), (rule, []))[1].append(position)
        for rule, positions in batches.values():
            for position, verdict in zip(positions, rule.judge([exchanges[i] for i in positions]), strict=True):
                verdicts[position] = verdict
        return [verdict for verdict in verdicts if verdict is not None]


def check_golds(exchanges: Sequence[Exchange], sample: int = 50) -> None:
    """Refuses gold answers that would not score 1 themselves, before a run rests on them.

    Args:
        exchanges: their replies are ignored; each gold answer is judged as if it were the reply.
        sample: how many are compared with themselves, spread evenly over the sequence. Every one is asked for its size and form.

    Raises:
        InputError: names the first gold answer that fails, and how many do.
    """
    comparable = set(ANSWER_TYPES) - {"constraints"}
    golds = [e for e in exchanges if e.answer is not None and e.meta.get("answer_type") in comparable]
    problems = [(exchange, why) for exchange in golds if (why := CorrectnessRule.gold_problem(exchange)) is not None]
    if problems:
        exchange, why = problems[0]
        raise InputError(
            f"no reply can be compared with {len(problems)} of {len(golds)} gold answers, the first of them to {exchange.question[:80]!r}",
            why,
            "fix the answer or its meta.answer_type, or leave the row out",
        )
    step = max(1, -(-len(golds) // max(sample, 1)))
    tried = [Exchange(e.messages, str(e.answer), e.answer, e.harmful, e.meta) for e in golds[::step]]
    failed = [(e, v) for e, v in zip(tried, CorrectnessRule().judge(tried), strict=True) if v.score != 1.0]
    if failed:
        exchange, verdict = failed[0]
        raise InputError(
            f"{len(failed)} of {len(tried)} gold answers tried do not score 1, the first {exchange.answer!r} to {exchange.question[:80]!r}",
            verdict.error or f"the {exchange.meta['answer_type']} rule says '{verdict.label}' of it",
            "fix the answer or its meta.answer_type",
        )
