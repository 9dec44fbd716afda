"""Every training loop, generation, scoring, judging and search on a pretended GPU: no tensor is left on the wrong device.

``test_fake_gpu.py`` runs these in a process of their own: torch counts the devices once, at the first backward pass.
"""

from __future__ import annotations

import pytest
import torch

from fake_gpu import GPU, OnGpu, pretended
from safework_cli.core.progress import read_metrics
from safework_cli.core.stage import Inputs
from safework_cli.data.reply import make_reply
from safework_cli.data.row import Row, write_rows
from safework_cli.engines.hf.engine import HFEngine
from safework_cli.engines.protocol import Sampling
from safework_cli.models.load import load_model, load_tokenizer
from safework_cli.models.tiny import create_tiny_model
from safework_cli.verifiers import Exchange
from safework_cli.verifiers.load import load_verifier
from safework_cli.verifiers.spec import SHORT_TEMPLATES, LabelSpec, preset

STEPS = {"max_steps": 2, "learning_rate": 1e-3, "bf16": False}
ROLLOUTS = STEPS | {
    "num_generations": 4, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "steps_per_generation": 1,
    "max_completion_length": 8, "preflight": 0,
}  # fmt: skip
EVALUATED = {"eval_steps": 1, "eval_samples": 2, "eval_max_tokens": 4, "eval_tasks": ["safety"]}
REWARDED = {
    "rewards": {"general": {"judge": 1.0}, "safety": {"judge": 1.0}}, "format": {"mode": "term", "weight": 0.01},
    "language": {"mode": "off"},
}  # fmt: skip


@pytest.fixture
def gpu(monkeypatch):
    with pretended(monkeypatch):
        yield GPU


@pytest.fixture
def judge(store, commit):
    """A judge of safety with random weights: it reads each reply differently."""
    folder = store.staging()
    create_tiny_model(folder, architecture="llama", seed=1)
    spec = preset("safety")
    spec.template, spec.strict_template = SHORT_TEMPLATES["safety"]
    spec.reading, spec.max_length = "soft", 400
    spec.write(folder)
    return commit(folder, "verifier", "judge")


@pytest.fixture
def dataset(store, commit):
    """Makes a dataset of rows."""

    def make(name: str, rows: list[Row]):
        folder = store.staging()
        write_rows(folder / "rows.parquet", rows)
        return commit(folder, "dataset", name)

    return make


def asked(text: str, reply: str | None = None) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}] + ([{"role": "assistant", "content": reply}] if reply is not None else [])


def trained(work) -> bool:
    return all(step["grad_norm"] > 0 for step in read_metrics(work.progress.metrics_path) if "grad_norm" in step)


def test_mixed_devices_are_refused_as_a_gpu_refuses_them(gpu):
    here, there = torch.ones(2), torch.ones(2, device=gpu)
    assert isinstance(there, OnGpu) and there.device == gpu and (there + 1).tolist() == [2, 2] and (there + torch.tensor(1)).device == gpu
    with pytest.raises(RuntimeError, match="same device"):
        here + there
    with pytest.raises(RuntimeError, match="indices"):
        here[there > 0]
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    with pytest.raises(RuntimeError, match="same device"):
        there[torch.tensor([0, 1])] = here
    assert there[torch.tensor([0])].tolist() == [1] and there.cpu().numpy().tolist() == [1, 1]


@pytest.mark.parametrize("share_prompts", [True, False])
def test_generation_and_scoring(gpu, tiny_model, share_prompts):
    engine = HFEngine(load_model(tiny_model, dtype="float32"), load_tokenizer(tiny_model), 4, share_prompts=share_prompts)
    assert engine.model.device == gpu
    prompts = [asked("What is 1+1?"), asked("And a longer question?")]
    made = engine.generate(prompts, Sampling(max_tokens=6, temperature=0.7, top_p=0.9, seed=1, stop=["q"]), n=2)
    replies = [completion.token_ids for group in made for completion in group]
    assert [len(scores) for scores in engine.score([p for p in prompts for _ in range(2)], replies)] == [len(reply) for reply in replies]


def test_judging_and_guided_search(gpu, tiny_artifact, toy_data, judge, work):
    from safework_search.config import GuidedConfig
    from safework_search.stage import stage

    verdicts = load_verifier(judge).judge([Exchange(asked("How?"), reply, harmful=True) for reply in ("no", "yes, and longer", "")])
    assert all(verdict.error is None for verdict in verdicts)
    inputs = Inputs({"model": tiny_artifact, "prompts": toy_data.with_subset("rl"), "guide": {"judge": judge}})
    config = GuidedConfig(method="guided_steps", candidates=2, max_tokens=8, step_tokens=4, limit=3)
    assert stage.run(config, inputs, work).metrics["scored"] == 3


