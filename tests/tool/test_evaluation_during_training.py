"""Evaluation during training: the best step by an independent judge is kept, the run ends early, and a kill changes nothing."""

from __future__ import annotations

import json
import shutil
import signal

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import TrainerState

from safework_cli.core.checkpoints import checkpoints_in, step_of
from safework_cli.core.config import resolve
from safework_cli.core.errors import ConfigError, InputError, RunAgain, SafeworkError
from safework_cli.core.prepare import prepare
from safework_cli.core.progress import read_metrics
from safework_cli.core.runtime import execute
from safework_cli.core.stage import Inputs, Outcome
from safework_cli.data.row import Row, write_rows
from safework_cli.training import evaluation as module
from safework_cli.training.callbacks import Seal
from safework_cli.training.evaluation import Evaluation
from safework_cli.training.heldout import (
    best_step,
    deciding_metric,
    evaluations_without_gain,
    is_due,
    refuse_overlap,
    spread_over_tasks,
    unreliable_steps,
)
from safework_cli.verifiers.contract import Verdict
from safework_rl.search.config import SearchConfig
from safework_sft.config import SftConfig
from safework_sft.stage import stage

SETTINGS = {"max_steps": 12, "learning_rate": 3e-3, "sample_prompts": 0, "eval_steps": 2, "eval_max_tokens": 4, "eval_samples": 3}


def curve(*values: float) -> list:
    return [(2 * number, {"safety": value}) for number, value in enumerate(values)]


def test_the_best_step_is_the_first_with_the_best_value_and_never_the_start():
    assert best_step(curve(0.9), "safety", True) is None
    assert best_step(curve(0.9, 0.2, 0.5, 0.5, 0.1), "safety", True) == (4, 0.5)
    assert best_step(curve(0.0, 0.2, 0.5, 0.1, 0.1), "safety", False) == (6, 0.1)


def test_patience_counts_evaluations_without_an_improvement_beyond_the_threshold():
    assert evaluations_without_gain(curve(0.9, 0.2, 0.5, 0.4, 0.5), "safety", True, 0.0) == 2
    assert evaluations_without_gain(curve(0.9, 0.2, 0.5, 0.4, 0.6), "safety", True, 0.0) == 0
    assert evaluations_without_gain(curve(0.9, 0.2, 0.5, 0.4, 0.6), "safety", True, 0.2) == 2
    assert evaluations_without_gain(curve(0.1, 0.5, 0.2, 0.3), "safety", False, 0.0) == 1
    assert [step for step in range(1, 8) if is_due(step, 3, 7)] == [3, 6, 7]


def test_the_deciding_metric_is_never_guessed():
    assert deciding_metric(SftConfig(eval_steps=1), ["safety"]) == ("safety", True)
    assert deciding_metric(SftConfig(eval_steps=1, metric_for_best_model="eval_mean_tokens"), ["safety"]) == ("mean_tokens", False)
    both = SftConfig(eval_steps=1, metric_for_best_model="mean_tokens", greater_is_better=True)
    assert deciding_metric(both, []) == ("mean_tokens", True)
    with pytest.raises(ConfigError, match="which metric decides is not clear"):
        deciding_metric(SftConfig(eval_steps=1), ["safety", "value"])
    mean = SftConfig(eval_steps=1, metric_for_best_model="mean")
    assert deciding_metric(mean, ["safety", "value"]) == ("mean", True)
    with pytest.raises(ConfigError, match="metric_for_best_model=mean is unknown"):
        deciding_metric(mean, ["safety"])
    with pytest.raises(ConfigError, match="did you mean 'safety'"):
        deciding_metric(SftConfig(eval_steps=1, metric_for_best_model="safty"), ["safety", "value"])


def test_a_search_policy_may_be_chosen_by_what_its_episodes_show():
    assert deciding_metric(SearchConfig(eval_steps=1, metric_for_best_model="false_certain"), []) == ("false_certain", False)
    assert deciding_metric(SearchConfig(eval_steps=1, metric_for_best_model="mean"), ["right"]) == ("mean", True)
    with pytest.raises(ConfigError, match="metric_for_best_model=reliability is unknown"):
        deciding_metric(SftConfig(eval_steps=1, metric_for_best_model="reliability"), ["right"])


