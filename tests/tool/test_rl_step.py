"""benchmarks/rl_step.py measures both sides: it follows the trainer's signature, and nothing else runs it in the suite."""

from __future__ import annotations

import pytest
import rl_step

import safework_rl.step
from safework_cli.engines import over_tokens


@pytest.mark.parametrize("side", ["ours", "trl"])
@pytest.mark.parametrize("lora", [0, 2])
def test_a_side_is_measured(tiny_model, monkeypatch, side, lora):
    monkeypatch.setattr(over_tokens, "stop_token_ids", over_tokens.stop_token_ids)  # both are replaced by the benchmark, and put back here
    monkeypatch.setattr(safework_rl.step, "sample", safework_rl.step.sample)
    sizes = ["--prompt", "60", "--completion", "24", "--group", "4", "--steps", "1", "--lora", str(lora)]
    made = rl_step.measure(rl_step.parse(["--model", str(tiny_model), *sizes, "--side", side]))
    assert made["step_s"] > made["generation_s"] > 0 and len(made["steps"]) == 1
    assert (made["log_probabilities"].get("engine/first_log_ratio") == 0) == (side == "ours")
