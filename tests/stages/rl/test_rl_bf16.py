"""RL in bfloat16: what is multiplied in it, in training and in sampling alike, and what a log-probability computed in it is worth."""

from __future__ import annotations

import itertools
import signal

import pytest
import torch

from safework_cli.core.errors import RunAgain
from safework_cli.core.progress import Progress, QuietDisplay, read_metrics
from safework_cli.core.signals import StopRequest
from safework_cli.core.stage import Inputs, WorkDir
from safework_cli.engines.hf.packed import packed_linears
from safework_cli.engines.load import engine_over
from safework_cli.engines.protocol import Sampling
from safework_cli.models.load import load_model, load_tokenizer
from safework_cli.models.precision import in_bf16
from safework_rl.m3.config import M3Config
from safework_rl.m3.stage import stage as m3
from safework_rl.trl_adapter import LadderTrainer

SMALL = {
    "max_steps": 4, "num_generations": 4, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_completion_length": 12,
    "learning_rate": 5e-3, "preflight": 0, "filter_groups": False, "phases": [{"tasks": ["general", "safety"], "share": 1.0}],
    "warmup_ratio": 0.0, "beta": 0.05, "bf16": True,
}  # fmt: skip
ROUNDED = 0.02


@pytest.fixture
def run(tiny_artifact, toy_data, tmp_path, rewards):
    """Runs m3 in a folder of its own, by number, and returns its weights, steps and folder."""
    numbers = itertools.count()
    inputs = Inputs({"model": tiny_artifact, "data": toy_data.with_subset("rl"), "verifiers": {"judge": tiny_artifact}})

    def go(*, folder=None, stop=None, **settings):
        folder = folder or tmp_path / str(next(numbers))
        folder.mkdir(exist_ok=True)
        work = WorkDir(folder, "0" * 64, Progress(folder, QuietDisplay()), stop or StopRequest())
        try:
            m3.run(M3Config(**(SMALL | rewards | settings)), inputs, work)
        finally:
            work.progress.close()
        return load_model(work.output, dtype="float32").state_dict(), read_metrics(work.progress.metrics_path), work

    return go


def same(one, two) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    "settings",
    [
        {"steps_per_generation": 2, "num_iterations": 2},
        {"steps_per_generation": 4},
        {"steps_per_generation": 4, "share_prompts": False},
        {"steps_per_generation": 4, "lora": {"r": 4, "alpha": 8}},
        {"steps_per_generation": 4, "algorithm": "grpo"},
    ],
    ids=["one update, two passes", "two updates", "plain path", "adapters", "TRL's loss"],
)
def test_before_the_first_update_the_ratio_is_one_and_the_policy_is_the_reference(run, settings):
    """Old, new and the reference's log-probabilities of a step have one precision and one path, to the bit."""
    _, steps, _ = run(save_dtype="float32", **settings)
    fresh = [step for step in steps if "engine/first_log_ratio" in step]
    assert [step["step"] for step in fresh] == [1, 3]
    assert all(step["engine/first_log_ratio"] == 0 for step in fresh)
    assert steps[0]["kl"] == 0 and all(step["kl"] > 0 for step in steps[1:])
    gaps = [step["engine/logprob_gap"] for step in steps]
    assert max(gaps) < 1e-3, "sampled with the same products; other numbers of rows round a little otherwise"


def test_bf16_is_for_products_only(run, monkeypatch):
    """Weights, gradients and what is saved stay float32; the losses differ from float32's by rounding."""
    types = []
    original = LadderTrainer.training_step

    def noted(self, model, *more):
        loss = original(self, model, *more)
        types.extend({p.dtype for p in model.parameters()} | {p.grad.dtype for p in model.parameters() if p.grad is not None})
        return loss

    monkeypatch.setattr(LadderTrainer, "training_step", noted)
    settings = {"max_steps": 1, "steps_per_generation": 2, "save_dtype": "float32"}
    in16, rounded, _ = run(**settings)
    in32, exact, _ = run(bf16=False, **settings)
    assert set(types) == {torch.float32} and not same(in16, in32)
    assert rounded[0]["grad_norm"] != exact[0]["grad_norm"]


def test_stopped_within_a_rollout_and_run_again_gives_the_same_bits(run, tmp_path, monkeypatch):
    settings = {"steps_per_generation": 2, "num_iterations": 2}
    whole, steps, _ = run(**settings)
    original, stop = LadderTrainer.compute_loss, StopRequest()

    def stopping(self, model, inputs, *more, **options):
        if self.state.global_step == 2:  # the first of the two updates of the second rollout
            stop.requested = signal.SIGTERM
        return original(self, model, inputs, *more, **options)

    monkeypatch.setattr(LadderTrainer, "compute_loss", stopping)
    with pytest.raises(RunAgain):
        run(folder=tmp_path / "parts", stop=stop, **settings)
    monkeypatch.setattr(LadderTrainer, "compute_loss", original)
    again, resumed, _ = run(folder=tmp_path / "parts", **settings)
    assert same(whole, again) and [step["loss"] for step in resumed] == [step["loss"] for step in steps]


@pytest.mark.parametrize("bf16", [False, True])
def test_old_log_probabilities_are_not_computed_twice(run, monkeypatch, bf16):
    """Where the first update goes over the whole rollout, its passes give them: the same bits as a pass of its own gave."""
    settings = {"steps_per_generation": 2, "num_iterations": 2, "bf16": bf16, "beta": 0.0}
    passes = []
    original = LadderTrainer._logps

    def counted(self, *more, **options):
        passes.append(torch.is_grad_enabled())
        return original(self, *more, **options)

    monkeypatch.setattr(LadderTrainer, "_logps", counted)
    kept, _, _ = run(**settings)
    assert passes == [True] * 8
    passes.clear()
    monkeypatch.setattr(LadderTrainer, "_kept_by_first_update", False)
    computed, _, _ = run(**settings)
    assert passes.count(False) == 2 and passes.count(True) == 8
    assert same(kept, computed)


def test_the_engine_multiplies_in_bf16_and_leaves_the_model_as_it_was(tiny_model):
    model, tokenizer = load_model(tiny_model, dtype="float32"), load_tokenizer(tiny_model)
    prompts, sampling = [list(range(5, 5 + length)) for length in (9, 12, 30)], Sampling(12, 0.0)
    exact = engine_over(model, tokenizer).generate_ids(prompts, sampling)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    rounded = engine_over(model, tokenizer, bf16=True).generate_ids(prompts, sampling)
    assert same(before, model.state_dict()) and model.config._attn_implementation == "sdpa"
    assert not [module for module in model.modules() if "forward" in vars(module)]
    pairs = [(a.logprobs[0], b.logprobs[0]) for (a,), (b,) in zip(exact, rounded, strict=True)]
    assert all(0 < abs(a - b) < ROUNDED for a, b in pairs)


def test_packed_products_under_autocast_are_those_of_autocast(tiny_model):
    """The output embedding's stay float32: logits are not rounded to three digits."""
    model = load_model(tiny_model, dtype="float32")
    ids = torch.arange(40).view(4, 10)
    with torch.inference_mode(), in_bf16(model):
        plain = model(ids).logits
        with packed_linears(model, rows=4):
            packed = model(ids).logits
        assert torch.equal(model(ids).logits, plain), "taken back"
    assert packed.dtype == plain.dtype == torch.float32 and not torch.equal(packed, packed.bfloat16().float())
    assert (packed - plain).abs().max() < 0.02 * plain.abs().max()
