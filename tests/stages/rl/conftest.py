"""A reward that a random model can earn, and m3 on two groups of four short replies."""

from __future__ import annotations

import pytest

from safework_cli.core.stage import Inputs
from safework_cli.verifiers.contract import Verdict


class Length:
    """Scores a reply by how many letters "e" it holds: a random model's groups differ in it."""

    name = "length"

    def judge(self, exchanges):
        return [Verdict(min(1.0, e.reply.count("e") / 4 + len(e.reply) / 64)) for e in exchanges]


@pytest.fixture
def rewards(monkeypatch):
    """Routes every task to ``Length``, with the format as a light term: random models keep no format."""
    from safework_rl import run as train

    monkeypatch.setattr(train, "load_verifier", lambda artifact, **_: Length())
    return {
        "rewards": {"general": {"judge": 1.0}, "safety": {"judge": 1.0}},
        "format": {"mode": "term", "weight": 0.01},
        "language": {"mode": "off"},
    }


@pytest.fixture
def run_m3(tiny_artifact, toy_data, work, rewards):
    """Runs one step of m3 in ``work``, with settings in place of the usual ones."""
    from safework_rl.m3.config import M3Config
    from safework_rl.m3.stage import stage

    def run(*, verifiers=("judge",), **settings):
        usual = {
            "max_steps": 1, "num_generations": 4, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
            "steps_per_generation": 1,
            "max_completion_length": 12, "learning_rate": 1e-3, "phases": [{"tasks": ["general", "safety"], "share": 1.0}],
            "filter_groups": False, "preflight": 0, "bf16": False,
        }  # fmt: skip
        inputs = Inputs({"model": tiny_artifact, "data": toy_data.with_subset("rl"), "verifiers": dict.fromkeys(verifiers, tiny_artifact)})
        return stage.run(M3Config(**(usual | rewards | settings)), inputs, work)

    return run
