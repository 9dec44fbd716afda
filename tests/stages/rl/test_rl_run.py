"""The RL stages on a tiny model: they run, they measure, they resume to the same bits, they refuse."""

from __future__ import annotations

import inspect
import math
import re
import signal

import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from trl import GRPOTrainer

from safework_cli.core.artifacts import Store
from safework_cli.core.errors import GateFailed, InputError, TooManyFailed
from safework_cli.core.progress import read_metrics
from safework_cli.core.stage import Inputs
from safework_cli.models.load import load_model
from safework_cli.verifiers.contract import Verdict
from safework_rl.efficient.config import EfficientConfig
from safework_rl.m3.config import M3Config
from safework_rl.m3.stage import stage as m3
from safework_rl.trl_adapter import LadderTrainer

SMALL = {
    "max_steps": 2,
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "steps_per_generation": 1,
    "max_completion_length": 12,
    "learning_rate": 1e-3,
    "preflight": 0,
    "bf16": False,
}
M3 = SMALL | {"filter_groups": False}


def inputs_of(model, data) -> Inputs:
    return Inputs({"model": model, "data": data.with_subset("rl"), "verifiers": {"judge": model}})


PHASES = [{"tasks": ["general"], "share": 1.0}, {"tasks": ["general", "safety"], "share": 1.0}]


def test_the_signatures_of_trl_that_the_trainer_overrides():
    expected = {
        "_prepare_inputs": ["self", "generation_batch"],
        "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
        "log": ["self", "logs", "start_time"],
    }
    for name, parameters in expected.items():
        assert list(inspect.signature(getattr(GRPOTrainer, name)).parameters) == parameters
    logps = list(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)
    assert logps[:8] == [
        "self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy", "compute_aux_loss",
    ]  # fmt: skip
    assert {"steps_per_generation", "num_iterations", "_step", "_buffered_inputs"} <= set(
        re.findall(r"self\.(?:args\.)?(\w+)", inspect.getsource(GRPOTrainer._prepare_inputs))
    )
    overridden = {name for name in vars(LadderTrainer) if hasattr(GRPOTrainer, name) and not name.startswith("__")}
    assert overridden == {*expected, "_get_per_token_logps_and_entropies"}


def test_rewards_and_advantages_of_trl_are_never_computed(tiny_artifact, toy_data, work, rewards, monkeypatch):
    def refused(self, *args, **kwargs):
        raise AssertionError("TRL computed them")

    for name in ("_generate_and_score_completions", "_calculate_rewards", "_generate"):
        monkeypatch.setattr(GRPOTrainer, name, refused)
    outcome = m3.run(M3Config(algorithm="dapo", phases=PHASES, **M3, **rewards), inputs_of(tiny_artifact, toy_data), work)
    assert outcome.metrics["updates"] > 0


@pytest.mark.parametrize("algorithm", ["cpgd", "grpo", "dapo"])
def test_m3_moves_the_policy_and_measures_its_engine(algorithm, tiny_artifact, toy_data, work, rewards):
    outcome = m3.run(M3Config(algorithm=algorithm, phases=PHASES, **M3, **rewards), inputs_of(tiny_artifact, toy_data), work)
    assert outcome.metrics["steps"] == 2
    steps = read_metrics(work.progress.metrics_path)
    assert [s["step"] for s in steps] == [1, 2]
    assert all(s["engine/logprob_gap"] < 1e-4 for s in steps), "what was sampled is what is trained"
    assert all(s["unscorable"] == 0 and s["grad_norm"] > 0 for s in steps)
    before, after = (load_model(folder).state_dict() for folder in (tiny_artifact.path, work.output))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    samples = pq.read_table(work.output / "safework" / "samples.parquet").to_pylist()
    assert {s["rank"] for s in samples} == {"best", "median", "worst"} and {s["step"] for s in samples} == {0, 1}
    by = {(s["step"], s["task"], s["rank"]): s["reward"] for s in samples}
    spans = [[by[step, task, rank] for rank in ("worst", "median", "best")] for step, task, last in by if last == "best"]
    assert all(span == sorted(span) for span in spans) and any(span[0] < span[-1] for span in spans)


