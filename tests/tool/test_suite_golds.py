"""Every gold answer of every registered set, given as the reply, scores 1 under the rule of its row."""

from __future__ import annotations

from pathlib import Path

import pytest

from safework_cli.data.suites import SUITES, TRAINING_SETS
from safework_cli.verifiers import Exchange
from safework_cli.verifiers.rules import rule_for, rule_verifier

SETS = {name: suite for name, suite in (dict(SUITES) | TRAINING_SETS).items() if suite.tried}
COMPARED = ("choice", "choices", "math", "exact", "contains")


@pytest.mark.parametrize("name", sorted(SETS))
def test_every_gold_answer_of_a_set_equals_itself(real_data: Path, name: str) -> None:
    suite = SETS[name]
    rows = [row for row in suite.read(suite, suite.path(real_data)) if row.answer is not None and row.meta.get("answer_type") in COMPARED]
    golds = [Exchange(row.messages, str(row.answer), row.answer, row.harmful, row.meta) for row in rows]
    verdicts = rule_verifier("correctness").judge(golds)
    assert [(gold.answer, verdict) for gold, verdict in zip(golds, verdicts, strict=True) if verdict.score != 1.0] == []
    assert {rule_for(gold).name for gold in golds} <= set(COMPARED)


def test_the_sets_with_answers_are_those_that_are_compared(real_data: Path) -> None:
    """A set whose answers no rule compares is named here, so that none is left out by accident."""
    uncompared = set()
    for name, suite in SETS.items():
        rows = list(suite.read(suite, suite.path(real_data)))
        if any(row.answer is not None and row.meta.get("answer_type") not in COMPARED for row in rows):
            uncompared.add(name)
    assert [name for name in uncompared if not name.endswith("-judged")] == []  # those are judged by models: their label is in meta
