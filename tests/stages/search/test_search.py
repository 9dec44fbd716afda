"""Best-of-n and guided steps choose what the guide likes, keep token ids, and continue after a kill."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from safework_cli.lm.engine import Sampling
from safework_cli.lm.hf import HFEngine
from safework_cli.lm.models import load_model, load_tokenizer
from safework_cli.rows import Row
from safework_cli.stage import Inputs
from safework_cli.verifiers.contract import Verdict
from safework_search.methods import Candidate, Guides, as_reply, best_of_n, choose, guided_steps
from safework_search.stage import GuidedConfig, stage


class Likes:
    """Scores a reply by its share of one letter; cannot score an empty one."""

    name = "likes"

    def __init__(self, letter: str):
        self._letter = letter

    def judge(self, exchanges):
        return [Verdict(e.reply.count(self._letter) / len(e.reply)) if e.reply else Verdict(None, error="empty") for e in exchanges]


ROWS = [Row(f"r{i}", "safety", [{"role": "user", "content": f"question {i}"}]) for i in range(3)]


@pytest.fixture(scope="module")
def engine(tiny_model):
    return HFEngine(load_model(tiny_model), load_tokenizer(tiny_model))


def test_the_best_candidate_is_the_scored_one_then_the_higher_then_the_likelier():
    assert choose([Candidate("a", None, 0.0), Candidate("b", 0.1, -9.0)]) == 1
    assert choose([Candidate("a", 0.2, -9.0), Candidate("b", 0.1, 0.0)]) == 0
    assert choose([Candidate("a", 0.2, -2.0), Candidate("b", 0.2, -1.0)]) == 1


def test_weights_combine_guides():
    row, text = ROWS[0], "aab"
    guides = Guides({"a": Likes("a"), "b": Likes("b")}, {"a": 3.0}, 0.0)
    assert guides.score([row], [text], [0.0], partial=False) == [pytest.approx((3 * 2 / 3 + 1 / 3) / 4)]
    assert guides.score([row], [""], [0.0], partial=False) == [None]


def test_best_of_n_keeps_the_best(engine):
    for answer in best_of_n(engine, Guides({"e": Likes("e")}, {}, 0.0), ROWS, 4, Sampling(max_tokens=24, temperature=1.0, seed=3)):
        scores = [c.score for c in answer.candidates[0]]
        assert answer.candidates[0][answer.chosen[0]].score == max(s for s in scores if s is not None)
        assert answer.reply == answer.candidates[0][answer.chosen[0]].text


def test_guided_steps_grow_from_what_was_kept(engine):
    sampling = Sampling(max_tokens=24, temperature=1.0, seed=3)
    for answer in guided_steps(engine, Guides({"e": Likes("e")}, {}, 0.0), ROWS, 3, sampling, step_tokens=6, boundaries=["\n"]):
        assert len(answer.candidates) >= 4 or answer.stopped
        assert answer.reply == "".join(step[i].text for step, i in zip(answer.candidates, answer.chosen, strict=True))
        assert len(answer.token_ids) <= 24


def test_an_open_thought_is_read_as_a_reply():
    assert as_reply("<think>so far") == "so far" and as_reply("<think>a</think>b") == "<think>a</think>b"


def test_finished_batches_are_not_done_again(tiny_artifact, toy_data, work, monkeypatch):
    from safework_search import run as module

    monkeypatch.setattr(module, "load_verifier", lambda artifact, **_: Likes("e"))
    config = GuidedConfig(method="best_of_n", candidates=2, max_tokens=8, limit=4, batch_prompts=2)
    inputs = Inputs({"model": tiny_artifact, "prompts": toy_data.with_subset("rl"), "guide": {"e": tiny_artifact}})
    stage.run(config, inputs, work)
    first = pq.read_table(work.output / "generations.parquet").to_pylist()
    journal = work.path / "generations.jsonl"
    lines = journal.read_text().split("\n")
    kept = json.loads(lines[0])
    journal.write_text("\n".join([json.dumps(kept | {"reply": "kept"}), *lines[1:3], lines[3][:10]]))  # killed while writing the fourth
    outcome = stage.run(config, inputs, work)
    second = pq.read_table(work.output / "generations.parquet").to_pylist()
    assert second[0]["reply"] == "kept" and [r["reply"] for r in second[1:]] == [r["reply"] for r in first[1:]]
    assert outcome.metrics["prompts"] == 4 and outcome.metrics["score_chosen"] >= outcome.metrics["score_offered"]


def test_weights_for_a_guide_that_was_not_given_are_refused(tiny_artifact, toy_data):
    inputs = Inputs({"model": tiny_artifact, "prompts": toy_data, "guide": {"safety": tiny_artifact}})
    refused = stage.plan(GuidedConfig(guide_weights={"safty": 1.0}), inputs).refusals
    assert "did you mean 'safety'" in str(refused[0])
