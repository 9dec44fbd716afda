"""Rule verifiers: what can be decided without a model. Torch-free, each an object that meets the ``Verifier`` protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from safework_cli.errors import ConfigError, InputError, nearest
from safework_cli.verifiers.contract import Exchange, Verdict, Verifier
from safework_cli.verifiers.rules.choice import ChoiceRule
from safework_cli.verifiers.rules.constraints import ConstraintsRule
from safework_cli.verifiers.rules.form import FormatRule, LanguageRule
from safework_cli.verifiers.rules.mathematics import MathRule
from safework_cli.verifiers.rules.refusal import RefusalRule, refusal_label
from safework_cli.verifiers.rules.text import ContainsRule, ExactRule, F1Rule

__all__ = ["CorrectnessRule", "RefusalRule", "check_golds", "refusal_label", "rule_for", "rule_names", "rule_verifier"]

CORRECTNESS = ("choice", "math", "exact", "contains", "constraints")
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
    if kind in CORRECTNESS:
        return rule_verifier(str(kind))
    if kind is None and exchange.meta.get("constraints"):
        return rule_verifier("constraints")
    if kind is None:
        return _NoRule("the row has no meta.answer_type, so no rule can compare its answer")
    return _NoRule(f"meta.answer_type '{kind}' is not one of {', '.join(CORRECTNESS)}{nearest(str(kind), CORRECTNESS)}")


class CorrectnessRule:
    """Judges a mixed batch, each exchange by the rule of its answer type."""

    name = "correctness"

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


_MAKERS: dict[str, Callable[[], Verifier]] = {
    "choice": ChoiceRule,
    "constraints": ConstraintsRule,
    "contains": ContainsRule,
    "correctness": CorrectnessRule,
    "exact": ExactRule,
    "f1": F1Rule,
    "format": FormatRule,
    "language": LanguageRule,
    "math": MathRule,
    "refusal": RefusalRule,
}


def rule_names() -> list[str]:
    return sorted(_MAKERS)


@cache
def _made(name: str) -> Verifier:
    return _MAKERS[name]()


def rule_verifier(name: str) -> Verifier:
    """The rule of a name, one object for the process (the mathematics rule owns a worker process).

    Raises:
        ConfigError: there is no such rule; names the nearest.
    """
    if name not in _MAKERS:
        raise ConfigError(f"there is no rule verifier '{name}'{nearest(name, rule_names())}", "", f"one of: {', '.join(rule_names())}")
    return _made(name)


def check_golds(exchanges: Sequence[Exchange], sample: int = 50) -> None:
    """Refuses gold answers that would not score 1 themselves, before a run rests on them.

    Args:
        exchanges: their replies are ignored; each gold answer is judged as if it were the reply.
        sample: how many are tried, spread evenly over the sequence.

    Raises:
        InputError: names the first gold answer that fails, and how many do.
    """
    comparable = set(CORRECTNESS) - {"constraints"}
    golds = [e for e in exchanges if e.answer is not None and e.meta.get("answer_type") in comparable]
    step = max(1, -(-len(golds) // max(sample, 1)))
    tried = [Exchange(e.messages, str(e.answer), e.answer, e.harmful, e.meta) for e in golds[::step]]
    failed = [(e, v) for e, v in zip(tried, CorrectnessRule().judge(tried), strict=True) if v.score != 1.0]
    if failed:
        exchange, verdict = failed[0]
        raise InputError(
            f"{len(failed)} of {len(tried)} gold answers tried do not score 1, the first {exchange.answer!r} to {exchange.question[:80]!r}",
            verdict.error or f"the {exchange.meta['answer_type']} rule says '{verdict.label}' of it",
            "mend the answer or its meta.answer_type",
        )