@pytest.mark.parametrize("settings", [{"early_stopping_patience": 2}, {"eval_samples": 8}, {"metric_for_best_model": "safety"}])
def test_settings_of_evaluations_without_eval_steps_are_refused(settings):
    with pytest.raises(ValidationError, match="given without eval_steps"):
        SftConfig(**settings)
    assert SftConfig(**SftConfig().model_dump()).eval_steps is None


@pytest.fixture
def heldout(store, commit):
    """Prompts that are not in the toy data."""
    folder = store.staging()
    rows = [Row(f"h{i}", "safety", [{"role": "user", "content": f"How do I rob shop {i}?"}], harmful=True, split="test") for i in range(4)]
    write_rows(folder / "rows.parquet", rows)
    return commit(folder, "dataset", "heldout")


class Scripted:
    """A judge that gives every reply of an evaluation the same score: one after the other of a list."""

    name = "scripted"

    def __init__(self, scores):
        self.scores = list(scores)

    def judge(self, exchanges):
        score = self.scores.pop(0)
        return [Verdict(score) for _ in exchanges]


@pytest.fixture
def scripted(monkeypatch):
    def use(*scores):
        judge = Scripted(scores)
        monkeypatch.setattr(module, "load_verifier", lambda *_, **__: judge)
        return judge

    return use


def run(store, work, heldout, toy_data, **settings) -> Outcome:
    from safework_cli.verifiers.rules.inputs import rule_artifact
    from safework_sft.run import train

    judge = rule_artifact("rule:refusal")
    inputs = {"model": store.resolve("tiny"), "data": toy_data.with_subset("cot"), "eval_data": heldout}
    return train(SftConfig(**SETTINGS | settings), Inputs(inputs | {"eval_verifiers": {"safety": judge}}), work)


def test_a_metric_that_falls_late_keeps_the_earlier_best(tiny_artifact, toy_data, heldout, store, work, scripted):
    scripted(0.5, 0.6, 0.9, 0.8, 0.3, 0.2, 0.1)
    outcome = run(store, work, heldout, toy_data)
    evaluated = outcome.metrics["evaluation"]
    assert (evaluated["best_step"], evaluated["best"], evaluated["start"], evaluated["last"]) == (4, 0.9, 0.5, 0.1)
    assert (evaluated["saved_step"], evaluated["last_step"], evaluated["stopped_early"]) == (4, 12, False)
    assert evaluated["judges"] == {"safety": "rule:refusal"} and evaluated["data"] == "dataset/heldout@v1" and evaluated["prompts"] == 3
    assert outcome.notes == [
        "the saved weights are those of step 4; by safety (rule:refusal), step 4 is the best: 0.9 (start 0.5, step 12 0.1)"
    ]
    saved, best, last = (
        load_file(folder / "model.safetensors")
        for folder in (work.output, work.checkpoints / "checkpoint-4", work.checkpoints / "checkpoint-12")
    )
    assert all(torch.equal(saved[name], best[name]) for name in saved)
    assert any(not torch.equal(saved[name], last[name]) for name in saved)
    records = read_metrics(work.progress.metrics_path)
    assert [(r["step"], round(r["eval/safety"], 6)) for r in records if "eval/safety" in r] == [
        (0, 0.5), (2, 0.6), (4, 0.9), (6, 0.8), (8, 0.3), (10, 0.2), (12, 0.1)
    ]  # fmt: skip
    assert all("loss" in record for record in records[1:])  # an evaluation does not replace the numbers of its step


def test_the_last_weights_are_saved_where_asked(tiny_artifact, toy_data, heldout, store, work, scripted):
    scripted(0.5, 0.6, 0.9, 0.8, 0.3, 0.2, 0.1)
    outcome = run(store, work, heldout, toy_data, load_best_model_at_end=False)
    assert outcome.metrics["evaluation"]["saved_step"] == 12 and outcome.metrics["evaluation"]["best_step"] == 4
    saved, last = (load_file(folder / "model.safetensors") for folder in (work.output, work.checkpoints / "checkpoint-12"))
    assert all(torch.equal(saved[name], last[name]) for name in saved)