def test_cpgd_off_policy_clips_and_drifts(tiny_artifact, toy_data, work, rewards):
    config = M3Config(phases=PHASES, **(M3 | {"max_steps": 6, "num_iterations": 3, "learning_rate": 0.05}), **rewards)
    m3.run(config, inputs_of(tiny_artifact, toy_data), work)
    steps = read_metrics(work.progress.metrics_path)
    assert max(s["cpgd/drift"] for s in steps) > 0 and max(s["cpgd/clip_share"] for s in steps) > 0


def test_efficient_runs_in_both_forms(tiny_artifact, toy_data, work, rewards, monkeypatch):
    from safework_rl import objectives
    from safework_rl.efficient.stage import stage

    called = []

    def noted(form):
        original = getattr(objectives, form)
        return lambda *given, **more: called.append(form) or original(*given, **more)

    for form in ("canon", "ddca"):
        monkeypatch.setattr(objectives, form, noted(form))
    for form in ("canon", "ddca"):
        config = EfficientConfig(
            length_advantage=form, tasks=["general", "safety"], filter_groups=False, **(SMALL | {"max_steps": 1}), **rewards
        )
        for old in work.checkpoints.iterdir():
            old.rename(work.path / f"{form}-{old.name}")
        called.clear()
        stage.run(config, inputs_of(tiny_artifact, toy_data), work)
        last = read_metrics(work.progress.metrics_path)[-1]
        assert set(called) == {form} and last["grad_norm"] > 0 and not math.isnan(last["loss"])


class Broken:
    name = "broken"

    def judge(self, exchanges):
        return [Verdict(None, error="no answer") for _ in exchanges]


def test_a_verifier_that_fails_stops_the_run(tiny_artifact, toy_data, work, rewards, monkeypatch):
    from safework_rl import run as train

    monkeypatch.setattr(train, "load_verifier", lambda artifact, **_: Broken())
    with pytest.raises(TooManyFailed, match=r"8 of 8 replies .*verifier 'judge': no answer"):
        m3.run(M3Config(phases=PHASES, **M3, **rewards), inputs_of(tiny_artifact, toy_data), work)


def test_an_engine_that_is_not_the_policy_stops_the_run(tiny_artifact, toy_data, work, rewards, monkeypatch):
    from safework_cli.engines.hf.engine import HFEngine

    original = HFEngine.generate_ids

    def shifted(self, *args, **kwargs):
        groups = original(self, *args, **kwargs)
        for group in groups:
            for completion in group:
                completion.logprobs = [p - 1.0 for p in completion.logprobs]
        return groups

    monkeypatch.setattr(HFEngine, "generate_ids", shifted)
    with pytest.raises(GateFailed, match=r"1\.000 nats per token away"):
        m3.run(M3Config(phases=PHASES, **M3, **rewards), inputs_of(tiny_artifact, toy_data), work)


class Same:
    name = "same"

    def judge(self, exchanges):
        return [Verdict(1.0) for _ in exchanges]


@pytest.mark.parametrize("more", [{}, {"steps_per_generation": 2}, {"steps_per_generation": 2, "beta": 0.1}])
@pytest.mark.parametrize("required", [True, False])
def test_a_run_in_which_nothing_was_learnt_is_not_green(tiny_artifact, toy_data, work, rewards, monkeypatch, required, more):
    """Weight decay moves the weights, so that drift and KL have gradients from the second update on: none of them is of a reward."""
    from safework_rl import run as train

    monkeypatch.setattr(train, "load_verifier", lambda artifact, **_: Same())
    settings = M3 | rewards | {"format": {"mode": "term", "weight": 0.0}, "require_gradient": required} | more
    outcome = m3.run(M3Config(phases=PHASES, **settings), inputs_of(tiny_artifact, toy_data), work)
    assert outcome.metrics["steps_without_gradient"] == 2
    assert ["no step had a gradient" in gate for gate in outcome.failed_gates] == [True] * required
    assert ("no step had a gradient" in (work.path / "events.jsonl").read_text()) is not required


