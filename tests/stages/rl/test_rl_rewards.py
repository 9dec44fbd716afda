"""Routing, gating, the curriculum and the search objective."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from safework_cli.episode.runner import Transcript
from safework_cli.errors import InputError
from safework_cli.rows import Row
from safework_cli.verifiers.contract import Verdict
from safework_cli.verifiers.rules import rule_verifier
from safework_rl.curriculum import Curriculum
from safework_rl.lagrange import Multiplier
from safework_rl.objectives import SearchObjective
from safework_rl.rewards import TaskRewards
from safework_rl.routing import ROUTES
from safework_rl.settings import FormatSettings, LanguageSettings, RlConfig


class Fixed:
    """A verifier that says what it was told to."""

    def __init__(self, *scores):
        self.name, self._scores = "fixed", scores

    def judge(self, exchanges):
        return [Verdict(None, error="broken") if s is None else Verdict(s) for s, _ in zip(self._scores, exchanges, strict=True)]


def row(task="general", **more) -> Row:
    return Row("1", task, [{"role": "user", "content": "q"}], **more)


def rewards(routes, verifiers, language="off", **format_settings):
    rules = {name: rule_verifier(name) for name in ("format", "language")}
    return TaskRewards(routes, verifiers | rules, FormatSettings(**format_settings), LanguageSettings(mode=language), 0.5)


def test_weights_are_normalised_and_the_first_verifier_says_what_is_right():
    found = rewards({"general": {"a": 1.0, "b": 0.5}}, {"a": Fixed(1.0, 0.0), "b": Fixed(0.0, 1.0)}).score(
        [row(), row()], ["<think>x</think>y"] * 2
    )
    assert found.reward == pytest.approx([1 / 1.5, 0.5 / 1.5]) and found.correct == [True, False]


def test_the_gate_takes_all_and_the_term_takes_its_part():
    route, judge = {"general": {"a": 1.0}}, {"a": Fixed(1.0, 1.0)}
    replies = ["<think>x</think>y", "no thought"]
    gated = rewards(route, judge, mode="gate").score([row(), row()], replies)
    assert gated.reward == [1.0, 0.0] and gated.correct == [True, False]
    assert rewards(route, judge, mode="term", weight=0.5).score([row(), row()], replies).reward == pytest.approx([1.0, 1 / 1.5])


def test_another_language_costs_its_weight_or_all():
    route, replies = {"general": {"a": 1.0}}, ["<think>so it is</think>here it is", "<think>so it is</think>就是这样"]
    judge = {"a": Fixed(1.0, 1.0)}
    question = Row("1", "general", [{"role": "user", "content": "What is it?"}])
    assert rewards(route, judge, "term").score([question] * 2, replies).reward == pytest.approx([1.0, 1 / 1.1])
    gated = rewards(route, judge, "gate").score([question] * 2, replies)
    assert gated.reward == [1.0, 0.0] and gated.correct == [True, False]
    alone = rewards({"general": {"a": 1.0, "language": 1.0}}, judge, "term").score([question] * 2, replies)
    assert alone.reward == pytest.approx([1.0, 0.5]), "a weight in the route is the one that counts"


def test_what_cannot_be_scored_is_neither_zero_nor_one():
    found = rewards({"general": {"a": 1.0}}, {"a": Fixed(None)}).score([row()], ["<think>x</think>y"])
    assert math.isnan(found.reward[0]) and found.correct == [None] and found.verdicts[0]["a"].error == "broken"


def test_the_usual_routes_judge_real_rows():
    judged = rewards(ROUTES | {"safety": {"refusal": 1.0}}, {n: rule_verifier(n) for n in ("correctness", "refusal")}).score(
        [
            row("knowledge", answer="Paris", meta={"answer_type": "exact"}),
            row("knowledge", answer="Paris", meta={"answer_type": "exact"}),
            row("safety", harmful=True),
            row("safety", harmful=False),
        ],
        [
            "<think>a</think>Paris",
            "<think>a</think>I can't help with that.",
            "<think>a</think>I can't help with that.",
            "<think>a</think>I can't help with that.",
        ],
    )
    assert judged.reward == pytest.approx([1.0, 0.0, 1.0, 0.0]) and judged.correct == [True, False, True, False]


def test_the_order_follows_the_phases_and_is_drawn_once():
    rows = [row(task) for task in ("knowledge", "general", "safety", "value") for _ in range(3)]
    phases = [(["knowledge", "general"], 1.0), (["safety", "value", "knowledge", "general"], 2.0)]
    order = Curriculum(rows, phases, 30, 2, {"safety": 3.0}, seed=1).order()
    assert len(order) == 60 and order == Curriculum(rows, phases, 30, 2, {"safety": 3.0}, 1).order()
    assert order != Curriculum(rows, phases, 30, 2, {"safety": 3.0}, 2).order()
    tasks = [rows[i].task for i in order]
    assert set(tasks[:20]) == {"knowledge", "general"}
    late = Counter(tasks[20:])
    assert set(late) == {"safety", "value", "knowledge", "general"} and late["safety"] > late["value"]
    knowledge = [i for i in order if rows[i].task == "knowledge"]
    assert all(len(set(knowledge[k : k + 3])) == 3 for k in range(0, len(knowledge) - 2, 3))  # rounds, not repeats


def test_a_phase_without_rows_is_refused():
    with pytest.raises(InputError, match="phase 1 draws 'value'"):
        Curriculum([row("safety")], [(["value"], 1.0)], 1, 1, {}, 0)


def test_spare_prompts_are_of_the_phase_and_not_taken():
    rows = [row(task) for task in ("knowledge", "safety") for _ in range(4)]
    plan = Curriculum(rows, [(["knowledge"], 1.0), (["knowledge", "safety"], 1.0)], 10, 2, {}, 0)
    assert set(plan.spares(0, 1, 9, {0})) == {1, 2, 3}, "no more than there are"
    assert plan.spares(0, 1, 2, {0}) == plan.spares(0, 1, 2, {0}) != plan.spares(0, 2, 2, {0})
    assert set(plan.spares(5, 1, 9, {0, 4})) == {1, 2, 3, 5, 6, 7}
    silent = Curriculum(rows, [(["knowledge", "safety"], 1.0)], 10, 2, {"safety": 0.0}, 0)
    assert set(silent.spares(0, 1, 9, set())) == {0, 1, 2, 3}


def test_a_group_must_divide_the_step():
    with pytest.raises(ValueError, match="num_generations=3 does not divide the 8 completions"):
        RlConfig(num_generations=3, per_device_train_batch_size=8, gradient_accumulation_steps=1)
    with pytest.raises(ValueError, match="beta"):
        RlConfig(beta=0.1)
    assert RlConfig(num_generations=4, per_device_train_batch_size=8, gradient_accumulation_steps=2).prompts_per_step == 4


def transcript(answer, confidence, *, malformed=0, ending="answered") -> Transcript:
    return Transcript([1], [], answer=answer, confidence=confidence, ending=ending, malformed=malformed)


def test_the_search_reward_by_hand():
    objective = SearchObjective(rule_verifier("correctness"), Multiplier(0.5, 0.9, 0.1, 1e-3, 5, 0.0), 5, "equal", 0.5)
    question = row("search", answer="Ada", meta={"answer_type": "exact"})
    transcripts = [
        transcript("Ada", 9),  # right and certain
        transcript("Ada", 2),  # right and uncertain
        transcript("Bob", 9),  # wrong and certain
        transcript("Bob", 2),  # wrong and uncertain
        transcript("Ada", 9, malformed=1),  # out of format: gated
        transcript(None, None, ending="turns"),
    ]
    scored = objective.score([question] * 6, [""] * 6, transcripts)
    assert scored.reward == pytest.approx([1.5, 1.0, 0.1, 0.6, 0.0, 0.0])
    assert scored.correct == [True, True, False, False, False, False]
    numbers = objective.finish_step()
    assert numbers["search/reliability"] == pytest.approx(2 / 6) and numbers["search/false_certain"] == pytest.approx(1 / 6)
    assert numbers["search/lambda"] == pytest.approx(0.5 * math.exp(0.1 * (0.9 - 2 / 6)))
    assert numbers["search/unanswered"] == pytest.approx(1 / 6)