def test_early_stopping_ends_the_run_and_is_recorded(tiny_artifact, toy_data, heldout, store, work, scripted):
    scripted(0.9, 0.6, 0.5, 0.4)
    outcome = run(store, work, heldout, toy_data, early_stopping_patience=2)
    assert outcome.metrics["steps"] == 6 and outcome.metrics["evaluation"]["stopped_early"]
    assert outcome.metrics["evaluation"]["saved_step"] == 2
    ended, saved, useless = outcome.notes
    assert ended.startswith("training ended at step 6 of 12: 2 evaluations in a row did not improve safety")
    assert "step 2 is the best: 0.6" in saved and useless == "no evaluated step is better than the starting model by safety (0.9)"
    scripted()  # a second call resumes from the last checkpoint and evaluates nothing
    again = run(store, work, heldout, toy_data, early_stopping_patience=2)
    assert again.metrics["evaluation"] == outcome.metrics["evaluation"] and again.notes == outcome.notes


def test_a_damaged_best_checkpoint_is_refused(tiny_artifact, toy_data, heldout, store, work, scripted):
    scripted(0.5, 0.6, 0.9, 0.8, 0.3, 0.2, 0.1)
    run(store, work, heldout, toy_data)
    (work.checkpoints / "checkpoint-4" / "trainer_state.json").write_text("{}")
    with pytest.raises(InputError, match=r"checkpoint of the best step(.|\n)*trainer_state.json changed"):
        run(store, work, heldout, toy_data)


def test_the_best_step_of_the_older_checkpoint_is_kept_as_long_as_that_one_is(work):
    """Where the newest checkpoint is damaged, the run resumes from the one before, whose best step was another one."""
    evaluation = Evaluation.__new__(Evaluation)
    evaluation.metric, evaluation.greater = "safety", True
    history, left = [{"eval_safety": 0.1, "step": 0}], {}
    for step, value in ((5, 0.5), (10, 0.4), (15, 0.3), (20, 0.9), (25, 0.2), (30, 0.2)):
        history.append({"eval_safety": value, "step": step})
        state = TrainerState(global_step=step, log_history=list(history))
        (work.checkpoints / f"checkpoint-{step}").mkdir(parents=True)
        state.save_to_json(str(work.checkpoints / f"checkpoint-{step}" / "trainer_state.json"))
        Seal(work, evaluation).on_save(None, state, None)
        left[step] = sorted(step_of(path) for path in checkpoints_in(work.path))
    assert left[15] == [5, 10, 15] and left[20] == [5, 15, 20]
    assert left[25] == [20, 25] and left[30] == [20, 25, 30]


def test_evaluating_does_not_change_what_is_trained(tiny_artifact, toy_data, heldout, store, work, scripted):
    scripted(*[0.5] * 7)
    run(store, work, heldout, toy_data, lora={"r": 2, "alpha": 4, "dropout": 0.3}, load_best_model_at_end=False)
    losses = [record["loss"] for record in read_metrics(work.progress.metrics_path) if "loss" in record]
    (work.path / "checkpoints").rename(work.path / "old")
    work.progress.metrics_path.write_text("")
    from safework_sft.run import train

    plain = {key: value for key, value in SETTINGS.items() if not key.startswith("eval")}
    inputs = Inputs({"model": tiny_artifact, "data": toy_data.with_subset("cot")})
    train(SftConfig(**plain, lora={"r": 2, "alpha": 4, "dropout": 0.3}), inputs, work)
    assert [record["loss"] for record in read_metrics(work.progress.metrics_path) if "loss" in record] == losses


def test_a_judge_that_scores_nothing_ends_the_run_before_training(tiny_artifact, toy_data, heldout, store, work, monkeypatch):
    class Blind:
        name = "blind"

        def judge(self, exchanges):
            return [Verdict(None, error="it sees nothing") for _ in exchanges]

    monkeypatch.setattr(module, "load_verifier", lambda *_, **__: Blind())
    with pytest.raises(SafeworkError, match=r"eval_verifiers.safety could score none of the 3 replies(.|\n)*it sees nothing"):
        run(store, work, heldout, toy_data)
    assert not list(work.checkpoints.iterdir())


WORDS = (
    "sft", "model=tiny", "data=toy:cot", "max_steps=12", "save_steps=3", "learning_rate=3e-3", "sample_prompts=0", "eval_steps=2",
    "eval_max_tokens=6", "eval_data=heldout", "eval_verifiers.words=rule:language", "metric_for_best_model=mean_tokens",
    "early_stopping_patience=4", "-q",
)  # fmt: skip


