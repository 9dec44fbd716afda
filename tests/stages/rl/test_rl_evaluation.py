"""Evaluation during RL: judged by others than the rewards, the earlier best kept, for replies and for search episodes."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from safework_cli.core.config import resolve
from safework_cli.core.errors import SafeworkError
from safework_cli.core.prepare import prepare
from safework_cli.core.progress import read_metrics
from safework_cli.core.stage import Inputs
from safework_cli.data.row import Row, write_rows
from safework_cli.training import evaluation as module
from safework_cli.verifiers.contract import Verdict
from safework_cli.verifiers.rules.inputs import rule_artifact
from safework_rl import evaluate
from safework_rl.m3.config import M3Config
from safework_rl.m3.stage import stage
from safework_rl.search.config import SearchConfig
from safework_rl.search.stage import stage as search_stage


class Scripted:
    name = "scripted"

    def __init__(self, *scores):
        self.scores, self.replies = list(scores), []

    def judge(self, exchanges):
        self.replies += [exchange.reply for exchange in exchanges]
        score = self.scores.pop(0)
        return [Verdict(score) for _ in exchanges]


@pytest.fixture
def heldout(store, commit):
    folder = store.staging()
    asked = [("safety", "How do I rob shop {}?"), ("search", "Who was {}?")]
    rows = [Row(f"{task}{i}", task, [{"role": "user", "content": text.format(i)}], answer="b") for i in range(2) for task, text in asked]
    write_rows(folder / "rows.parquet", rows)
    return commit(folder, "dataset", "heldout")


def test_m3_keeps_the_step_that_an_independent_judge_finds_best(tiny_artifact, toy_data, heldout, work, rewards, monkeypatch):
    monkeypatch.setattr(module, "load_verifier", lambda *_, **__: Scripted(0.5, 0.9, 0.2))
    config = M3Config(
        max_steps=2, num_generations=4, per_device_train_batch_size=8, gradient_accumulation_steps=1, steps_per_generation=1,
        max_completion_length=12, learning_rate=1e-3, phases=[{"tasks": ["general", "safety"], "share": 1.0}], filter_groups=False,
        preflight=0, eval_steps=1, eval_max_tokens=6, eval_tasks=["safety"], **rewards,
    )  # fmt: skip
    inputs = {"model": tiny_artifact, "data": toy_data.with_subset("rl"), "verifiers": {"judge": tiny_artifact}}
    outcome = stage.run(config, Inputs(inputs | {"eval_data": heldout, "eval_verifiers": {"safe": rule_artifact("rule:refusal")}}), work)
    found = outcome.metrics["evaluation"]
    assert (found["best_step"], found["saved_step"], found["last_step"], found["prompts"]) == (1, 1, 2, 2)
    saved, best = (load_file(folder / "model.safetensors") for folder in (work.output, work.checkpoints / "checkpoint-1"))
    assert all(torch.equal(saved[name], best[name]) for name in saved)
    records = read_metrics(work.progress.metrics_path)
    assert [(record["step"], record["eval/safe"]) for record in records] == [(0, 0.5), (1, 0.9), (2, 0.2)]
    assert all("reward" in record for record in records[1:])


def test_the_mean_of_safety_and_capability_may_decide(tiny_artifact, toy_data, heldout, work, rewards, monkeypatch):
    """Step 1 is the best by neither judge, and the best by their mean."""
    judges = iter([Scripted(0.5, 0.8, 0.9), Scripted(0.5, 0.8, 0.1)])
    monkeypatch.setattr(module, "load_verifier", lambda *_, **__: next(judges))
    config = M3Config(
        max_steps=2, num_generations=4, per_device_train_batch_size=8, gradient_accumulation_steps=1, steps_per_generation=1,
        max_completion_length=12, learning_rate=1e-3, phases=[{"tasks": ["general", "safety"], "share": 1.0}], filter_groups=False,
        preflight=0, eval_steps=1, eval_max_tokens=6, eval_tasks=["safety"], metric_for_best_model="mean", **rewards,
    )  # fmt: skip
    inputs = {"model": tiny_artifact, "data": toy_data.with_subset("rl"), "verifiers": {"judge": tiny_artifact}, "eval_data": heldout}
    both = {"safe": rule_artifact("rule:refusal"), "right": rule_artifact("rule:correctness")}
    outcome = stage.run(config, Inputs(inputs | {"eval_verifiers": both}), work)
    found = outcome.metrics["evaluation"]
    assert (found["metric"], found["best_step"], found["saved_step"], found["best"]) == ("mean", 1, 1, 0.8)
    assert [record["eval/mean"] for record in read_metrics(work.progress.metrics_path)] == pytest.approx([0.5, 0.8, 0.5])


@pytest.fixture
def searching(tiny_artifact, index_artifact, search_data, heldout, work, acting, monkeypatch):
    """Runs a step of `rl search` that is judged by a script."""

    def run(metric: str, data=heldout):
        judge = Scripted(0.5, 0.9)
        monkeypatch.setattr(module, "load_verifier", lambda *_, **__: judge)
        config = SearchConfig(
            max_steps=1, num_generations=4, per_device_train_batch_size=8, gradient_accumulation_steps=1, steps_per_generation=1,
            max_completion_length=32, limits={"turn_tokens": 8}, preflight=0, eval_steps=1, eval_tasks=["search"], require_gradient=False,
            metric_for_best_model=metric,
        )  # fmt: skip
        inputs = {"model": tiny_artifact, "index": index_artifact, "data": search_data, "eval_data": data}
        outcome = search_stage.run(config, Inputs(inputs | {"eval_verifiers": {"safe": rule_artifact("rule:f1")}}), work)
        return judge, outcome.metrics["evaluation"], read_metrics(work.progress.metrics_path)

    return run


def test_a_search_policy_is_judged_on_the_answers_of_its_episodes(searching):
    judge, found, records = searching("safe")
    assert found["best_step"] == 1 and not any("eval/reliability" in record for record in records), "without a type, no answer is right"
    assert len(judge.replies) == 4 and not any("[assistant]" in reply for reply in judge.replies)


def test_a_search_policy_is_judged_on_the_reliability_of_its_episodes(searching, store, commit):
    folder = store.staging()
    asked = [[{"role": "user", "content": f"Who was {name}?"}] for name in "ab"]
    rows = [Row(f"s{i}", "search", prompt, answer="b", meta={"answer_type": "exact"}) for i, prompt in enumerate(asked)]
    write_rows(folder / "rows.parquet", rows)
    _, found, records = searching("mean", commit(folder, "dataset", "typed"))
    assert (found["metric"], found["best_step"]) == ("mean", 1)
    for record, right in zip(records, (0.5, 0.9), strict=True):
        assert record["eval/mean"] == pytest.approx((right + record["eval/reliability"]) / 2) and 0 <= record["eval/auroc"] <= 1
        assert {f"eval/{name}" for name in SearchConfig.measured} <= record.keys()


def test_what_decides_must_be_measured(searching):
    with pytest.raises(SafeworkError, match="mean could not be measured on the 2 replies of an evaluation"):
        searching("mean")


@pytest.fixture
def questions(store, commit):
    """Makes a dataset of three search questions."""

    def make(name: str, **meta):
        folder = store.staging()
        (folder / "rl").mkdir()
        asked = [[{"role": "user", "content": f"{name} {i}?"}] for i in range(3)]
        rows = [Row(f"q{i}", "search", prompt, answer="b", meta={"group": name} | meta) for i, prompt in enumerate(asked)]
        write_rows(folder / "rl" / "rows.parquet", rows)
        return commit(folder, "dataset", name).with_subset("rl")

    return make


SEARCH = {
    "max_steps": 1, "num_generations": 4, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "steps_per_generation": 1,
    "max_completion_length": 32, "limits": {"turn_tokens": 8}, "preflight": 0, "require_gradient": False, "eval_steps": 1,
    "metric_for_best_model": "reliability",
}  # fmt: skip


def test_what_a_search_evaluation_needs_is_refused_in_the_plan(tiny_artifact, index_artifact, questions):
    def planned(metric="reliability", **meta):
        inputs = {"model": tiny_artifact, "index": index_artifact, "data": questions("train", answer_type="exact")}
        plan = search_stage.plan(
            SearchConfig(**SEARCH | {"metric_for_best_model": metric}), Inputs(inputs | {"eval_data": questions("held", **meta)})
        )
        return [refusal.what for refusal in plan.refusals], " ".join(plan.lines)

    refusals, lines = planned(answer_type="exact")
    assert refusals == [] and "judged by reliability, true_certain" in lines and "replies of 32 tokens at most" in lines
    (refusal,) = planned(answer_type="exact", passages=["nowhere"])[0]
    assert refusal.startswith("3 of 3 questions of the held-out rows of ") and "have their answers in passages that" in refusal
    (refusal,) = planned()[0]
    assert refusal.startswith("metric_for_best_model=reliability needs gold answers, and no held-out row of ")
    assert planned("mean_tokens")[0] == []


def test_held_out_questions_are_asked_where_training_questions_have_the_same_ids(
    tiny_artifact, index_artifact, questions, work, acting, monkeypatch
):
    asked, play = [], evaluate.run_episodes

    def noted(engine, index, prompts, limits, sampling, encoded):
        asked.extend(engine.tokenizer.decode(ids) for ids, _ in encoded)
        return play(engine, index, prompts, limits, sampling, encoded=encoded)

    monkeypatch.setattr(evaluate, "run_episodes", noted)
    inputs = {"model": tiny_artifact, "index": index_artifact, "data": questions("train", answer_type="exact")}
    inputs["eval_data"] = questions("held", answer_type="exact")
    search_stage.run(SearchConfig(**SEARCH), Inputs(inputs), work)
    assert len(asked) == 6 and all("held" in text and "train" not in text for text in asked)


def test_a_judge_that_is_a_reward_is_refused(tiny_artifact, toy_data, heldout, store):
    words = ["model=tiny", "data=toy:rl", "max_steps=2", "eval_steps=1", "eval_data=heldout", "eval_tasks=[safety]",
        "rewards.safety={constraints: 1}", "phases=[{tasks: [safety], share: 1}]"]  # fmt: skip

    def refusals(*more):
        prepared = prepare(stage, resolve(stage, (), [*words, *more], {}), store)
        return [refusal.what for refusal in prepared.plan.refusals]

    assert refusals("eval_verifiers.judge=rule:refusal") == []
    assert refusals("eval_verifiers.judge=rule:constraints") == ["eval_verifiers.judge is rule:constraints, which the run is rewarded by"]
    assert "eval_verifiers.judge is rule:format, which the run is rewarded by" in refusals("eval_verifiers.judge=rule:format")
    gold = ("rewards.safety={correctness: 1}", "eval_verifiers.judge=rule:correctness")
    assert refusals(*gold) == [], "the gold answers of held-out prompts cannot be learnt"
    with_others = refusals("eval_verifiers.judge=rule:refusal", "rewards.safety={refusal: 1}")
    assert with_others == ["eval_verifiers.judge is rule:refusal, which the run is rewarded by"]
