"""vLLM against transformers, with the same weights: equal greedy tokens, log-probabilities of the same distribution, also after updates."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from safework_cli.core.artifacts.transfer import import_folder
from safework_cli.core.progress import read_metrics
from safework_cli.core.stage import Inputs
from safework_cli.engines.load import engine_over
from safework_cli.engines.protocol import Sampling, TokenEngine
from safework_cli.engines.settings import ServerSettings, VllmSettings
from safework_cli.engines.vllm.engine import VllmEngine
from safework_cli.engines.vllm.served import ServedVllm
from safework_cli.engines.vllm.server import VllmServer
from safework_cli.models.load import load_model, load_tokenizer
from safework_rl.m3.config import M3Config
from safework_rl.m3.stage import stage as m3

pytestmark = [pytest.mark.enable_socket, pytest.mark.timeout(600)]
QUESTIONS = ("What is 2+2?", "Name a fruit.", "Why is the sky blue?", "Write a word.", "Hello", "Is it fair?", "Count.", "Who are you?")
CONVERSATIONS = [[{"role": "user", "content": question}] for question in QUESTIONS]
GREEDY, SAMPLED = Sampling(24), Sampling(24, 1.0, seed=3)
MEAN_GAP, LARGEST_GAP = 2e-5, 2e-4
STEPS = 3
RL: dict[str, Any] = {
    "max_steps": 3,
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "steps_per_generation": 1,
    "max_completion_length": 24,
    "learning_rate": 1e-3,
    "preflight": 0,
    "bf16": False,
    "filter_groups": False,
    "phases": [{"tasks": ["safety"], "share": 1.0}],
    "rewards": {"safety": {"constraints": 1.0}},
    "format": {"mode": "term", "weight": 0.01},
    "language": {"mode": "off"},
}


def compare(engine: TokenEngine, own: TokenEngine, what: str) -> None:
    """Asserts that an engine gives what transformers gives with the same weights, and prints how close it is."""
    greedy, expected = engine.generate(CONVERSATIONS, GREEDY), own.generate(CONVERSATIONS, GREEDY)
    equal = sum(a.token_ids == b.token_ids and a.text == b.text for (a,), (b,) in zip(greedy, expected, strict=True))
    drawn = [(place, reply) for place, group in enumerate(engine.generate(CONVERSATIONS, SAMPLED, 2)) for reply in group]
    conversations, replies = [CONVERSATIONS[place] for place, _ in drawn], [reply.token_ids for _, reply in drawn]
    scores = own.score(conversations, replies)
    gaps = [abs(a - b) for (_, reply), score in zip(drawn, scores, strict=True) for a, b in zip(reply.logprobs, score, strict=True)]
    mine = engine.score(conversations, replies)
    rescored = [abs(a - b) for one, other in zip(mine, scores, strict=True) for a, b in zip(one, other, strict=True)]
    mean = sum(gaps) / len(gaps)
    print(f"\n{what}: greedy {equal}/{len(greedy)} equal, gap mean {mean:.1e}, largest {max(gaps):.1e}, of scores {max(rescored):.1e}")
    assert equal == len(greedy)
    assert mean <= MEAN_GAP and max(gaps) <= LARGEST_GAP and max(rescored) <= LARGEST_GAP
    assert len({tuple(ids) for ids in replies}) == len(replies), "every completion has draws of its own"
    turned = engine.generate(CONVERSATIONS[::-1], SAMPLED, 2)[::-1]
    assert [[c.token_ids for c in group] for group in turned] == [[r.token_ids for p, r in drawn if p == k] for k in range(len(QUESTIONS))]


def moved(model: Any) -> None:
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.02)


def over_steps(engine: TokenEngine, load: Callable[[Any, int], None], folder: Path, what: str) -> None:
    """Compares at the start and after each of some updates of the weights."""
    model = load_model(folder, dtype="float32")
    own = engine_over(model, load_tokenizer(folder))
    torch.manual_seed(1)
    for step in range(STEPS):
        started = time.perf_counter()
        load(model, step)
        print(f"\n{what}: update {time.perf_counter() - started:.2f} s (bar 0.5 s, on an idle machine)")
        compare(engine, own, f"{what}, step {step}")
        moved(model)


def test_in_the_process(wide_model, share, capfd, tmp_path):
    log = tmp_path / "vllm.log"
    tokenizer, settings = load_tokenizer(wide_model), VllmSettings(gpu_memory_utilization=share, max_model_len=512)
    state = torch.random.get_rng_state()
    engine = VllmEngine(wide_model, tokenizer, settings, dtype="float32", sampled=True, live=True, log=log)
    assert torch.equal(torch.random.get_rng_state(), state), "the run's random numbers are its own"
    printed = capfd.readouterr()
    assert not (printed.out + printed.err).strip(), "what vLLM prints is in its log"
    assert log.stat().st_size > 0
    with capfd.disabled():
        over_steps(engine, lambda model, _: engine.load_weights(model.named_parameters()), wide_model, "in the process")


def test_on_a_server(wide_model, served, tmp_path):
    url, log = served
    server = VllmServer(ServerSettings(url=url, log=str(log)), "none")
    engine = ServedVllm(server, wide_model, load_tokenizer(wide_model), dtype="float32", scratch=tmp_path)
    over_steps(engine, lambda model, step: engine.load_weights(model.named_parameters, f"test:{step}"), wide_model, "on a server")
    assert server.ask("GET", "/weight_info") == {"weight_version": f"test:{STEPS - 1}"}


def test_rl_whose_replies_a_server_samples(wide_model, served, store, toy_data, work):
    """The gap stays that of rounding while the weights move: the server has each step's."""
    url, log = served
    model = import_folder(store, wide_model, "wide")
    inputs = Inputs({"model": model, "data": toy_data.with_subset("rl"), "verifiers": {}})
    engine = {"kind": "vllm", "server": {"url": url, "log": str(log)}}
    outcome = m3.run(M3Config(engine=engine, **RL), inputs, work)
    steps = [step for step in read_metrics(work.metrics_path) if "reward" in step]
    print("\nrl over a server: gaps " + ", ".join(f"{step['engine/logprob_gap']:.1e}" for step in steps))
    assert outcome.metrics["updates"] > 0 and len(steps) == RL["max_steps"]
    assert all(step["engine/logprob_gap"] <= MEAN_GAP for step in steps)
