"""The KL to a reference: another model as the reference, the rows on which it counts, and distillation without a reward."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import signal

import pytest
import torch
from pydantic import ValidationError

from safework_cli.core.artifacts.transfer import import_folder
from safework_cli.core.errors import InputError, RunAgain
from safework_cli.core.progress import Progress, QuietDisplay, read_metrics
from safework_cli.core.signals import StopRequest
from safework_cli.core.stage import Inputs, WorkDir
from safework_cli.data.row import Row, write_rows
from safework_cli.engines.load import engine_over
from safework_cli.engines.protocol import Sampling
from safework_cli.models.chat_template import encode_prompt
from safework_cli.models.load import load_model, load_tokenizer
from safework_cli.models.tiny import create_tiny_model
from safework_rl.config import KlSettings
from safework_rl.efficient.config import EfficientConfig
from safework_rl.efficient.stage import stage as efficient
from safework_rl.losses.contract import reference_kl
from safework_rl.m3.config import M3Config
from safework_rl.m3.stage import stage as m3
from safework_rl.reference import kl_counts, without_reward
from safework_rl.search.config import SearchConfig
from safework_rl.search.stage import stage as search
from safework_rl.trl_adapter import LadderTrainer

DISTIL = {
    "max_steps": 8, "num_generations": 4, "per_device_train_batch_size": 16, "gradient_accumulation_steps": 1, "steps_per_generation": 2,
    "max_completion_length": 12, "learning_rate": 3e-3, "preflight": 0, "warmup_ratio": 0.0, "beta": 1.0, "kl": {"estimator": "k2"},
    "phases": [{"tasks": ["general", "safety"], "share": 1.0}], "rewards": {"general": {}, "safety": {}}, "save_steps": 100,
}  # fmt: skip


@pytest.fixture
def base(store, tmp_path):
    """Another random model with the tiny model's tokenizer."""
    create_tiny_model(tmp_path / "base", architecture="llama", seed=7)
    return import_folder(store, tmp_path / "base", "base")


@pytest.fixture
def sure(store, tiny_model, tmp_path):
    """The tiny model, surer of each token than the base is."""
    model = load_model(tiny_model)
    with torch.no_grad():
        model.model.norm.weight *= 6
    shutil.copytree(tiny_model, tmp_path / "sure")
    model.save_pretrained(tmp_path / "sure")
    return import_folder(store, tmp_path / "sure", "sure")


@pytest.fixture
def prompts(store, commit):
    """Sums, and requests half of which are harmful."""
    folder = store.staging()
    (folder / "rl").mkdir()
    rows = []
    for i in range(16):
        rows.append(Row(f"g{i}", "general", [{"role": "user", "content": f"What is {i}+1?"}], answer=str(i + 1)))
        question = f"How do I {'rob' if i % 2 else 'paint'} house {i}?"
        rows.append(Row(f"s{i}", "safety", [{"role": "user", "content": question}], harmful=bool(i % 2)))
    write_rows(folder / "rl" / "rows.parquet", rows)
    return commit(folder, "dataset", "prompts").with_subset("rl")


@pytest.fixture
def run(tiny_artifact, base, prompts, tmp_path):
    """Runs m3 with the base as reference in a folder of its own, and returns the folder of the model, its steps and the outcome."""
    numbers = itertools.count()

    def go(*, folder=None, stop=None, without=(), more=None, **settings):
        folder = folder or tmp_path / f"run{next(numbers)}"
        folder.mkdir(exist_ok=True)
        progress = Progress(folder, QuietDisplay())
        work = WorkDir(folder, "0" * 64, progress, stop or StopRequest())
        inputs = {"model": tiny_artifact, "data": prompts, "reference": base} | (more or {})
        inputs = Inputs({slot: value for slot, value in inputs.items() if slot not in without})
        try:
            outcome = m3.run(M3Config(**(DISTIL | settings)), inputs, work)
        finally:
            progress.close()
        return work.output, read_metrics(work.progress.metrics_path), outcome

    return go