def test_plans_refuse_what_cannot_earn(tiny_artifact, toy_data):
    given = Inputs({"model": tiny_artifact, "data": toy_data})
    refused = m3.plan(M3Config(), given).refusals
    assert len(refused) == 1
    assert "rewards.safety names the verifier 'safety'" in str(refused[0]) and "verifiers.safety=" in str(refused[0])
    assert not m3.plan(M3Config(rewards={"safety": {"refusal": 1.0}}), given).refusals
    with pytest.raises(ValidationError, match="'safty' is not a task; did you mean 'safety'"):
        M3Config(phases=[{"tasks": ["safty"], "share": 1.0}])


def test_a_task_without_rows_is_refused(tiny_artifact, toy_data, work, rewards):
    with pytest.raises(InputError, match="draws 'value'"):
        m3.run(M3Config(phases=[{"tasks": ["general", "value"], "share": 1.0}], **M3, **rewards), inputs_of(tiny_artifact, toy_data), work)


def test_killed_and_run_again_gives_the_same_bits(tiny_artifact, toy_data, cli, kill_after, store: Store):
    words = [
        "rl", "m3", "model=tiny", "data=toy:rl", "rewards.safety={constraints: 1}", "format.mode=term",
        "format.weight=0.1", "filter_groups=false", "preflight=0", "max_steps=6", "save_steps=1", "num_generations=4",
        "per_device_train_batch_size=4", "gradient_accumulation_steps=1", "max_completion_length=16", "learning_rate=1e-3",
        "phases=[{tasks: [safety], share: 1}]", "-q",
    ]  # fmt: skip
    whole = cli(*words, "--name", "whole")
    assert whole.returncode == 0, whole.stderr
    expected = store.resolve("whole").digest
    assert expected != tiny_artifact.digest and store.resolve("whole").manifest.metrics["steps_without_gradient"] < 3, "it did learn"
    store.remove(store.resolve("whole"))
    kill_after(2, *words, "--name", "again")
    again = cli(*words, "--name", "again")
    assert again.returncode == 0, again.stderr
    assert "resumed at step" in (store.resolve("again").path / "safework" / "events.jsonl").read_text()
    assert store.resolve("again").digest == expected


@pytest.mark.parametrize("sampling", [False, True], ids=["in an update", "at the end of sampling"])
@pytest.mark.parametrize("updates", [1, 2])
def test_search_stopped_and_run_again_gives_the_same_bits(
    tiny_artifact, index_artifact, search_data, acting, tmp_path, monkeypatch, updates, sampling
):
    """λ is a part of the reward here: a resume that forgot it, or its average, or that had moved it twice, would train another model."""
    from safework_cli.core.errors import RunAgain
    from safework_cli.core.progress import Progress, QuietDisplay
    from safework_cli.core.signals import StopRequest
    from safework_cli.core.stage import WorkDir
    from safework_rl import trl_adapter
    from safework_rl.search.config import SearchConfig
    from safework_rl.search.stage import stage

    inputs = Inputs({"model": tiny_artifact, "index": index_artifact, "data": search_data.with_subset("rl")})
    config = SearchConfig(
        **(SMALL | {"max_steps": 5, "max_completion_length": 160, "steps_per_generation": updates}),
        limits={"turns": 2, "results": 2, "turn_tokens": 12},
        reliability={"step": 1.0},
    )

    def run(folder):
        folder.mkdir(exist_ok=True)
        progress = Progress(folder, QuietDisplay())
        work = WorkDir(folder, "0" * 64, progress, StopRequest())
        try:
            return work, stage.run(config, inputs, work)
        finally:
            progress.close()

    whole, outcome = run(tmp_path / "whole")
    assert outcome.metrics["steps_without_gradient"] < 3
    steps = read_metrics(whole.progress.metrics_path)
    prices = [step["search/lambda"] for step in steps if "search/lambda" in step]
    assert len(prices) == len(set(prices)) == {1: 5, 2: 3}[updates] and steps[-1]["engine/logprob_gap"] < 1e-4
    assert any(step.get("search/searches", 0) > 0 for step in steps)

    original, stops = trl_adapter.step, []

    def stop_at_two(engine, prompts, number, run):
        batch = original(engine, prompts, number, run)
        if number * updates == 2 and not stops:
            stops.append(number)
            if sampling:
                signal.raise_signal(signal.SIGTERM)
            current.requested = signal.SIGTERM
        return batch

    monkeypatch.setattr(trl_adapter, "step", stop_at_two)
    current = StopRequest()
    folder = tmp_path / "parts"
    folder.mkdir()
    progress = Progress(folder, QuietDisplay())
    with pytest.raises(RunAgain, match="SIGTERM"), current.installed():
        stage.run(config, inputs, WorkDir(folder, "0" * 64, progress, current))
    progress.close()
    again, _ = run(folder)
    assert f"resumed at step {2 if sampling else 3} of 5" in (folder / "events.jsonl").read_text()
    expected, found = (load_model(work.output).state_dict() for work in (whole, again))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert [s["search/lambda"] for s in read_metrics(again.progress.metrics_path) if "search/lambda" in s] == prices