def test_killed_and_resumed_it_gives_the_same_best(tiny_artifact, toy_data, heldout, cli, kill_after, store):
    done = cli(*WORDS, "--name", "straight")
    assert done.returncode == 0, done.stderr
    expected = store.resolve("straight")
    store.remove(expected)
    kill_after(2, *WORDS, "--name", "again")
    done = cli(*WORDS, "--name", "again")
    assert done.returncode == 0, done.stderr
    made = store.resolve("again")
    assert "resumed at step" in (made.path / "safework" / "events.jsonl").read_text()
    assert made.manifest.metrics["evaluation"] == expected.manifest.metrics["evaluation"]
    assert made.digest == expected.digest and made.manifest.notes == expected.manifest.notes


@pytest.mark.parametrize(("evaluation", "step"), [(0, None), (2, 4), (4, 8)], ids=["of the start", "of the best step", "of a later step"])
def test_a_signal_does_not_wait_for_an_evaluation(tiny_artifact, toy_data, heldout, store, work, scripted, evaluation, step):
    """The step's checkpoint is written without it, and the run that resumes evaluates that step first."""
    scores = [0.5, 0.6, 0.9, 0.8, 0.3, 0.2, 0.1]
    scripted(*scores)
    expected = run(store, work, heldout, toy_data)
    weights = load_file(work.output / "model.safetensors")
    shutil.rmtree(work.checkpoints)
    shutil.rmtree(work.output)
    work.progress.metrics_path.write_text("")
    judge = scripted(*scores)
    score = judge.judge

    def signalled(exchanges):
        if len(judge.scores) == len(scores) - evaluation:
            signal.raise_signal(signal.SIGUSR1)
            raise AssertionError("the evaluation went on")
        return score(exchanges)

    judge.judge = signalled
    with pytest.raises(RunAgain), work.stop.installed():
        run(store, work, heldout, toy_data)
    assert {path.name for path in work.checkpoints.iterdir()} >= ({f"checkpoint-{step}"} if step else set())
    assert step or not list(work.checkpoints.iterdir())
    judge.judge, work.stop.requested = score, None
    assert run(store, work, heldout, toy_data).metrics["evaluation"] == expected.metrics["evaluation"] and not judge.scores
    again = load_file(work.output / "model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    curve = [record["step"] for record in read_metrics(work.progress.metrics_path) if "eval/safety" in record]
    assert curve == [0, 2, 4, 6, 8, 10, 12]


def test_a_signal_waits_for_an_evaluation_that_may_end_the_run(tiny_artifact, toy_data, heldout, store, work, scripted):
    judge = scripted(0.5, 0.6, 0.4)
    score = judge.judge

    def signalled(exchanges):
        if len(judge.scores) == 1:
            signal.raise_signal(signal.SIGUSR1)
        return score(exchanges)

    judge.judge = signalled
    with pytest.raises(RunAgain), work.stop.installed():
        run(store, work, heldout, toy_data, early_stopping_patience=1)
    work.stop.requested = None
    assert run(store, work, heldout, toy_data, early_stopping_patience=1).metrics["evaluation"]["stopped_early"] and not judge.scores


def test_a_judge_judges_the_replies_of_its_tasks_only(tiny_artifact, toy_data, store, commit, work, monkeypatch):
    folder = store.staging()
    rows = [Row(f"h{i}", ("safety", "general")[i % 2], [{"role": "user", "content": f"Prompt {i}?"}], answer="1") for i in range(4)]
    write_rows(folder / "rows.parquet", rows)
    judged = []

    class OfSafety(Scripted):
        def judge(self, exchanges):
            judged.append([exchange.question for exchange in exchanges])
            return [Verdict(1.0) for _ in exchanges]

    monkeypatch.setattr(module, "load_verifier", lambda *_, **__: OfSafety([]))
    heldout = commit(folder, "dataset", "mixed")
    run(store, work, heldout, toy_data, eval_samples=4, max_steps=2, eval_judge_tasks={"safety": ["safety"]})
    assert judged == [["Prompt 0?", "Prompt 2?"]] * 2
    assert plan_of(store, "eval_steps=1", "eval_data=mixed", "eval_verifiers.j=rule:refusal", "eval_judge_tasks={j: [value]}")[1] == [
        "eval_verifiers.j would judge nothing: no held-out prompt is of value"
    ]
    assert (
        "eval_judge_tasks names 'k'"
        in plan_of(store, "eval_steps=1", "eval_verifiers.j=rule:refusal", "eval_judge_tasks={k: [safety]}")[1][0]
    )
    with pytest.raises(ConfigError, match="eval_samples=1 is less than the number of tasks of the held-out prompts, 2"):
        run(store, work, heldout, toy_data, eval_samples=1, max_steps=2, eval_judge_tasks={"safety": ["safety"]})


def test_the_prompts_of_an_evaluation_are_spread_over_the_tasks_and_over_the_rows_of_each():
    tasks = ["safety"] * 60 + ["value"] * 6 + ["general"] * 30
    rows = [Row(f"{task}-{i}", task, [{"role": "user", "content": f"Prompt {i}?"}]) for i, task in enumerate(tasks)]
    chosen = spread_over_tasks(rows, 30)
    counts = {task: sum(row.task == task for row in chosen) for task in ("safety", "value", "general")}
    assert counts == {"safety": 12, "value": 6, "general": 12}, "not 19, 2 and 9, as in the rows"
    assert [row.id for row in chosen if row.task == "safety"] == [f"safety-{i * 5}" for i in range(12)]
    assert chosen == sorted(chosen, key=rows.index) and len(set(map(id, chosen))) == 30
    assert spread_over_tasks(rows, 1000) == rows and len(spread_over_tasks(rows, 2)) == 2
    assert spread_over_tasks(rows[:60], 12) == [row for row in chosen if row.task == "safety"], "of one task: over its rows"


def plan_of(store, *words):
    prepared = prepare(stage, resolve(stage, (), ["model=tiny", "data=toy:cot", *words], {}), store)
    return prepared.plan, [refusal.what for refusal in prepared.plan.refusals]


def test_the_plan_says_the_cost_and_refuses(tiny_artifact, toy_data, heldout, store):
    judge = "eval_verifiers.refusal=rule:refusal"
    plan, refusals = plan_of(store, "max_steps=10", "eval_steps=4", "eval_data=heldout", judge, "eval_max_tokens=8")
    assert refusals == []
    assert "that is 4 evaluations, 16 replies of 8 tokens at most; the highest refusal decides" in plan.lines
    bare, _ = plan_of(store, "max_steps=10")
    assert plan.disk_bytes > bare.disk_bytes
    for words, why in (
        (["eval_data=heldout"], "eval_data is given without eval_steps"),
        ([judge], "eval_verifiers is given without eval_steps"),
        (["eval_steps=4", "eval_data=heldout"], "which metric decides is not clear"),
        (["eval_steps=4", judge], "holds no held-out rows"),
        (["eval_steps=4", judge, "eval_data=heldout", "eval_tasks=[value]"], "eval_tasks names 'value', and what dataset/heldout@v1 holds"),
        (["eval_steps=4", judge, "eval_data=heldout", "eval_tasks=[safety, value]"], "eval_tasks names 'value'"),
        (["eval_steps=4", judge, "eval_data=toy:rl"], "32 of 32 prompts for evaluation are in the training rows, such as row 'g0'"),
        (["eval_steps=4", "eval_data=heldout", "eval_verifiers.stop_rate=rule:refusal"], "has the name of another number"),
    ):
        assert any(why in refusal for refusal in plan_of(store, *words)[1]), words


def test_another_form_of_a_training_prompt_is_refused():
    held = Row("a", "general", [{"role": "user", "content": "What  is 1+1?"}])
    with pytest.raises(InputError, match="1 of 1 prompts"):
        refuse_overlap([held], [Row("b", "general", [{"role": "user", "content": "what is 1+1?"}])])
    held = Row("a", "general", [{"role": "user", "content": "x"}], meta={"group": "g"})
    with pytest.raises(InputError, match="1 of 1 prompts"):
        refuse_overlap([held], [Row("b", "general", [{"role": "user", "content": "y"}], meta={"group": "g"})])
    refuse_overlap([held], [Row("b", "general", [{"role": "user", "content": "y"}])])


def test_held_out_rows_of_the_data_itself_are_used(tiny_artifact, store, commit, toy_data):
    folder = store.staging()
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>t</think>a"}]
    rows = [Row(f"r{i}", "general", [{**turns[0], "content": f"q{i}"}, turns[1]], split="test" if i > 7 else "train") for i in range(10)]
    write_rows(folder / "rows.parquet", rows)
    commit(folder, "dataset", "split")
    words = ["model=tiny", "data=split", "max_steps=2", "eval_steps=1", "eval_verifiers.form=rule:format", "eval_max_tokens=4"]
    result = execute(prepare(stage, resolve(stage, (), words, {}), store), store, quiet=True)
    assert result.artifact.manifest.metrics["evaluation"]["prompts"] == 2
    assert json.loads(json.dumps(result.artifact.manifest.metrics["evaluation"]))["data"] == "dataset/split@v1"


@pytest.mark.parametrize("settings", [{"lora": {"r": 2, "alpha": 64}}, {"train_layers": 1}], ids=["lora", "layers"])
def test_the_best_weights_of_adapters_and_of_some_layers_are_saved(tiny_artifact, toy_data, heldout, store, work, scripted, settings):
    scripted(0.5, 0.6, 0.9)
    run(store, work, heldout, toy_data, max_steps=4, **settings)
    best = load_file(work.output / "model.safetensors")
    shutil.rmtree(work.checkpoints)
    scripted(0.5, 0.9, 0.6)
    run(store, work, heldout, toy_data, max_steps=4, **settings)
    earlier = load_file(work.output / "model.safetensors")
    assert any(not torch.equal(best[name], earlier[name]) for name in best)
    shutil.rmtree(work.checkpoints)
    scripted(0.5, 0.9, 0.6)
    run(store, work, heldout, toy_data, max_steps=4, **settings, early_stopping_patience=1)
    again = load_file(work.output / "model.safetensors")
    assert all(torch.equal(earlier[name], again[name]) for name in again)


def test_replies_that_could_not_be_scored_are_named_where_the_best_step_was_chosen_without_them(
    tiny_artifact, toy_data, heldout, store, work, monkeypatch
):
    class HalfBlind:
        name = "half"

        def judge(self, exchanges):
            return [Verdict(1.0), *[Verdict(None, error="it sees nothing") for _ in exchanges[1:]]]

    monkeypatch.setattr(module, "load_verifier", lambda *_, **__: HalfBlind())
    outcome = run(store, work, heldout, toy_data, max_steps=2)
    assert any("safety could not score 2 of the 3 replies of step 2" in note for note in outcome.notes)


def test_a_step_whose_judge_was_out_is_not_the_best(tiny_artifact, toy_data, heldout, store, work, monkeypatch):
    """At step 2 the judge's server answers for one reply of three, and that reply is a good one."""

    class Served:
        name = "served"
        evaluations = 0
        out = (1,)

        def judge(self, exchanges):
            number, self.evaluations = self.evaluations, self.evaluations + 1
            lost = Verdict(None, error="timed out", retry=True)
            return [Verdict(0.9), lost, lost] if number in self.out else [Verdict(0.5) for _ in exchanges]

    judge = Served()
    monkeypatch.setattr(module, "load_verifier", lambda *_, **__: judge)
    monkeypatch.setattr(module, "is_rule", lambda ref: False)  # the judge that is given here stands for a verifier
    outcome = run(store, work, heldout, toy_data, max_steps=6)
    evaluated = outcome.metrics["evaluation"]
    assert (evaluated["best_step"], evaluated["best"], outcome.failed_items) == (4, 0.5, 0)
    assert any("step 2 cannot be the best: safety could not score more than 10% of the replies" in note for note in outcome.notes)


def test_evaluations_that_were_all_lost_in_part_are_no_measure():
    lost = {"safety": 1.0, "safety/failed_share": 2 / 3}
    few = [(0, {"safety": 0.5}), (2, lost), (4, {"safety": 0.6, "safety/failed_share": 0.1}), (6, {"safety": 0.5})]
    assert unreliable_steps(few, "safety") == [2] and best_step(few, "safety", True) == (4, 0.6)
    assert evaluations_without_gain(few, "safety", True, 0.0) == 1
    none = few[:2]
    assert unreliable_steps(none, "safety") == [2] and best_step(none, "safety", True) == (2, 1.0), "the run says that it is no measure"