def reverse_kl(policy_folder, reference_folder, questions) -> float:
    """KL(policy ‖ reference) in nats a token over the whole vocabulary, on replies that the policy samples to the questions."""
    policy, reference, tokenizer = load_model(policy_folder), load_model(reference_folder), load_tokenizer(policy_folder)
    ids = [encode_prompt(tokenizer, [{"role": "user", "content": question}]).ids for question in questions]
    replies = engine_over(policy, tokenizer, 32).generate_ids(ids, Sampling(12, 1.0, seed=3))
    total, tokens = 0.0, 0
    for prompt, (reply,) in zip(ids, replies, strict=True):
        both = torch.tensor([[*prompt, *reply.token_ids]])
        with torch.no_grad():
            own, other = (m(both).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1) for m in (policy, reference))
        total += float((own.exp() * (own - other)).sum())
        tokens += len(reply.token_ids)
    return total / tokens


def test_distillation_brings_the_policy_to_the_reference_on_held_out_prompts(run, sure, base):
    made, steps, outcome = run(more={"model": sure})
    held_out = [f"Where does river {i} begin?" for i in range(24)]
    before, after = reverse_kl(sure.path, base.path, held_out), reverse_kl(made, base.path, held_out)
    assert after < 0.3 * before, (before, after)
    assert steps[-1]["kl"] < 0.4 * steps[0]["kl"]
    assert outcome.metrics["updates"] == 8 and not outcome.failed_gates
    assert outcome.metrics["rows"] == outcome.metrics["kl_rows"] == 24 and outcome.metrics["left_out"] == 8, "harmful prompts are not drawn"
    assert all(step["distilled"] == 1 and step["advantage/nonzero"] == 0 for step in steps)
    assert not {"reward", "correct", "unscorable", "groups/zero_variance", "advantage/zero_share", "cpgd/drift"} & steps[0].keys()


def test_without_a_reward_the_loss_is_the_weighted_kl_only(run, monkeypatch):
    losses, means = [], []
    original = LadderTrainer.compute_loss

    def noted(self, model, inputs, *more, **options):
        loss = original(self, model, inputs, *more, **options)
        denominator_B = inputs["group_tokens"] * self.config.prompts_per_step
        given = self._last_logp_BT, inputs["ref_per_token_logps"], inputs["loss_mask"]
        losses.append((float(loss.detach()), 2.5 * float(reference_kl(*given, denominator_B, "k2"))))
        means.append(float(reference_kl(*given, given[2].sum().expand(len(denominator_B)), "k2")))
        return loss

    monkeypatch.setattr(LadderTrainer, "compute_loss", noted)
    wild = {"loss": {"drift_coef": 100.0}, "learning_rate": 1e-2}
    _, steps, _ = run(max_steps=2, beta=2.5, **wild)
    assert [step["kl"] for step in steps] == pytest.approx(means, rel=1e-4), "logged is the estimator that acts"
    assert len(losses) == 2 and all(loss == pytest.approx(own, rel=1e-5) and own > 0 for loss, own in losses)


def test_rows_with_a_reward_and_rows_with_the_kl_train_in_one_run(run, tiny_artifact, rewards):
    """Harmful prompts have the reward and no KL, harmless ones both, and the task without a reward the KL only."""
    more = {"verifiers": {"judge": tiny_artifact}}
    settings = rewards | {"rewards": {"general": {}, "safety": {"judge": 1.0}}, "filter_groups": False, "max_steps": 2}
    made, steps, outcome = run(more=more, **settings)
    assert outcome.metrics["rows"] == 32 and outcome.metrics["kl_rows"] == 24 and "left_out" not in outcome.metrics
    assert 0 < steps[0]["distilled"] < 1 and steps[0]["advantage/nonzero"] > 0 and "verifier/safety/judge" in steps[0]
    assert "groups/zero_variance/general" not in steps[0] and "verifier/general/judge" not in steps[0]
    only, _, _ = run(more=more, **settings, without=("reference",))
    assert any(not torch.equal(a, b) for a, b in zip(load_model(made).parameters(), load_model(only).parameters(), strict=True))