@pytest.mark.parametrize("settings", [{}, {"num_iterations": 2, "max_steps": 2}, {"lora": {"r": 4}}], ids=["plain", "two passes", "lora"])
@pytest.mark.parametrize("kind", ["llava", "idefics3"])
def test_images_go_through_a_whole_run(kind, settings, tiny_model, store, commit, work, rewards, tmp_path):
    """Rows with images and without, in shared passes and in plain ones: the same update, and a model with its processor."""
    import io

    from PIL import Image
    from transformers import AutoProcessor

    import tiny_vision
    from safework_cli.core.artifacts.transfer import import_folder
    from safework_cli.data.row import Row, write_rows

    model, processor = getattr(tiny_vision, kind)(tiny_model)
    model.save_pretrained(tmp_path / "vlm")
    processor.save_pretrained(tmp_path / "vlm")
    content = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((50, 30)).save(content, "PNG")
    rows = [
        Row(
            f"g{i}", "general", [{"role": "user", "content": f"What is {i}" + " in <image>?" * (i % 2)}],
            images=[{"bytes": content.getvalue(), "path": None}] * (i % 2),
        )
        for i in range(4)
    ]  # fmt: skip
    folder = store.staging()
    (folder / "rl").mkdir()
    write_rows(folder / "rl" / "rows.parquet", rows)
    data, artifact = commit(folder, "dataset", "images"), import_folder(store, tmp_path / "vlm", "vlm")
    found = []
    for share in (True, False):
        for old in work.checkpoints.iterdir():
            old.rename(work.path / f"{share}-{old.name}")
        config = M3Config(**(M3 | rewards | {"max_steps": 1, "phases": PHASES[:1], "share_prompts": share, "warmup_ratio": 0.0} | settings))
        inputs = Inputs({"model": artifact, "data": data.with_subset("rl"), "verifiers": {"judge": artifact}})
        outcome = m3.run(config, inputs, work)
        assert outcome.metrics["dropped"] == {}
        step = read_metrics(work.progress.metrics_path)[-1]
        assert step["engine/logprob_gap"] < 1e-4 and step["grad_norm"] > 0
        found.append((step["loss"], step["grad_norm"], step["entropy"]))
    assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-6)
    assert "prompt sharing is off" not in (work.path / "events.jsonl").read_text()
    before, after = model.state_dict(), load_model(work.output, dtype="float32").state_dict()
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert moved and not any("vision_" in name for name in moved), "the vision tower is frozen"
    assert type(AutoProcessor.from_pretrained(str(work.output))) is type(processor)


def test_adapters_are_merged_into_the_model(tiny_artifact, run_m3, work):
    run_m3(lora={"r": 4}, max_steps=2)
    assert read_metrics(work.progress.metrics_path)[-1]["engine/logprob_gap"] < 1e-4
    before, after = load_model(tiny_artifact.path).state_dict(), load_model(work.output).state_dict()
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)
