"""A reply in which a rule finds no answer is counted as unparsed in samples, summary and gates; a suite can name its rule."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from safework_cli.core.errors import ConfigError
from safework_cli.data.row import Message, Row
from safework_cli.verifiers.rules import registry, rule_digest
from safework_eval.config import EvalConfig
from safework_eval.gates import Gate, failed_gates
from safework_eval.samples import RecordedReply, ScoredSample, read_samples, write_samples
from safework_eval.scoring import measure, panel_for, rule_judge
from safework_eval.selection import PlannedSuite
from safework_eval.stage import stage
from safework_eval.summary import Conditions, summarise

METALS = ["iron", "copper", "gold", "silver"]
REPLIES = [
    "<think>hm</think>The answer is C.",  # right
    "<think>hm</think>The answer is A.",  # wrong, and read
    "<think>hm</think>It depends on what you mean.",  # no letter
    "<think>hm</think>A or C",  # two letters
    "<think>The answer is C",  # no answer
]


def suite_of(judge: str = "auto", metric: str = "knowledge") -> PlannedSuite:
    rows = [
        Row(f"r{i}", "knowledge", [Message(role="user", content="Which?")], answer="C", harmful=True,
            meta={"answer_type": "choice", "choices": METALS})
        for i in range(len(REPLIES) + 1)
    ]  # fmt: skip
    return PlannedSuite("metals", metric, tuple(rows), "", judge)  # type: ignore[arg-type]


def evaluated(suite: PlannedSuite):
    panel = panel_for(suite, {}, 1)
    replies = [RecordedReply(text, 5, 3, "stop") for text in REPLIES] + [RecordedReply("", 0, 3, "model_length", "the prompt is too long")]
    samples = [ScoredSample("metals", row, reply) for row, reply in zip(suite.rows, replies, strict=True)]
    for sample in samples[: len(REPLIES)]:
        (verdict,) = panel.first.load().judge([sample.exchange()])  # type: ignore[list-item]
        outcome = measure(suite.metric, panel.first, verdict, sample)
        sample.judge = panel.first.id
        sample.verdicts[sample.judge], sample.outcomes[sample.judge], sample.errors[sample.judge] = verdict, outcome.value, outcome.error
    conditions = Conditions(max_tokens=8, temperature=0.0, top_p=1.0, seed=None, template_hash="t", engine="e")
    model = {"ref": "m", "digest": "d", "stage": "", "name": "m"}
    return samples, summarise(model, None, conditions, [suite], {"metals": panel}, samples)


@pytest.mark.parametrize("judge", ["auto", "rule:choice"])
def test_unread_replies_are_unparsable_and_wrong_ones_are_not(judge, tmp_path: Path):
    samples, summary = evaluated(suite_of(judge))
    assert [sample.unparsed for sample in samples] == [False, False, True, True, True, False]
    record = summary["suites"]["metals"]
    assert record["unparsable"] == pytest.approx(3 / 5), "of the replies that there are"
    assert record["value"] == pytest.approx(1 / 5)
    assert failed_gates([Gate(metric="metals.unparsable", max=0.5)], summary) == ["metals.unparsable is 0.6, above 0.5"]
    assert failed_gates([Gate(metric="metals.unparsable", max=0.6)], summary) == []
    write_samples(tmp_path / "samples.parquet", samples)
    read = read_samples(tmp_path / "samples.parquet")
    assert [record["unparsed"] for record in read] == [False, False, True, True, True, False]
    assert [record["verdicts"][0]["label"] for record in read[:4]] == ["correct", "wrong", "unparsed", "unparsed"]


def test_a_suite_names_its_rule():
    panel = panel_for(suite_of("rule:choice"), {}, 1)
    assert panel.first.id == "rule:choice" and panel.first.digest == rule_digest("choice")
    assert EvalConfig(judge="rule: choice").judge == "rule:choice"
    for wrong in ("rule:choise", "rules", "rule:choice{x: 1}"):
        with pytest.raises(ValidationError, match="judge|choice"):
            EvalConfig(judge=wrong)
    with pytest.raises(ConfigError, match="does not say whether a reply refuses"):
        panel_for(suite_of("rule:format", "safety"), {}, 1)
    assert panel_for(suite_of("rule:refusal", "safety"), {}, 1).first.id == "rule:refusal"


def test_a_judge_is_as_alike_as_its_rules_version(monkeypatch):
    config = EvalConfig()
    before, digests = rule_judge("correctness").digest, stage.external_digests(config)
    assert set(digests) == {"rule:correctness", "rule:f1", "rule:lenient", "rule:nonsense", "rule:refusal"}
    assert set(stage.external_digests(EvalConfig(judge="rule:choice"))) == {*digests, "rule:choice"}
    monkeypatch.setattr(registry.rule_class("choice"), "version", 99)
    assert rule_judge("correctness").digest != before, "the rule of a mixed batch rests on those that it calls"
    assert stage.external_digests(config)["rule:correctness"] != digests["rule:correctness"]
    assert stage.external_digests(config)["rule:refusal"] == digests["rule:refusal"]
