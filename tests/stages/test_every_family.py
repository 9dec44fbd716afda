"""Mixtures of experts, and dense families with different heads, caches or positions: every stage on a tiny model."""

from __future__ import annotations

import json
import warnings

import pyarrow.parquet as pq
import pytest
import torch

from safework_cli.core.errors import InputError
from safework_cli.core.progress import Progress, QuietDisplay, read_metrics
from safework_cli.core.signals import StopRequest
from safework_cli.core.stage import Inputs, WorkDir
from safework_cli.data.row import Row, write_rows
from safework_cli.models.load import load_model, load_tokenizer, save_model
from safework_cli.verifiers.contract import Exchange, Verdict
from safework_cli.verifiers.load import load_verifier
from tiny_families import MIXTURES, tiny_of

STEPS = {"max_steps": 1, "warmup_ratio": 0.0, "per_device_train_batch_size": 8, "learning_rate": 1e-3}


class Length:
    """Scores a reply by its letters "e" and its length, which differ within the groups of a random model."""

    name = "length"

    def judge(self, exchanges):
        return [Verdict(min(1.0, e.reply.count("e") / 4 + len(e.reply) / 64)) for e in exchanges]


@pytest.fixture
def made(tmp_path):
    """A work folder for each stage."""
    opened = []

    def make(name):
        (tmp_path / name).mkdir()
        progress = Progress(tmp_path / name, QuietDisplay())
        opened.append(progress)
        return WorkDir(tmp_path / name, "0" * 64, progress, StopRequest())

    yield make
    for progress in opened:
        progress.close()


@pytest.fixture
def start(tiny_model, store, tmp_path):
    """Saves a tiny model of a family as an artifact."""

    def save(name, **changes):
        tokenizer = load_tokenizer(tiny_model)
        save_model(tiny_of(name, tokenizer, **changes), tokenizer, tmp_path / name)
        return store.resolve(str(tmp_path / name), ("model",))

    return save


def moved(before, after):
    one, two = (load_model(folder, dtype="float32").state_dict() for folder in (before, after))
    assert one.keys() == two.keys()
    return [name for name in one if not torch.equal(one[name], two[name])]


def sft(model, data, work, **more):
    from safework_sft.config import SftConfig
    from safework_sft.stage import stage as sft_stage

    settings = STEPS | {"sample_prompts": 2, "sample_max_tokens": 6} | more
    return sft_stage.run(SftConfig(**settings), Inputs({"model": model, "data": data.with_subset("cot")}), work)


