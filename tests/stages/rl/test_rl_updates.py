"""Several updates of one rollout: what acts then, what follows it, and what a kill in the middle leaves."""

from __future__ import annotations

import itertools
import signal

import pytest
import torch
from pydantic import ValidationError

from safework_cli.core.errors import RunAgain
from safework_cli.core.progress import Progress, QuietDisplay, read_metrics
from safework_cli.core.signals import StopRequest
from safework_cli.core.stage import Inputs, WorkDir
from safework_cli.engines.hf.engine import HFEngine
from safework_cli.models.load import load_model
from safework_rl import trl_adapter
from safework_rl.config import RlConfig
from safework_rl.engine_gap import engine_ratio, gap_limit
from safework_rl.losses import cpgd
from safework_rl.m3.config import M3Config
from safework_rl.m3.stage import stage as m3
from safework_rl.trl_adapter import LadderTrainer

PHASES = [{"tasks": ["general"], "share": 1.0}, {"tasks": ["general", "safety"], "share": 1.0}]
SMALL = {
    "max_steps": 4, "num_generations": 4, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "max_completion_length": 12,
    "learning_rate": 0.02, "preflight": 0, "filter_groups": False, "phases": PHASES, "warmup_ratio": 0.0,
    "bf16": False,
}  # fmt: skip
WILD = {"epsilon": 0.01, "drift_coef": 5.0}


@pytest.fixture
def run(tiny_artifact, toy_data, tmp_path, rewards):
    """Runs m3 in a folder of its own, by number, and returns its weights and steps."""
    numbers = itertools.count()
    inputs = Inputs({"model": tiny_artifact, "data": toy_data.with_subset("rl"), "verifiers": {"judge": tiny_artifact}})

    def go(*, folder=None, stop=None, **settings):
        folder = folder or tmp_path / str(next(numbers))
        folder.mkdir(exist_ok=True)
        progress = Progress(folder, QuietDisplay())
        work = WorkDir(folder, "0" * 64, progress, stop or StopRequest())
        try:
            outcome = m3.run(M3Config(**(SMALL | rewards | settings)), inputs, work)
        finally:
            progress.close()
        return load_model(work.output).state_dict(), read_metrics(work.progress.metrics_path), outcome, work

    return go


def same(one, two) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


def test_the_constants_act_on_a_rollout_of_four_updates(run):
    usual, steps, outcome, _ = run()
    assert RlConfig().updates_per_rollout == 4 and [("reward" in step) for step in steps] == [True, False, False, False]
    assert steps[0]["cpgd/drift"] == pytest.approx(0, abs=1e-9) and steps[0]["cpgd/clip_share"] == 0, "the policy is the one that sampled"
    assert all(step["cpgd/drift"] > 1e-6 for step in steps[1:])
    assert all(step["engine/logprob_gap"] < 1e-5 for step in steps), "old log-probabilities are those of the policy that sampled"
    assert outcome.metrics["updates"] == 4 and not outcome.notes
    wild, other, _, _ = run(loss=WILD)
    assert other[0]["reward"] == steps[0]["reward"], "the same rollout"
    assert not same(usual, wild)
    assert max(step["cpgd/clip_share"] for step in other[1:]) > max(step["cpgd/clip_share"] for step in steps[1:])
    assert [step["cpgd/drift"] for step in other[1:]] != [step["cpgd/drift"] for step in steps[1:]]


def test_on_one_update_a_rollout_they_do_not_and_the_run_says_so(run, tiny_artifact, toy_data, rewards):
    one = {"steps_per_generation": 1}
    usual, steps, outcome, work = run(**one)
    wild, _, _, _ = run(loss=WILD, **one)
    assert same(usual, wild) and all("reward" in step for step in steps)
    assert ["loss.epsilon, tight, drift_coef and drift_cap have no effect" in note for note in outcome.notes] == [True]
    assert "have no effect" in (work.path / "events.jsonl").read_text()
    inputs = Inputs({"model": tiny_artifact, "data": toy_data, "verifiers": {"judge": tiny_artifact}})
    said = [line for line in m3.plan(M3Config(**(SMALL | rewards | one)), inputs).lines if line.startswith("warning: ")]
    assert len(said) == 1 and "one update per rollout" in said[0]
    assert not [line for line in m3.plan(M3Config(**(SMALL | rewards)), inputs).lines if "warning" in line]
    passes = M3Config(**(SMALL | rewards | one | {"num_iterations": 2}))
    assert not passes.warnings(), "a second pass over the rollout is made by another policy"