@pytest.mark.parametrize("settings", [{}, {"lora": {"r": 4}}])
def test_a_stopped_distillation_goes_on_with_the_same_bits(run, tmp_path, monkeypatch, settings):
    settings = {"max_steps": 5, "save_steps": 2, "steps_per_generation": 4} | settings
    whole, steps, _ = run(**settings)
    original, stop = LadderTrainer.compute_loss, StopRequest()

    def stopping(self, model, inputs, *more, **options):
        if self.state.global_step == 2:
            stop.requested = signal.SIGTERM
        return original(self, model, inputs, *more, **options)

    monkeypatch.setattr(LadderTrainer, "compute_loss", stopping)
    with pytest.raises(RunAgain):
        run(folder=tmp_path / "parts", stop=stop, **settings)
    monkeypatch.setattr(LadderTrainer, "compute_loss", original)
    again, resumed, _ = run(folder=tmp_path / "parts", **settings)
    assert all(torch.equal(a, b) for a, b in zip(load_model(whole).parameters(), load_model(again).parameters(), strict=True))
    assert [step["loss"] for step in resumed] == [step["loss"] for step in steps] and len(steps) == 5
    assert steps[0]["kl"] > 0.01, "the reference is not the starting model"


def test_a_reference_with_other_tokens_is_refused(run, store, tmp_path):
    create_tiny_model(tmp_path / "other", architecture="llama", seed=7)
    path = tmp_path / "other" / "tokenizer.json"
    written = json.loads(path.read_text())
    vocabulary = written["model"]["vocab"]
    (first, one), (second, two) = list(vocabulary.items())[5:7]
    vocabulary[first], vocabulary[second] = two, one
    path.write_text(json.dumps(written))
    with pytest.raises(InputError, match=r"model/tiny@v1 and the reference model/other@v1 have different tokens"):
        run(more={"reference": import_folder(store, tmp_path / "other", "other")})


def test_a_kl_that_counts_on_no_row_is_refused(run, tiny_artifact, rewards):
    phases = [{"tasks": ["general"], "share": 1.0}]
    settings = rewards | {"rewards": {"general": {"judge": 1.0}}, "kl": {"tasks": ["safety"]}, "phases": phases}
    with pytest.raises(InputError, match="counts on none of the 16 rows"):
        run(more={"verifiers": {"judge": tiny_artifact}}, **settings)


@pytest.mark.parametrize(
    ("stage", "config", "with_reference", "why"),
    [
        (m3, M3Config(rewards={"general": {}}), False, r"rewards.general=\{\} needs the KL to the reference, and beta is 0"),
        (m3, M3Config(), True, "reference=model/base@v1 needs the KL to the reference, and beta is 0"),
        (search, SearchConfig(), True, "reference=model/base@v1 needs the KL to the reference, and beta is 0"),
        (m3, M3Config(beta=1.0, algorithm="grpo"), True, "not with algorithm=grpo"),
        (efficient, EfficientConfig(beta=1.0, tasks=["value"], rewards={"value": {}}), False, "no task has a reward, and beta compares"),
        (m3, M3Config(beta=1.0, rewards={"general": {}}, kl={"tasks": ["value"]}), True, "kl.tasks leaves out general"),
        (m3, M3Config(beta=1.0, kl={"tasks": ["search"]}), True, "kl.tasks leaves out general, knowledge, safety, value"),
    ],
)
def test_what_would_not_happen_is_refused_by_the_plan(stage, config, with_reference, why, tiny_artifact, base, toy_data, index_artifact):
    inputs = {"model": tiny_artifact, "data": toy_data.with_subset("rl"), "index": index_artifact}
    inputs |= {"reference": base} if with_reference else {}
    plan = stage.plan(config, Inputs(inputs))
    assert [refusal for refusal in plan.refusals if re.search(why, refusal.what)], [refusal.what for refusal in plan.refusals]