@pytest.mark.parametrize("settings", [{"kl": {}, "verdict": {"pattern": "(Somebody|I add)", "positive": ["Somebody"]}}, {"lora": {}}])
def test_sft(gpu, tiny_artifact, toy_data, dataset, judge, work, settings):
    from safework_sft.config import SftConfig
    from safework_sft.run import train

    replies = {True: make_reply("Somebody would lose.", "No."), False: make_reply("I add them.", "2")}
    other = [Row(f"m{i}", "safety", asked(f"And {i}?", replies[i % 2 == 0]), harmful=i % 2 == 0) for i in range(8)]
    inputs = {"model": tiny_artifact, "data": toy_data.with_subset("cot"), "eval_data": toy_data.with_subset("rl")}
    inputs |= {"eval_verifiers": {"safe": judge}} | ({"verdict_data": dataset("measured", other)} if "verdict" in settings else {})
    measured = EVALUATED | {"sample_prompts": 2, "sample_max_tokens": 4}
    outcome = train(SftConfig(**STEPS, **measured, **settings), Inputs(inputs), work)
    assert trained(work) and outcome.metrics["evaluation"]["prompts"] == 2


def test_a_label_verifier(gpu, tiny_artifact, dataset, work):
    from safework_verifier.train.config import VerifierTrainConfig
    from safework_verifier.train.stage import stage

    replies = {"Safe with refusal": "no no no", "Safe without risk": "yes yes", "Unsafe": "zzzz zzzz"}
    labels = [list(replies)[i % 3] for i in range(60)]
    rows = [
        Row(str(i), "safety", asked(f"q{i}", replies[label]), harmful=label != "Safe without risk", meta={"label": label})
        for i, label in enumerate(labels)
    ]
    config = VerifierTrainConfig(
        **STEPS, instruction="short", max_length=256, eval_fraction=0.4, head="probe", dtype="float32", attack_rows=2
    )
    stage.run(config, Inputs({"model": tiny_artifact, "data": dataset("judged", rows)}), work)
    assert trained(work) and LabelSpec.read(work.output).labels


def test_a_value_model(gpu, tiny_artifact, dataset, work):
    from safework_verifier.values.config import ValuesConfig
    from safework_verifier.values.stage import stage

    rows = [
        Row(f"r{i}@{text}", "safety", asked(f"question {i}", text), meta={"group": f"r{i}", "values": {"safety": value}})
        for i in range(20)
        for text, value in (("aaaa", 0.9), ("zzzz", 0.1))
    ]
    config = ValuesConfig(**STEPS, eval_fraction=0.4, dtype="float32", max_length=256, per_device_train_batch_size=8)
    stage.run(config, Inputs({"model": tiny_artifact, "data": dataset("valued", rows)}), work)
    (verdict,) = load_verifier(work.output).judge([Exchange(asked("question 1"), "aa")])
    assert trained(work) and verdict.score is not None


@pytest.mark.parametrize(
    "settings", [{"algorithm": "cpgd"}, {"algorithm": "grpo", "share_prompts": False, "beta": 0.1}], ids=["cpgd", "grpo"]
)
def test_rl_m3(gpu, tiny_artifact, toy_data, judge, work, settings):
    from safework_rl.m3.config import M3Config
    from safework_rl.m3.stage import stage

    config = M3Config(
        **ROLLOUTS, **REWARDED, **EVALUATED, **settings, filter_groups=False, phases=[{"tasks": ["safety"], "share": 1.0}],
        num_iterations=2, preflight_groups=1,
    )  # fmt: skip
    inputs = {"model": tiny_artifact, "data": toy_data.with_subset("rl"), "verifiers": {"judge": judge}}
    inputs |= {"eval_data": toy_data.with_subset("rl"), "eval_verifiers": {"safe": judge}}
    assert stage.run(config, Inputs(inputs), work).metrics["updates"] == 2


def test_rl_efficient(gpu, tiny_artifact, toy_data, judge, work):
    from safework_rl.efficient.config import EfficientConfig
    from safework_rl.efficient.stage import stage

    inputs = {"model": tiny_artifact, "data": toy_data.with_subset("rl"), "verifiers": {"judge": judge}}
    stage.run(EfficientConfig(**ROLLOUTS, **REWARDED, tasks=["safety"], require_gradient=False), Inputs(inputs), work)
    assert len(read_metrics(work.progress.metrics_path)) == 2


def test_rl_search(gpu, tiny_artifact, index_artifact, search_data, acting, work):
    from safework_rl.search.config import SearchConfig
    from safework_rl.search.stage import stage

    settings = ROLLOUTS | {"max_completion_length": 160, "limits": {"turns": 2, "results": 2, "turn_tokens": 12}}
    inputs = Inputs({"model": tiny_artifact, "index": index_artifact, "data": search_data.with_subset("rl")})
    stage.run(SearchConfig(**settings, require_gradient=False), inputs, work)
    assert len(read_metrics(work.progress.metrics_path)) == 2