@pytest.mark.parametrize(("max_steps", "used"), [(4, 4), (6, 6), (3, 3)])
def test_the_last_rollout_samples_what_is_trained_on(run, monkeypatch, max_steps, used):
    seen = []
    original = trl_adapter.step

    def noted(engine, prompts, number, run):
        seen.append(len(prompts))
        return original(engine, prompts, number, run)

    monkeypatch.setattr(trl_adapter, "step", noted)
    _, steps, _, _ = run(max_steps=max_steps)
    assert sum(seen) == used and len(steps) == max_steps
    assert M3Config(**(SMALL | {"max_steps": max_steps})).prompts_used == used


@pytest.mark.parametrize("algorithm", ["dapo", "cispo"])
def test_a_cut_last_rollout_weighs_its_tokens_as_a_whole_one(run, algorithm):
    """TRL divides the tokens of a rollout by the passes that it would serve: two of four passes must not count half."""
    short, _, _, _ = run(algorithm=algorithm, max_steps=2, steps_per_generation=4, save_steps=100)
    whole, _, _, _ = run(algorithm=algorithm, max_steps=2, steps_per_generation=2, save_steps=100)
    assert same(short, whole)


def test_each_update_is_the_mean_over_its_own_groups(run, monkeypatch):
    """The denominator of a token is its group's tokens times the groups of an update, not of the rollout."""
    seen = []
    original = cpgd.cpgd_loss

    def noted(logp, old, advantage, mask, denominator, **more):
        seen.append((mask.sum().item(), denominator.tolist(), old is logp))
        return original(logp, old, advantage, mask, denominator, **more)

    monkeypatch.setattr(cpgd, "cpgd_loss", noted)
    run(per_device_train_batch_size=2, gradient_accumulation_steps=4, steps_per_generation=8, max_steps=2)
    assert len(seen) == 8
    for first in range(0, 8, 2):  # two passes of two replies make a group of four; two groups an update
        tokens = seen[first][0] + seen[first + 1][0]
        assert seen[first][1] == seen[first + 1][1] == [2 * tokens] * 2


@pytest.mark.parametrize("settings", [{}, {"steps_per_generation": 2, "num_iterations": 2}, {"algorithm": "grpo", "beta": 0.01}])
def test_stopped_within_a_rollout_and_run_again_gives_the_same_bits(run, tmp_path, monkeypatch, settings):
    settings = {"max_steps": 7, "lr_scheduler_type": "cosine"} | settings
    whole, steps, _, _ = run(**settings)
    original, stop = LadderTrainer.compute_loss, StopRequest()

    def stopping(self, model, inputs, *more, **options):
        if self.state.global_step == 5:  # the second update of the second rollout
            stop.requested = signal.SIGTERM
        return original(self, model, inputs, *more, **options)

    monkeypatch.setattr(LadderTrainer, "compute_loss", stopping)
    with pytest.raises(RunAgain):
        run(folder=tmp_path / "parts", stop=stop, **settings)
    monkeypatch.setattr(LadderTrainer, "compute_loss", original)
    again, resumed, _, work = run(folder=tmp_path / "parts", **settings)
    assert "resumed at step 6 of 7" in (work.path / "events.jsonl").read_text()
    assert same(whole, again)
    assert [step["loss"] for step in resumed] == [step["loss"] for step in steps]


