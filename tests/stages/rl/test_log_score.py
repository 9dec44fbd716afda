"""The log score of a stated confidence, and the tokens that it acts on."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from safework_cli.core.progress import read_metrics
from safework_cli.core.stage import Inputs
from safework_cli.models.load import load_tokenizer
from safework_rl import step
from safework_rl.log_score import FLOOR, log_score_loss
from safework_rl.search.config import SearchConfig
from safework_rl.search.stage import stage
from safework_rl.step import Trajectory, stated_weights


def test_the_log_score_by_hand():
    """Two tokens state the first confidence, one the second; the third row states none."""
    p_BT = torch.tensor([[0.3, 0.8, 0.5], [0.3, 0.9, 0.1], [0.9, 0.9, 0.9]])
    weight_BT = torch.tensor([[0.0, 2.0, 2.0], [0.0, -3.0, 0.0], [0.0, 0.0, 0.0]])
    assert log_score_loss(p_BT.log(), weight_BT).item() == pytest.approx(-2 * math.log(0.4) - 3 * math.log(0.1 + FLOOR))
    assert log_score_loss(p_BT.log(), torch.zeros(3, 3)).item() == 0


@pytest.mark.parametrize("p", [0.5, 0.99, 1 - 1e-7, 1.0])
def test_certainty_that_was_wrong_is_lowered_where_a_reward_would_hardly_act(p):
    """On the logit of a choice a policy gradient is p·(1 − p) times the advantage."""
    logit = torch.tensor([[math.log(p) - math.log1p(-p) if p < 1 else 40.0]], requires_grad=True)
    log_score_loss(torch.nn.functional.logsigmoid(logit), torch.tensor([[-1.0]])).backward()
    assert logit.grad is not None and torch.isfinite(logit.grad).all()
    assert logit.grad.item() == pytest.approx(p * (1 - p) / (1 - p + FLOOR), abs=1e-6) and logit.grad.item() <= 1
    assert logit.grad.item() >= min(18, 1 / (1 - p + FLOOR)) * p * (1 - p) * 0.99


@pytest.mark.parametrize("turns", [1, 2])
@pytest.mark.parametrize("number", [0, 8, 10])
def test_it_acts_on_the_tokens_of_the_last_confidence_only(tiny_model, number, turns):
    """The turn before states one, too, as what was retrieved does."""
    tokenizer = load_tokenizer(tiny_model)

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    final = [*ids(f"<think>It says 7, ü.</think><confidence>{number}</confidence><answer>3</answer>"), tokenizer.eos_token_id]
    before, retrieved = (ids("<confidence>5</confidence>"), ids("Document: <confidence>6</confidence>")) if turns == 2 else ([], [])
    token_ids = before + retrieved + final
    mask = [1] * len(before) + [0] * len(retrieved) + [1] * len(final)
    weight_T = stated_weights(Trajectory(0, [1], token_ids, mask, [0.0] * len(mask), "", stated=-0.25), tokenizer)
    marked = [place for place, weight in enumerate(weight_T.tolist()) if weight == -0.25]
    assert tokenizer.decode([token_ids[place] for place in marked]).strip("<>") == str(number) and weight_T.sum() == -0.25 * len(marked)
    assert marked[0] > len(before) + len(retrieved)
    assert not stated_weights(Trajectory(0, [1], token_ids, mask, [0.0] * len(mask), ""), tokenizer).any()


def test_it_is_not_promised_where_a_loss_does_not_train_on_it():
    with pytest.raises(ValidationError, match="log_score is not trained on with algorithm=grpo"):
        SearchConfig(algorithm="grpo", reliability={"log_score": 0.1})
    SearchConfig(algorithm="grpo")


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_run_trains_on_it(tiny_artifact, index_artifact, search_data, work, acting, monkeypatch, weight):
    monkeypatch.setattr(step, "tokens_of_confidence", lambda tokenizer, token_ids: range(1))
    config = SearchConfig(
        max_steps=1, num_generations=4, per_device_train_batch_size=4, gradient_accumulation_steps=2, steps_per_generation=2,
        max_completion_length=32, limits={"turn_tokens": 8}, preflight=0, require_gradient=False,
        reliability={"log_score": weight, "multiplier": 2.0},
    )  # fmt: skip
    stage.run(config, Inputs({"model": tiny_artifact, "index": index_artifact, "data": search_data}), work)
    (record,) = read_metrics(work.progress.metrics_path)
    assert ("search/log_score" in record) == bool(weight)
    assert record.get("search/log_score", 1) > 0
