"""What RL counts of replies in which a rule finds no answer, rules with parameters in routes, and the rules in a run's identity."""

from __future__ import annotations

import pytest
import torch

from safework_cli.core.stage import Inputs, Plan
from safework_cli.data.row import Message, Row
from safework_cli.verifiers.contract import UNPARSED, Verdict
from safework_cli.verifiers.rules import registry
from safework_rl.m3.config import M3Config
from safework_rl.m3.stage import stage
from safework_rl.measures import step_measures
from safework_rl.routing import check_routes
from safework_rl.step import Batch, Trajectory


def test_unread_replies_are_a_measure_of_their_own():
    def sample(*labels: str) -> Trajectory:
        verdicts = {f"v{i}": Verdict(float(label == "correct"), label) for i, label in enumerate(labels)}
        return Trajectory(0, [1], [2], [1], [0.0], "r", reward=0.0, correct=False, verdicts=verdicts)

    drawn = [[sample("correct"), sample("wrong"), sample(UNPARSED, "ok"), sample("ok", UNPARSED)]]
    ids_BT = torch.ones(4, 1, dtype=torch.long)
    tensors = (*[ids_BT] * 5, ids_BT.float(), torch.zeros(4), ids_BT[:, 0])
    batch = Batch(0, drawn, drawn, drawn, 1, 0, torch.zeros(1, 4), *tensors, {})
    assert step_measures(batch, [Row("r", "knowledge", [Message(role="user", content="q")])])["unparsed"] == 0.5


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("choice", None),
        ("rule:choice", None),
        ("choise", "did you mean 'choice'"),
        ("choice{depth: 2}", "has no parameter 'depth'"),
    ],
)
def test_routes_name_rules_as_everywhere(name, problem):
    plan = Plan()
    check_routes(plan, {"knowledge": {name: 1.0}}, {"knowledge"}, Inputs({}))
    assert [refusal.what for refusal in plan.refusals] == [] if problem is None else problem in plan.refusals[0].what


def test_a_rule_of_another_version_is_another_run(monkeypatch):
    config = M3Config(rewards={"knowledge": {"choice": 1.0}})
    before = stage.external_digests(config)
    assert {"rule:choice", "rule:correctness", "rule:format", "rule:language", "rule:refusal"} == set(before)
    monkeypatch.setattr(registry.rule_class("choice"), "version", 99)
    after = stage.external_digests(config)
    assert {name for name in before if before[name] != after[name]} == {"rule:choice", "rule:correctness"}
