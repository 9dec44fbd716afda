"""Routing, gating, the curriculum and the search objective."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from safework_cli.core.errors import InputError
from safework_cli.data.row import Row
from safework_cli.environments.search.runner import Transcript
from safework_cli.verifiers.contract import Verdict
from safework_cli.verifiers.rules import rule_verifier
from safework_rl.config import FormatSettings, LanguageSettings, RlConfig
from safework_rl.curriculum import Curriculum
from safework_rl.lagrange import Multiplier
from safework_rl.objectives import M3Objective, TaskRewards
from safework_rl.routing import ROUTES
from safework_rl.search.config import OF_EVALUATION
from safework_rl.search.objective import SearchObjective
from safework_rl.search.stage import weights_problem


class Fixed:
    """A verifier with fixed scores."""

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
    route, replies = {"general": {"a": 1.0}}, ["<think>that is right</think>here it is", "<think>that is right</think>就是这样"]
    judge = {"a": Fixed(1.0, 1.0)}
    question = Row("1", "general", [{"role": "user", "content": "What is it?"}])
    assert rewards(route, judge, "term").score([question] * 2, replies).reward == pytest.approx([1.0, 1 / 1.1])
    gated = rewards(route, judge, "gate").score([question] * 2, replies)
    assert gated.reward == [1.0, 0.0] and gated.correct == [True, False]
    routed = rewards({"general": {"a": 1.0, "language": 1.0}}, judge, "term").score([question] * 2, replies)
    assert routed.reward == pytest.approx([1.0, 0.5]), "a weight in the route is the one that counts"


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
    order = Curriculum(rows, phases, 60, 2, {"safety": 3.0}, seed=1).order()
    assert len(order) == 60 and order == Curriculum(rows, phases, 60, 2, {"safety": 3.0}, 1).order()
    assert order != Curriculum(rows, phases, 60, 2, {"safety": 3.0}, 2).order()
    tasks = [rows[i].task for i in order]
    assert set(tasks[:20]) == {"knowledge", "general"}
    late = Counter(tasks[20:])
    assert set(late) == {"safety", "value", "knowledge", "general"} and late["safety"] > late["value"]
    knowledge = [i for i in order if rows[i].task == "knowledge"]
    assert all(len(set(knowledge[k : k + 3])) == 3 for k in range(0, len(knowledge) - 2, 3))  # rounds, not repeats


def test_categories_are_drawn_by_weight_within_their_task():
    rows = [row("search", category="one_hop") for _ in range(6)] + [row("search", category="two_hop") for _ in range(2)]
    rows += [row("general", category="sums") for _ in range(3)]
    phases = [(["search", "general"], 1.0)]
    plain = Curriculum(rows, phases, 400, 2, {}, 1)
    assert plain.order() == Curriculum(rows, phases, 400, 2, {}, 1, {"other": 5.0}).order(), "a category that no row has weighs nothing"
    weighed = Curriculum(rows, phases, 400, 2, {}, 1, {"two_hop": 3.0})
    drawn = Counter(rows[i].category for i in weighed.order())
    assert 150 < drawn["sums"] < 250, "tasks are drawn as before"
    assert 2.2 < drawn["two_hop"] / drawn["one_hop"] < 4.2
    two = [i for i in weighed.order() if rows[i].category == "two_hop"]
    assert all(len(set(two[k : k + 2])) == 2 for k in range(0, len(two) - 1, 2)), "in turns"
    assert sorted(weighed.spares(0, 1, range(20), {0, 6})) == [1, 2, 3, 4, 5, 7, 8, 9, 10], "all that are left, whatever their category"
    unnamed = [row("search") for _ in range(4)] + [row("search", category="two_hop") for _ in range(4)]
    others = Curriculum(unnamed, [(["search"], 1.0)], 400, 2, {}, 1, {"": 0.0}).order()
    assert {unnamed[i].category for i in others} == {"two_hop"}, "rows without a category have one without a name"
    with pytest.raises(InputError, match="has no such rows that can be drawn"):
        Curriculum(rows[:6], [(["search"], 1.0)], 4, 2, {}, 1, {"one_hop": 0.0})
    silent = Curriculum(rows, phases, 400, 2, {}, 1, {"one_hop": 0.0})
    assert {rows[i].category for i in silent.order()} == {"two_hop", "sums"}
    assert {rows[i].category for i in silent.spares(0, 1, range(20), set())} == {"two_hop", "sums"}


def test_weights_of_categories_must_weigh_something():
    rows = [row("search", category="one_hop"), row("search", category="two_hop")]
    assert weights_problem({"two_hop": 2.0}, rows) is None and weights_problem({}, rows) is None and weights_problem({"x": 1.0}, []) is None
    assert "category_weights.two_hops weighs no question; did you mean 'two_hop'" in str(weights_problem({"two_hops": 2.0}, rows))
    assert "is 0 for every category" in str(weights_problem({"two_hop": 0.0, "one_hop": 0.0}, rows))


def test_a_phase_without_rows_is_refused():
    with pytest.raises(InputError, match="phase 1 draws 'value'"):
        Curriculum([row("safety")], [(["value"], 1.0)], 1, 1, {}, 0)


def test_spare_prompts_are_of_the_phase_and_not_taken():
    rows = [row(task) for task in ("knowledge", "safety") for _ in range(4)]
    plan = Curriculum(rows, [(["knowledge"], 1.0), (["knowledge", "safety"], 1.0)], 180, 9, {}, 0)
    assert set(plan.spares(0, 1, range(9), {0})) == {1, 2, 3}, "no more than there are"
    assert plan.spares(0, 1, [3, 7], {0}) == plan.spares(0, 1, [3, 7], {0}) != plan.spares(0, 2, [3, 7], {0})
    assert set(plan.spares(10, 1, range(9), {0, 4})) == {1, 2, 3, 5, 6, 7}
    silent = Curriculum(rows, [(["knowledge", "safety"], 1.0)], 180, 9, {"safety": 0.0}, 0)
    assert set(silent.spares(0, 1, range(9), set())) == {0, 1, 2, 3}


def test_a_phase_may_end_within_a_rollout():
    rows = [row(task) for task in ("knowledge", "safety") for _ in range(4)]
    plan = Curriculum(rows, [(["knowledge"], 1.0), (["safety"], 2.0)], 9, 6, {}, 0)
    assert [rows[i].task for i in plan.order()] == ["knowledge"] * 3 + ["safety"] * 9, "whole rollouts; the last three are not used"
    assert [rows[i].task for i in plan.spares(0, 1, [1, 4], set())] == ["knowledge", "safety"], "each from its own phase"


def test_a_group_must_divide_the_step():
    with pytest.raises(ValueError, match="num_generations=3 does not divide the 8 completions"):
        RlConfig(num_generations=3, per_device_train_batch_size=8, gradient_accumulation_steps=1)
    with pytest.raises(ValueError, match="steps_per_generation=6 is not a multiple of gradient_accumulation_steps=4"):
        RlConfig(steps_per_generation=6)
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


def test_an_evaluation_measures_episodes_and_leaves_the_constraint_as_it_is():
    objective = SearchObjective(rule_verifier("correctness"), Multiplier(0.5, 0.9, 0.1, 1e-3, 5, 0.0), 5, "equal", 0.5)
    question = row("search", answer="Ada", meta={"answer_type": "exact"})
    objective.score([question], [""], [transcript("Ada", 9)])
    episodes = [transcript("Ada", 9), transcript("Bob", 9), transcript("Bob", 2), transcript(None, None, ending="turns")]
    episodes[0].searches = 3
    measured = objective.measure([question] * 4, episodes)
    assert measured == {"reliability": 0.5, "true_certain": 0.25, "false_certain": 0.25, "searches": 0.75, "auroc": pytest.approx(0.75)}
    assert measured.keys() == OF_EVALUATION.keys()
    assert objective.measure([question], episodes[:1])["auroc"] == objective.measure([question], episodes[3:])["auroc"] == 0.5
    assert objective.finish_step()["search/reliability"] == 1, "that of the training episodes"
    unsure = SearchObjective(Unsure(), Multiplier(0.5, 0.9, 0.1, 1e-3, 5, 0.0), 5, "equal", 0.5)
    assert unsure.measure([question], [transcript("?", 2)]) == {}
    some = unsure.measure([question] * 3, [transcript("?", 2), transcript("Ada", 9), transcript("Bob", 2)])
    assert some["reliability"] == 1 and some["reliability/failed"] == 1, "unscorable is counted, not hidden"


class Unsure:
    """A judge that cannot score one answer."""

    name = "unsure"

    def judge(self, exchanges):
        return [Verdict(None, error="no") if e.final == "?" else Verdict(float(e.final == "Ada")) for e in exchanges]


def test_replies_that_were_not_scored_are_not_in_the_reliability():
    objective = SearchObjective(Unsure(), Multiplier(0.5, 0.9, 0.1, 1e-3, 5, 0.0), 5, "equal", 0.5)
    scored = objective.score([row("search", answer="Ada")] * 3, [""] * 3, [transcript("Ada", 9), transcript("?", 2), transcript("Bob", 9)])
    assert math.isnan(scored.reward[1]) and scored.correct == [True, None, False]
    numbers = objective.finish_step()
    assert numbers["search/reliability"] == 0.5, "of the two that were scored; an unscored uncertain reply is not reliable either"
    assert numbers["search/true_certain"] == numbers["search/false_certain"] == 0.5 and numbers["search/false_uncertain"] == 0
    objective.score([row("search", answer="Ada")], [""], [transcript("?", 2)])
    before = objective.multiplier.value
    assert objective.finish_step()["search/lambda"] == before, "nothing scored moves nothing"
    never = SearchObjective(Unsure(), Multiplier(0.5, 0.9, 0.1, 1e-3, 5, 0.0), 5, "equal", 0.5)
    never.score([row("search", answer="Ada")], [""], [transcript("?", 2)])
    numbers = never.finish_step()
    assert numbers["search/lambda"] == 0.5 and math.isnan(numbers["search/reliability_ema"]), "the first rollout, too"


@pytest.mark.parametrize("weighting", ["equal", "std", "clip_filter"])
def test_the_multiplier_acts_on_the_size_of_the_advantage(weighting):
    """Two groups in which the answers are all right, or all wrong: only confidence differs, and its price is λ."""
    question, sizes = row("search", answer="Ada", meta={"answer_type": "exact"}), []
    for value in (1e-3, 0.1, 5.0):
        objective = SearchObjective(rule_verifier("correctness"), Multiplier(value, 0.9, 0.1, 1e-3, 5, 0.0), 5, weighting, 0.5)
        transcripts = [transcript(answer, sure) for answer in ("Ada", "Bob") for sure in (9, 2)]
        scored = objective.score([question] * 4, [""] * 4, transcripts)
        found = objective.advantages(
            torch.tensor(scored.reward).view(2, 2), torch.ones(2, 2), torch.tensor(scored.correct).float().view(2, 2)
        )
        assert found[0, 0] > 0 > found[0, 1] and found[1, 0] < 0 < found[1, 1]
        sizes.append(found.abs().max().item())
    assert sizes[1] == pytest.approx(100 * sizes[0], rel=1e-3) and sizes[2] == pytest.approx(5000 * sizes[0], rel=1e-3)
    mixed = objective.advantages(torch.tensor([[1.1, 1.0, 0.1, 0.0]]), torch.ones(1, 4), torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
    scale = {"equal": 1.0, "std": 1 / math.sqrt(1 / 3), "clip_filter": 1.0}[weighting]
    assert torch.allclose(mixed, scale * torch.tensor([[0.55, 0.45, -0.45, -0.55]]), atol=1e-4), "where they vary, by the deviation of that"


def test_a_group_that_the_filter_drops_does_not_count_as_one_that_varies():
    """Four groups whose rewards vary, of which one has a right reply and a wrong one: ω is min(3, 4/1), and not 1."""
    objective = M3Objective(TaskRewards({}, {}, FormatSettings(), LanguageSettings(), 0.5), "clip_filter", True)
    reward = torch.tensor([[1.0, 0.0], [1.0, 0.9], [0.1, 0.0], [1.0, 0.9]])
    correct = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    assert torch.allclose(objective.advantages(reward, reward, correct), torch.tensor([[1.5, -1.5]] + [[0.0, 0.0]] * 3))