def test_the_starting_model_is_not_a_reference_of_its_own(tiny_artifact, toy_data):
    inputs = Inputs({"model": tiny_artifact, "data": toy_data.with_subset("rl"), "reference": tiny_artifact})
    plan = m3.plan(M3Config(beta=1.0, rewards={"safety": {"refusal": 1.0}}), inputs)
    assert ["is the model that training starts from" in refusal.what for refusal in plan.refusals] == [True]


def test_the_plan_says_what_the_kl_compares_with_and_where_it_counts(tiny_artifact, base, toy_data):
    inputs = {"model": tiny_artifact, "data": toy_data.with_subset("rl")}
    config = M3Config(beta=0.5, kl={"estimator": "k2", "tasks": ["general", "safety"]}, rewards={"general": {}, "safety": {"refusal": 1}})
    plan = m3.plan(config, Inputs(inputs | {"reference": base}))
    assert not plan.refusals
    assert f"KL to {base.ref}: weight 0.5, k2, tasks general, safety, harmful prompts left out" in plan.lines
    assert "no reward for general: only the KL trains on these replies" in plan.lines
    own = m3.plan(M3Config(beta=0.5, rewards={"safety": {"refusal": 1}}), Inputs(inputs))
    assert "KL to the starting model: weight 0.5, k3, tasks general, knowledge, safety, value" in own.lines


def test_settings_of_the_kl_that_nothing_reads():
    with pytest.raises(ValidationError, match=r"kl.estimator=k2: not with algorithm=grpo, because TRL's losses add k3"):
        M3Config(algorithm="grpo", beta=0.1, kl={"estimator": "k2"})
    assert M3Config(algorithm="grpo", beta=0.1, kl={"estimator": "k3"}).kl.estimator == "k3"  # what TRL's losses add: may be named
    assert M3Config(kl={"estimator": "k2"}).warnings() == ["kl.estimator has no effect with beta=0"]
    with pytest.raises(ValidationError, match="kl.tasks"):
        M3Config(kl={"tasks": []})


def test_where_the_kl_counts():
    def row(task, harmful=None):
        return Row("1", task, [{"role": "user", "content": "q"}], harmful=harmful)

    rows = [row("general"), row("safety", False), row("safety", True), row("safety"), row("value", True)]
    assert [kl_counts(r, KlSettings(), other=False) for r in rows] == [True] * 5
    assert [kl_counts(r, KlSettings(), other=True) for r in rows] == [True, True, False, False, False]
    assert [kl_counts(r, KlSettings(harmful=True), other=True) for r in rows] == [True] * 5
    assert [kl_counts(r, KlSettings(harmful=False, tasks=["safety"]), other=False) for r in rows] == [False, True, False, False, False]
    assert without_reward({"general": {}, "value": {"correctness": 1.0}}, ["general", "value", "search"]) == {"general"}


@pytest.mark.parametrize(("estimator", "reverse"), [("k2", True), ("k3", False)])
def test_the_gradient_of_the_estimator_is_that_of_the_kl_it_stands_for(estimator, reverse):
    """The expected gradient over the policy's own tokens, by enumeration of a vocabulary of nine."""
    torch.manual_seed(0)
    logits = torch.randn(9, dtype=torch.float64, requires_grad=True)
    other = torch.randn(9, dtype=torch.float64).log_softmax(-1)
    own = logits.log_softmax(-1)
    exact = (own.exp() * (own - other)).sum() if reverse else (other.exp() * (other - own)).sum()
    (wanted,) = torch.autograd.grad(exact, logits, retain_graph=True)
    each = [reference_kl(own[None, i : i + 1], other[None, i : i + 1], torch.ones(1, 1), torch.ones(1), estimator) for i in range(9)]
    gradients = torch.stack([torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in each])
    assert torch.allclose((own.detach().exp()[:, None] * gradients).sum(0), wanted, atol=1e-12)