def m3(model, data, work, monkeypatch, **more):
    from safework_rl import run as train
    from safework_rl.m3.config import M3Config
    from safework_rl.m3.stage import stage as m3_stage

    monkeypatch.setattr(train, "load_verifier", lambda *_, **__: Length())
    config = M3Config(
        **STEPS | {
            "max_steps": 2, "num_generations": 4, "gradient_accumulation_steps": 1, "max_completion_length": 12, "preflight": 0,
            "bf16": False,
            "phases": [{"tasks": ["general", "safety"], "share": 1.0}], "filter_groups": False,
            "rewards": {"general": {"judge": 1.0}, "safety": {"judge": 1.0}}, "format": {"mode": "term", "weight": 0.01},
            "language": {"mode": "off"},
        } | more
    )  # fmt: skip
    inputs = Inputs({"model": model, "data": data.with_subset("rl"), "verifiers": {"judge": model}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where prompts cannot be shared
        m3_stage.run(config, inputs, work)
    return read_metrics(work.progress.metrics_path)


@pytest.mark.parametrize("name", [*MIXTURES, "gemma2", "gemma3_text", "cohere2", "granite", "gpt2", "opt", "mistral", "phi3"])
def test_a_family_passes_every_stage(name, start, toy_data, store, made, tmp_path, monkeypatch):
    from safework_eval.config import EvalConfig
    from safework_eval.stage import stage as eval_stage
    from safework_search.config import GuidedConfig
    from safework_search.stage import stage as search_stage
    from safework_verifier.train.config import VerifierTrainConfig
    from safework_verifier.train.stage import stage as verifier_stage

    model = start(name)
    work = made("sft")
    outcome = sft(model, toy_data, work)
    assert outcome.metrics["samples"]["n"] == 2 and len(moved(model.path, work.output)) > 5
    trained = store.resolve(str(work.output), ("model",))
    work = made("rl")
    gap = 0.5 if name == "phimoe" else 1e-4  # whose routers sample experts in training
    assert all(step["engine/logprob_gap"] < gap for step in m3(trained, toy_data, work, monkeypatch))
    assert len(moved(trained.path, work.output)) > 5
    policy = store.resolve(str(work.output), ("model",))

    labels = ["Safe with refusal", "Safe without risk", "Unsafe"]
    rows = [
        Row(
            str(i), "safety", [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": ["no", "yes", "zz"][i % 3]}],
            harmful=i % 3 != 1, meta={"label": labels[i % 3]},
        )
        for i in range(60)
    ]  # fmt: skip
    (tmp_path / "judged").mkdir()
    write_rows(tmp_path / "judged" / "a.parquet", rows)
    config = VerifierTrainConfig(
        **STEPS | {"instruction": "short", "max_length": 256, "max_steps": 2, "eval_fraction": 0.4, "dtype": "float32"}
    )
    work = made("verifier")
    verifier_stage.run(config, Inputs({"model": policy, "data": store.resolve(str(tmp_path / "judged"), ("dataset",))}), work)
    (verdict,) = load_verifier(work.output, dtype="float32").judge([Exchange([{"role": "user", "content": "q"}], "no")])
    assert verdict.error is None and verdict.score is not None
    judge = store.resolve(str(work.output), ("verifier",))

    suites = [{"name": "k", "rows": {"task": "general"}}]
    config = EvalConfig(suites=suites, max_tokens=6, batch_size=4, dtype="float32", max_failed=1.0)
    work = made("eval")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        eval_stage.run(config, Inputs({"model": policy, "data": toy_data.with_subset("rl")}), work)
    assert json.loads((work.output / "summary.json").read_text())
    config = GuidedConfig(method="best_of_n", candidates=2, max_tokens=6, limit=2, batch_prompts=2)
    work = made("search")
    search_stage.run(config, Inputs({"model": policy, "prompts": toy_data.with_subset("rl"), "guide": {"judge": judge}}), work)
    assert pq.read_table(work.output / "generations.parquet").num_rows == 2


@pytest.mark.parametrize("name", MIXTURES)
def test_adapters_of_a_mixture_are_merged(name, start, toy_data, made):
    model, work = start(name), made("sft")
    sft(model, toy_data, work, lora={"r": 4, "alpha": 8}, sample_prompts=0)
    assert moved(model.path, work.output)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma2", "bloom", "mamba"])
def test_sampling_and_training_agree_without_shared_prompts(name, start, toy_data, made, monkeypatch):
    """Prompts of unequal length are padded: models with learned positions need them as input."""
    steps = m3(start(name), toy_data, made("rl"), monkeypatch, share_prompts=False)
    assert all(step["engine/logprob_gap"] < 1e-5 for step in steps)


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class MineConfig(LlamaConfig):
    model_type = "mine"


class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig
"""


@pytest.fixture
def own_code(start, tmp_path, store, monkeypatch):
    """A model whose architecture is in its own folder."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = start("llama").path
    (folder / "modeling_mine.py").write_text(OWN_CODE)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "architectures": ["MineForCausalLM"]}
    config["auto_map"] = {"AutoConfig": "modeling_mine.MineConfig", "AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
    return store.resolve(str(folder), ("model",))


def test_code_of_a_model_runs_only_where_it_is_allowed(own_code, toy_data, store, made, tmp_path, monkeypatch):
    """As a policy, as a judge's backbone, as a template: every stage has the key, and the refusal names it."""
    from safework_data.build.checks import template_check
    from safework_eval.config import EvalConfig
    from safework_eval.stage import stage as eval_stage
    from safework_search.config import GuidedConfig
    from safework_search.stage import stage as search_stage
    from safework_verifier.score.config import ScoreConfig
    from safework_verifier.score.stage import stage as score_stage
    from safework_verifier.wrap.config import WrapConfig
    from safework_verifier.wrap.stage import stage as wrap_stage

    work = made("wrap")
    labels = {"safe": {"code": "A", "score": 1.0}, "unsafe": {"code": "B", "score": 0.0}}
    wrap = {"labels": labels, "template": "{query}\n{response}\nA or B?", "strict_template": "", "system": "", "max_length": 512}
    wrap_stage.run(WrapConfig(trust_remote_code=True, **wrap), Inputs({"model": own_code}), work)
    judge = store.resolve(str(work.output), ("verifier",))
    rl, cot = toy_data.with_subset("rl"), toy_data.with_subset("cot")
    suites = [{"name": "s", "rows": {"task": "safety"}}]
    searched = {"method": "best_of_n", "candidates": 2, "max_tokens": 4, "limit": 2, "batch_prompts": 2}
    commands = {
        "sft": lambda work, **key: sft(own_code, toy_data, work, **key),
        "eval": lambda work, **key: eval_stage.run(
            EvalConfig(suites=suites, max_tokens=4, dtype="float32", max_failed=1.0, **key),
            Inputs({"model": own_code, "data": rl, "verifiers": {"safety": judge}}), work,
        ),
        "search": lambda work, **key: search_stage.run(
            GuidedConfig(**searched, **key), Inputs({"model": own_code, "prompts": rl, "guide": {"judge": judge}}), work
        ),
        "score": lambda work, **key: score_stage.run(
            ScoreConfig(limit=4, **key), Inputs({"data": cot, "verifiers": {"judge": judge}}), work
        ),
        "judge": lambda work, **key: load_verifier(judge, **key),
        "template": lambda work, **key: template_check(own_code.path, *key.values()),
    }  # fmt: skip
    for name, run in commands.items():
        with pytest.raises(InputError, match="trust_remote_code=true"):
            run(made(f"{name} refused"))
        assert run(made(name), trust_remote_code=True) is not None
