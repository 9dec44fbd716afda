"""Reinforcement learning whose replies a vLLM server samples, against a server of the same protocol that computes with transformers."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from safetensors.torch import load_file

from safework_cli.core.errors import RunAgain, SafeworkError
from safework_cli.core.progress import Progress, QuietDisplay, read_metrics
from safework_cli.core.signals import StopRequest
from safework_cli.core.stage import Inputs, WorkDir
from safework_rl.config import RlConfig
from safework_rl.m3.config import M3Config
from safework_rl.m3.stage import stage as m3
from vllm_served import fake_vllm

pytestmark = pytest.mark.enable_socket
SMALL = {
    "max_steps": 3,
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "steps_per_generation": 1,
    "max_completion_length": 12,
    "learning_rate": 1e-3,
    "preflight": 0,
    "bf16": False,
    "filter_groups": False,
    "phases": [{"tasks": ["general"], "share": 1.0}],
}


@pytest.fixture
def fake(tiny_model):
    with fake_vllm(tiny_model) as server:
        yield server


def served(url: str, **more) -> dict:
    return {"kind": "vllm", "server": {"url": url, "start_timeout_s": 0.0, "timeout_s": 60.0, **more}}


def test_a_run_over_a_server_is_the_run_in_one_process(fake, tiny_artifact, toy_data, work, rewards, tmp_path):
    inputs = Inputs({"model": tiny_artifact, "data": toy_data.with_subset("rl"), "verifiers": {"judge": tiny_artifact}})
    m3.run(M3Config(**SMALL, **rewards), inputs, work)
    (tmp_path / "served").mkdir()
    second = WorkDir(tmp_path / "served", "0" * 64, Progress(tmp_path / "served", QuietDisplay()), StopRequest())
    m3.run(M3Config(engine=served(fake.url), **SMALL, **rewards), inputs, second)
    own, weights = (load_file(folder.output / "model.safetensors") for folder in (work, second))
    start = load_file(tiny_artifact.path / "model.safetensors")
    steps, over_server = ([step for step in read_metrics(folder.metrics_path) if "reward" in step] for folder in (work, second))
    assert [step["reward"] for step in over_server] == [step["reward"] for step in steps]
    assert all(step["engine/logprob_gap"] < 1e-5 and step["engine/ratio_capped"] == 0 for step in over_server)
    moved, apart = (max(float((one[name] - own[name]).abs().max()) for name in own) for one in (start, weights))
    assert moved > 1e-3 and apart < 0.01 * moved
    versions = [body["weight_version"] for path, body in fake.seen if path == "/finish_weight_update"]
    assert [version.partition(":")[2] for version in versions] == ["0", "1", "2"] and len({v.partition(":")[0] for v in versions}) == 1
    assert not list((second.path / "served").iterdir())
    second.progress.close()


def test_a_server_that_fails_during_a_run_leaves_it_resumable(fake, tiny_artifact, toy_data, work, rewards):
    inputs = Inputs({"model": tiny_artifact, "data": toy_data.with_subset("rl"), "verifiers": {"judge": tiny_artifact}})
    config = M3Config(engine=served(fake.url), save_steps=1, **SMALL, **rewards)
    answer = fake.answer

    def fails_in_the_second_step(path, body):
        if path == "/finish_weight_update" and body["weight_version"].endswith(":1"):
            fake.fail["/v1/completions"] = (500, {"error": {"message": "EngineDeadError"}})
        return answer(path, body)

    fake.answer = fails_in_the_second_step
    with pytest.raises(RunAgain, match=r"127\.0\.0\.1:\d+ answered /v1/completions with HTTP 500: EngineDeadError"):
        m3.run(config, inputs, work)
    fake.answer, fake.weights = answer, "default"  # the server was started again
    fake.fail.clear()
    m3.run(config, inputs, work)
    versions = [body["weight_version"] for path, body in fake.seen if path == "/finish_weight_update"]
    assert [version.partition(":")[2] for version in versions] == ["0", "1", "1", "2"]
    assert len({version.partition(":")[0] for version in versions}) == 2, (
        "the second start does not take the first one's weights for its own"
    )
    assert read_metrics(work.metrics_path)[-1]["step"] == 3


def test_a_server_that_keeps_old_weights_in_silence_is_found_by_the_gap(fake, tiny_artifact, toy_data, work, rewards):
    """It states the new version and computes with the old weights: only the log-probabilities show it."""
    inputs = Inputs({"model": tiny_artifact, "data": toy_data.with_subset("rl"), "verifiers": {"judge": tiny_artifact}})
    answer, updates = fake.answer, []

    def forgets(path, body):
        if path == "/update_weights":
            updates.append(path)
            if len(updates) > 1:
                return {}
        return answer(path, body)

    fake.answer = forgets
    with pytest.raises(SafeworkError, match="the engine that samples is not the policy"):
        m3.run(M3Config(engine=served(fake.url), **SMALL, **rewards), inputs, work)
    assert len(updates) == 2


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"kind": "hf", "server": {"url": "http://127.0.0.1:1"}}, "add engine.kind=vllm"),
        ({"kind": "vllm", "server": {"url": "127.0.0.1:1"}}, "must begin with http"),
        ({"kind": "vllm", "server": {"url": "http://me:key@127.0.0.1:1"}}, "must hold no key"),
        ({"kind": "vllm", "server": {"url": "http://127.0.0.1:1"}, "vllm": {"max_model_len": 99}}, "give these settings to safework serve"),
        ({"kind": "vllm", "vllm": {"tensor_parallel_size": 2}}, "several GPUs of vLLM are a server's"),
    ],
)
def test_settings_of_a_server_that_do_not_fit(engine, message):
    with pytest.raises(ValidationError, match=message):
        RlConfig(engine=engine)


def test_several_processes_can_sample_on_a_server():
    RlConfig(engine=served("http://127.0.0.1:1"), launch={"strategy": "ddp", "processes": 2})
