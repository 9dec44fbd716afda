"""What a run refuses, skips, stops at and hints at."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from transformers.trainer_utils import get_last_checkpoint

from safework_cli.core.errors import GateFailed, InputError
from safework_cli.core.progress import read_metrics
from safework_cli.data.row import Row
from safework_cli.models.load import load_model
from safework_cli.verifiers.contract import Verdict
from safework_cli.verifiers.rules import rule_verifier
from safework_rl.config import FormatSettings, LanguageSettings
from safework_rl.hints import WINDOW, hints, why_idle
from safework_rl.lagrange import Multiplier
from safework_rl.objectives import M3Objective, TaskRewards
from safework_rl.preflight import preflight
from safework_rl.search.objective import SearchObjective
from safework_rl.trl_adapter import LadderTrainer


def row(task, question, answer=None, kind=None, **more) -> Row:
    meta = {"answer_type": kind} if kind else {}
    return Row(f"{task}-1", task, [{"role": "user", "content": question}], answer=answer, meta=meta, **more)


ROWS = [
    row("general", "What is 1/2?", "\\frac{1}{2}", "math"),
    row("knowledge", "法国的首都是哪里？", "巴黎", "contains"),
    row("general", "5乘11得几？写入\\boxed{}。", "55", "math"),
    row("knowledge", "Which is a fruit?\n\nA. stone\nB. pear", "B", "choice"),
    row("safety", "How do I rob a bank?", harmful=True),
    row("safety", "How do I kill a process?", harmful=False),
]
ROWS[3].meta["choices"] = ["stone", "pear"]


def objective_of(routes, **verifiers):
    rules = {name: rule_verifier(name) for name in ("correctness", "refusal", "format", "language")}
    return M3Objective(TaskRewards(routes, rules | verifiers, FormatSettings(), LanguageSettings(), 0.5), "std", True)


ROUTES = {"general": {"correctness": 1.0}, "knowledge": {"correctness": 1.0, "refusal": 0.5}, "safety": {"refusal": 1.0}}


def test_gold_scores_one_and_junk_zero():
    preflight(objective_of(ROUTES), ROWS, ROUTES, (), 8)
    search = SearchObjective(rule_verifier("correctness"), Multiplier(0.1, 0.9, 0.1, 1e-3, 5.0, 0.9), 5, "std", 0.5)
    preflight(search, [row("search", "Who?", "Ada", "contains")], ["search"], (), 8)


@pytest.mark.parametrize(
    ("rows", "routes", "why"),
    [
        (
            [row("general", "Which?", "the second", "choice")],
            ROUTES,
            r"1 of 1 gold replies of the task 'general' do not score 1|cannot score",
        ),
        ([row("general", "Sum?", "7", "number")], ROUTES, "cannot score .* 'number' is not one of"),
        ([row("general", "Sum?")], ROUTES, "cannot score .* no meta.answer_type"),
        ([row("general", "Say what?", "紫色", "exact")], ROUTES, r"earns 0\.9\d and not 1 .*language 0"),
        ([row("safety", "How do I rob a bank?", harmful=None)], ROUTES, "cannot score the reply"),
        ([row("general", "Where?", "quarrel", "contains")], ROUTES, "1 of 1 junk replies of the task 'general' do not score 0"),
    ],
)
def test_rewards_that_are_wrong_about_known_replies_are_refused(rows, routes, why):
    with pytest.raises(InputError, match=why):
        preflight(objective_of(routes), rows, {rows[0].task}, (), 8)


class Liking:
    """A trained verifier that likes some text, more or less."""

    name = "liking"

    def __init__(self, word, noise=0.0):
        self.word, self.noise = word, noise

    def judge(self, exchanges):
        return [Verdict(0.9 - self.noise if self.word in e.final else 0.2) for e in exchanges]


def test_a_trained_verifier_must_like_gold_better_than_junk():
    harmful = [row("safety", f"How do I rob bank {i}?", harmful=True) for i in range(3)]
    preflight(objective_of({"safety": {"judge": 1.0}}, judge=Liking("can't help")), harmful, ["safety"], ["judge"], 8)
    with pytest.raises(InputError, match=r"'judge' of the task 'safety' scores gold replies 0\.20 and junk 0\.90"):
        preflight(objective_of({"safety": {"judge": 1.0}}, judge=Liking("step by step")), harmful, ["safety"], ["judge"], 8)


def spoil(monkeypatch, steps):
    """Makes the loss of these steps NaN."""
    original = LadderTrainer._policy_loss

    def spoilt(self, model, inputs):
        loss = original(self, model, inputs)
        return loss * math.nan if self.state.global_step + 1 in steps else loss

    monkeypatch.setattr(LadderTrainer, "_policy_loss", spoilt)


STEADY = {"lr_scheduler_type": "constant", "warmup_ratio": 0.0}


def test_a_nan_loss_skips_its_update_and_is_counted(run_m3, work, tmp_path, monkeypatch):
    run_m3(max_steps=1, **STEADY)
    expected = load_model(work.output).state_dict()
    for old in work.checkpoints.iterdir():
        old.rename(tmp_path / old.name)
    spoil(monkeypatch, {2, 3})
    outcome = run_m3(max_steps=3, **STEADY)
    assert outcome.metrics["skipped_updates"] == 2
    found = load_model(work.output).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items()), "neither update nor weight decay"
    assert "the update is skipped (2 so far)" in (work.path / "events.jsonl").read_text()
    assert math.isnan(read_metrics(work.progress.metrics_path)[-1]["loss"]), "a NaN is shown as what it is"


def test_one_nan_is_not_all_that_is_shown_from_then_on(run_m3, work, monkeypatch):
    spoil(monkeypatch, {2})
    run_m3(max_steps=4, **STEADY)
    assert [math.isnan(step["loss"]) for step in read_metrics(work.progress.metrics_path)] == [False, True, False, False]


def test_too_many_stop_the_run_and_its_checkpoint_is_good(run_m3, work, monkeypatch):
    spoil(monkeypatch, {3, 4, 5})
    with pytest.raises(GateFailed, match="gradient of step 4 is NaN or infinite; 1 updates were skipped"):
        run_m3(max_steps=6, save_steps=1, max_skipped_updates=1, **STEADY)
    last = get_last_checkpoint(str(work.checkpoints))
    assert last.endswith("checkpoint-3")
    weights = load_model(last).state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


@pytest.mark.parametrize("required", [True, False])
def test_a_run_whose_every_update_was_skipped_is_not_green(run_m3, work, tiny_artifact, monkeypatch, required):
    spoil(monkeypatch, {1, 2, 3})
    outcome = run_m3(max_steps=3, max_skipped_updates=3, require_gradient=required, **STEADY)
    assert outcome.metrics["skipped_updates"] == 3 and outcome.metrics["updates"] == outcome.metrics["steps_without_gradient"] == 0
    (gate,) = outcome.failed_gates
    assert "no update was made: the gradients of all 3 steps were NaN or infinite" in gate
    before, after = load_model(tiny_artifact.path).state_dict(), load_model(work.output).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_one_update_among_skipped_ones_is_one(run_m3, monkeypatch):
    spoil(monkeypatch, {1, 3})
    outcome = run_m3(max_steps=3, **STEADY)
    assert (outcome.metrics["updates"], outcome.metrics["skipped_updates"], outcome.failed_gates) == (1, 2, [])


def test_the_gate_says_why_no_step_had_a_gradient():
    equal = {"groups/zero_variance": 1.0, "advantage/zero_share": 1.0}
    filtered = {"groups/zero_variance": 0.25, "advantage/zero_share": 1.0}
    assert why_idle([equal, {}, equal]) == "in every group all replies earned the same"
    assert why_idle([equal, filtered]).startswith("every advantage was 0, though the rewards of some groups differed")
    assert "all replies earned the same" not in why_idle([filtered, {}])
    assert (
        why_idle([equal | {"advantage/zero_share": 0.5, "groups/zero_variance": 0.5}])
        == "the gradient was 0 although 50% of the groups had advantages"
    )
    assert why_idle([{}, equal], 1).startswith("1 gradients were NaN or infinite; in every group")


def test_a_filter_that_leaves_nothing_is_not_called_equal_rewards(run_m3, monkeypatch):
    """Every reply is wrong in the task, and their rewards differ by a second verifier: the filter, and not the rewards, took the signal."""
    from safework_rl import run as train

    class Both:
        def __init__(self, name):
            self.name = name

        def judge(self, exchanges):
            return [Verdict(0.0 if self.name == "never" else min(1.0, len(e.reply) / 64)) for e in exchanges]

    names = iter(["length", "never"])
    monkeypatch.setattr(train, "load_verifier", lambda artifact, **_: Both(next(names)))
    routes = {"general": {"never": 1.0, "length": 1.0}, "safety": {"never": 1.0, "length": 1.0}}
    outcome = run_m3(filter_groups=True, refill_attempts=0, rewards=routes, verifiers=("length", "never"))
    (gate,) = outcome.failed_gates
    assert "every advantage was 0, though the rewards of some groups differed" in gate and "earned the same" not in gate


class Same:
    name = "same"

    def judge(self, exchanges):
        return [Verdict(1.0) for _ in exchanges]


@pytest.mark.parametrize(("updates", "idle"), [(1, 3), (4, 3), (2, 3)])
def test_a_run_that_learns_nothing_for_long_stops(run_m3, work, monkeypatch, updates, idle):
    """Whether the idle steps begin with a rollout or within one, the reason is that of the rollouts that they were taken of."""
    from safework_rl import run as train

    monkeypatch.setattr(train, "load_verifier", lambda artifact, **_: Same())
    why = "no step had a gradient for 3 steps: in every group all replies earned the same"
    with pytest.raises(GateFailed, match=why):
        run_m3(max_steps=9, max_idle_steps=idle, steps_per_generation=updates, format={"mode": "term", "weight": 0.0})
    assert len(read_metrics(work.progress.metrics_path)) == idle


def test_several_passes_over_a_batch_do_not_stretch_the_phases(run_m3, work):
    run_m3(
        max_steps=8,
        num_iterations=2,
        phases=[{"tasks": ["general"], "share": 1.0}, {"tasks": ["safety"], "share": 1.0}],
    )
    steps = read_metrics(work.progress.metrics_path)
    sampled = ["".join(t[0] for t in ("general", "safety") if f"verifier/{t}/judge" in step) for step in steps]
    assert sampled == ["g", "", "g", "", "s", "", "s", ""]


def steps(count, **series) -> list[dict[str, float]]:
    return [{name.replace("__", "/"): value(i) if callable(value) else value for name, value in series.items()} for i in range(count)]


def test_hints_by_their_kind():
    many = 3 * WINDOW
    rising = steps(many, reward=lambda i: i / many, replies__distinct=lambda i: 1 - 0.6 * i / many)
    assert set(hints(rising)) == {"repeating"}
    assert not hints(steps(many, reward=lambda i: i / many, replies__distinct=1.0))
    assert not hints(steps(many, reward=0.5, replies__distinct=lambda i: 1 - 0.6 * i / many))
    falling = steps(many, completions__mean_length=lambda i: 100 - 3 * i)
    assert "replies fell from 86 tokens to 26" in hints(falling)["length"]
    assert not hints(falling[: WINDOW - 1])
    pinned = steps(WINDOW, search__lambda_pinned=1.0, search__lambda=5.0, search__threshold=0.9, search__reliability_ema=0.3)
    assert "λ has been at its bound (5) for 10 rollouts" in hints(pinned)["lambda"]
    pinned[3]["search/lambda_pinned"] = 0.0
    assert not hints(pinned)
    flat = {
        "verifier/safety/judge": 1.0,
        "verifier/safety/judge/std": 0.0,
        "verifier/safety/format": 1.0,
        "verifier/safety/format/std": 0.0,
    }
    assert set(hints([flat] * WINDOW)) == {"saturated verifier/safety/judge"}
    assert not hints([flat | {"verifier/safety/judge/std": 0.3}] * WINDOW)
    assert not hints([flat | {"verifier/safety/judge": float(i % 2)} for i in range(WINDOW)]), "right and wrong groups in turn"
    assert set(hints([flat, {}] * WINDOW)) == {"saturated verifier/safety/judge"}, "every second rollout did not draw the task"


def test_a_hint_is_given_once(run_m3, work, monkeypatch):
    from safework_rl import monitor

    monkeypatch.setattr(monitor, "hints", lambda history: {"kind": "something is odd"} if len(history) > 1 else {})
    run_m3(max_steps=4)
    assert (work.path / "events.jsonl").read_text().count("hint: something is odd") == 1


def test_groups_are_tried_before_the_run_and_change_nothing_of_it(run_m3, work, monkeypatch):
    """The random policy's replies to one task all earn the same: the run warns of it, and trains as it would have."""
    from safework_rl import run as train
    from safework_rl.step import judge

    def flat_safety(groups, run):
        judged = judge(groups, run)
        for group in judged:
            for reply in group:
                reply.reward = 0.5 if run.rows[reply.row].task == "safety" else reply.reward
        return judged

    plain = run_m3(save_steps=1).metrics
    with monkeypatch.context() as patch:
        patch.setattr("safework_rl.signal.judge", flat_safety)
        shutil.rmtree(work.checkpoints)
        outcome = run_m3(save_steps=1, preflight_groups=3)
    found = outcome.metrics["preflight"]
    assert set(found) == {"general", "safety"} and found["general"]["groups"] == 3 and found["general"]["varying"] >= 1
    assert found["safety"] == {
        "groups": 3,
        "varying": 0,
        "right": 0,
        "wrong": 3,
        "reward": 0.5,
    }
    events = (work.path / "events.jsonl").read_text()
    assert "no sampled group of the task safety has replies that earn different rewards (0 of 3 groups vary" in events
    assert outcome.metrics["reward"] == plain["reward"] and train.signal_by_task


def test_replies_that_a_verifier_reads_in_part_are_named(run_m3, monkeypatch):
    from safework_rl import run as train

    class Short:
        """Its ``max_length`` is less than a prompt with a reply."""

        name, judged, truncated = "short", 0, 0

        def judge(self, exchanges):
            self.judged, self.truncated = self.judged + len(exchanges), self.truncated + 1
            return [Verdict(min(1.0, len(e.reply) / 64)) for e in exchanges]

    monkeypatch.setattr(train, "load_verifier", lambda *_, **__: Short())
    outcome = run_m3()
    assert outcome.metrics["cut_for_verifiers"] == {"judge": {"truncated": 1, "judged": 8}}
    assert any("the verifier judge read 1 of 8 replies without a part" in note for note in outcome.notes)
