"""What of an episode is trained on: the tokens that the policy sampled, and nothing that the index said."""

from __future__ import annotations

import re

import pytest

from safework_cli.core.errors import InputError
from safework_cli.core.stage import Inputs
from safework_cli.data.row import Row, write_rows
from safework_cli.environments.search.grammar import SEARCH_INSTRUCTION
from safework_rl import trl_adapter
from safework_rl.losses import cpgd
from safework_rl.search.config import SearchConfig
from safework_rl.search.stage import stage
from safework_rl.step import flat


@pytest.mark.parametrize("share", [True, False])
def test_retrieved_tokens_are_neither_trained_on_nor_counted(tiny_artifact, index_artifact, search_data, acting, work, monkeypatch, share):
    losses, batches = [], []
    loss, make = cpgd.cpgd_loss, trl_adapter.step

    def noted_loss(logp, old, advantage, mask, denominator, **more):
        losses.append((mask.tolist(), denominator.tolist()))
        return loss(logp, old, advantage, mask, denominator, **more)

    def noted_step(*args):
        batches.append(make(*args))
        return batches[-1]

    monkeypatch.setattr(cpgd, "cpgd_loss", noted_loss)
    monkeypatch.setattr(trl_adapter, "step", noted_step)
    config = SearchConfig(
        max_steps=2, num_generations=4, per_device_train_batch_size=8, gradient_accumulation_steps=1, max_completion_length=160,
        learning_rate=1e-3, preflight=0, share_prompts=share, limits={"turns": 2, "results": 2, "turn_tokens": 12},
        require_gradient=False,
    )  # fmt: skip
    stage.run(config, Inputs({"model": tiny_artifact, "index": index_artifact, "data": search_data.with_subset("rl")}), work)
    samples = [sample for batch in batches for sample in flat(batch.kept)]
    rows = [(mask, tokens) for masks, denominators in losses for mask, tokens in zip(masks, denominators, strict=True)]
    assert len(samples) == len(rows) == 16
    assert any(len(sample.token_ids) > sample.length for sample in samples), "something was retrieved"
    for place, (sample, (mask, tokens)) in enumerate(zip(samples, rows, strict=True)):
        assert mask == sample.mask + [0] * (len(mask) - len(sample.mask))
        group = samples[place - place % 4 : place - place % 4 + 4]
        assert tokens == config.prompts_per_step * sum(other.length for other in group)


SHORT = {
    "max_steps": 1, "num_generations": 4, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "steps_per_generation": 1,
    "max_completion_length": 64, "limits": {"turns": 2, "turn_tokens": 12}, "preflight": 0, "require_gradient": False,
}  # fmt: skip


def test_a_question_without_the_search_instruction_gets_it(tiny_artifact, index_artifact, search_data, acting, work, monkeypatch):
    batches, make = [], trl_adapter.step

    def noted_step(*args):
        batches.append(make(*args))
        return batches[-1]

    monkeypatch.setattr(trl_adapter, "step", noted_step)
    stage.run(SearchConfig(**SHORT), Inputs({"model": tiny_artifact, "index": index_artifact, "data": search_data.with_subset("rl")}), work)
    for trajectory in flat(batches[0].kept):
        assert trajectory.transcript.messages[0]["content"].startswith(SEARCH_INSTRUCTION)


def test_questions_about_passages_that_the_index_lacks_are_refused(tiny_artifact, index_artifact, store, commit):
    folder = store.staging()
    (folder / "rl").mkdir()
    asked = [{"role": "user", "content": "Who?"}]
    rows = [
        Row(f"q{i}", "search", asked, answer="Ada", meta={"answer_type": "contains", "passages": [name]}) for i, name in enumerate("ax")
    ]
    write_rows(folder / "rl" / "rows.parquet", rows)
    data = commit(folder, "dataset", "elsewhere")
    inputs = Inputs({"model": tiny_artifact, "index": index_artifact, "data": data.with_subset("rl")})
    refused = [error for error in stage.plan(SearchConfig(**SHORT), inputs).refusals if isinstance(error, InputError)]
    assert len(refused) == 1
    assert re.search(r"1 of 2 questions of .*elsewhere.* have their answers in passages that .*two.* lacks", str(refused[0]))