@pytest.mark.parametrize(
    ("rollout", "save_steps", "whole_ones"), [(0, 100, []), (1, 100, [2]), (1, 1, [1, 2])], ids=["first", "later", "saved before"]
)
def test_a_signal_does_not_wait_for_a_rollout(run, tmp_path, monkeypatch, rollout, save_steps, whole_ones):
    """Sampling may take minutes, and a scheduler kills what has not ended some seconds after its signal."""
    settings = {"max_steps": 4, "steps_per_generation": 2, "save_steps": save_steps}
    whole, steps, _, _ = run(**settings)
    original, stop, replies = HFEngine._generate_batch, StopRequest(), []

    def signalled(self, *words):
        replies.append(len(words[0]))
        if sum(replies) > 8 * rollout:
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("sampling went on")
        return original(self, *words)

    folder = tmp_path / "parts"
    monkeypatch.setattr(HFEngine, "_generate_batch", signalled)
    with pytest.raises(RunAgain, match="SIGTERM"), stop.installed():
        run(folder=folder, stop=stop, generation_batch_size=4, **settings)
    monkeypatch.setattr(HFEngine, "_generate_batch", original)
    assert sorted(int(path.parent.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoints/*/COMPLETE.json")) == whole_ones
    again, resumed, _, _ = run(folder=folder, **settings)
    assert ("resumed at step 2 of 4" in (folder / "events.jsonl").read_text()) == bool(rollout)
    assert same(whole, again) and [step["loss"] for step in resumed] == [step["loss"] for step in steps]


def test_phases_and_samples_follow_the_rollouts(run):
    phases = [{"tasks": ["general"], "share": 1.0}, {"tasks": ["safety"], "share": 1.0}]
    _, steps, _, _ = run(max_steps=8, steps_per_generation=2, phases=phases)
    drawn = ["".join(t[0] for t in ("general", "safety") if f"verifier/{t}/judge" in step) for step in steps]
    assert drawn == ["g", "", "g", "", "s", "", "s", ""]
    _, steps, _, _ = run(max_steps=8, steps_per_generation=8, phases=phases)
    assert {"verifier/general/judge", "verifier/safety/judge"} <= steps[0].keys(), "one rollout of both"


def test_draws_do_not_depend_on_how_many_are_made_together(run):
    """``generation_batch_size`` stays out of the fingerprint: samples and weights must not know of it."""
    one, first, _, _ = run(generation_batch_size=3, max_steps=6)
    two, second, _, _ = run(generation_batch_size=16, max_steps=6)
    assert same(one, two) and [s["loss"] for s in first] == [s["loss"] for s in second]


def test_the_reference_kl_beside_the_clip_is_the_official_one(run):
    """LightRFT adds k3 to the CPG clip: 0 while the policy is the reference, then pulling back."""
    free, _, _, _ = run()
    held, steps, _, _ = run(beta=2.0)
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-7) and all(step["kl"] > 0 for step in steps[1:])
    assert not same(free, held)


WIDE = {"epsilon": 0.99, "weighting": "std"}


def test_the_drift_bounds_how_far_the_policy_moves_from_the_one_that_sampled(run):
    """Two rollouts of eight updates; the clip is too wide to act."""
    more = {"max_steps": 8, "num_iterations": 2, "learning_rate": 5e-3}
    _, free, _, _ = run(loss=WIDE | {"drift_coef": 0.0}, **more)
    _, weak, _, _ = run(loss=WIDE, **more)
    _, held, _, _ = run(loss=WIDE | {"drift_coef": 5.0}, **more)
    assert free[1]["cpgd/drift"] > 0 and free[-1]["cpgd/drift_force"] == 0
    assert held[-1]["cpgd/drift"] < 0.5 * free[-1]["cpgd/drift"], "the drift holds the policy"
    assert held[-1]["cpgd/drift_force"] > 0.05
    assert weak[-1]["cpgd/drift"] > 0.9 * free[-1]["cpgd/drift"], "at the public implementations' 1e-3 it does not"


def test_constants_that_held_nothing_are_named(run):
    _, steps, outcome, work = run(learning_rate=1e-5)
    assert all(0 < step["cpgd/log_ratio"] < 0.02 for step in steps[1:]) and steps[-1]["cpgd/drift"] > 0
    assert ["only the learning rate held the policy: the clip removed 0.00%" in note for note in outcome.notes] == [True]
    assert "only the learning rate held the policy" in (work.path / "events.jsonl").read_text()
    assert 0 < outcome.metrics["cpgd/drift"]["last"] < 1e-4, "a small drift is not written as 0"
    assert run(learning_rate=1e-5, beta=0.02)[2].notes == run(learning_rate=1e-5, loss={"drift_coef": 5.0})[2].notes == []


@pytest.mark.parametrize("algorithm", ["cpgd", "grpo", "dapo"])
def test_a_kl_penalty_to_the_starting_policy_acts_with_every_loss(run, algorithm):
    more = {"max_steps": 8, "learning_rate": 2e-3, "algorithm": algorithm}
    _, free, _, _ = run(beta=1e-6, **more)
    _, held, _, _ = run(beta=50.0, **more)
    assert free[0]["kl"] == pytest.approx(0, abs=1e-6), "the policy is the one that the run started from"
    assert free[-1]["kl"] > 1e-4 and held[-1]["kl"] < 0.5 * free[-1]["kl"]


def test_the_first_step_of_a_short_run_learns(run, tiny_artifact):
    for warmup in (0.03, 1.0):
        after, steps, outcome, _ = run(max_steps=1, warmup_ratio=warmup)
        assert steps[0]["learning_rate"] == pytest.approx(0.01) and outcome.metrics["updates"] == 1
        assert not same(load_model(tiny_artifact.path).state_dict(), after)
    _, steps, _, _ = run(max_steps=4, warmup_ratio=1.0)
    assert [step["learning_rate"] for step in steps] == pytest.approx([0.004, 0.008, 0.012, 0.016]), "all steps rise, not one"


def test_the_gap_that_stops_a_run_follows_what_it_computes_in():
    assert gap_limit(None, None, in_bf16=False) == 1e-3 and gap_limit(None, None, in_bf16=True) == 0.1
    assert gap_limit(None, 1e-7, in_bf16=False) == 1e-4, "a thousand times the first step's, far below 0.5"
    assert gap_limit(None, 2e-3, in_bf16=True) == 0.02 and gap_limit(None, 0.031, in_bf16=True) == 0.1
    assert gap_limit(0.5, 1e-7, in_bf16=False) == 0.5, "what the user asks for stands"
    assert f"{gap_limit(None, None, in_bf16=True):g} in bfloat16" in str(RlConfig.model_fields["max_logprob_gap"].description)


@pytest.mark.parametrize("wished", [False, True])
def test_experts_keep_their_routers_auxiliary_loss(tiny_model, store, toy_data, work, rewards, tmp_path, wished, monkeypatch):
    """CPGD adds it as TRL's losses do; a configuration that asks for router logits in every pass trains, samples and saves like another."""
    from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

    from safework_cli.core.artifacts.transfer import import_folder

    tokenizer = AutoTokenizer.from_pretrained(str(tiny_model))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    shape = MixtralConfig(
        vocab_size=len(tokenizer), num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=512, router_aux_loss_coef=0.5,
        output_router_logits=wished, eos_token_id=tokenizer.eos_token_id, **sizes,
    )  # fmt: skip
    MixtralForCausalLM(shape).save_pretrained(tmp_path / "experts")
    tokenizer.save_pretrained(tmp_path / "experts")
    model = import_folder(store, tmp_path / "experts", "experts")
    inputs = Inputs({"model": model, "data": toy_data.with_subset("rl"), "verifiers": {"judge": model}})
    differences, original = [], LadderTrainer._policy_loss

    def both(self, *given):
        loss, coefficient = original(self, *given), self.router_aux_loss_coef
        self.router_aux_loss_coef = 0.0
        differences.append(float((loss - original(self, *given)).detach()) * self.current_gradient_accumulation_steps)
        self.router_aux_loss_coef = coefficient
        return loss

    monkeypatch.setattr(LadderTrainer, "_policy_loss", both)
    outcome = m3.run(M3Config(**(SMALL | rewards | {"max_steps": 2, "learning_rate": 1e-3})), inputs, work)
    assert differences and all(difference >= 0.5 * 0.99 for difference in differences), "0.5 times a loss of 1 or more"
    steps = read_metrics(work.progress.metrics_path)
    assert outcome.metrics["updates"] == 2 and all(step["aux_loss"] >= 1 and step["engine/logprob_gap"] < 1e-5 for step in steps)
    before, after = load_model(model.path).state_dict(), load_model(work.output).state_dict()
    gates = [name for name in before if "gate" in name and "gate_up" not in name]
    assert gates and any(not torch.equal(before[name], after[name]) for name in gates)


def test_the_weight_of_another_engines_tokens_is_their_ratio_up_to_a_cap():
    ratio = engine_ratio(torch.tensor([[-1.0, -1.0, -9.0]]), torch.tensor([[-1.0, -3.0, 0.0]]), torch.tensor([[1, 1, 0]]), 2.0)
    assert ratio.capped_BT.tolist() == [[1.0, 2.0, 1.0]] and ratio.capped_share == 0.5
    assert ratio.mean == pytest.approx((1 + 7.38906) / 2)


def test_vllm_samples_in_one_process_only():
    with pytest.raises(ValidationError, match="engine.kind=vllm samples in one process only"):
        RlConfig(engine={"kind": "vllm"}, launch={"strategy": "ddp", "processes": 2})
