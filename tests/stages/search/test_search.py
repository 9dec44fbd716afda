"""Best-of-n and guided steps choose what the guide likes, keep token ids, and continue after a kill."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from safework_cli.core.errors import ConfigError
from safework_cli.core.stage import Inputs
from safework_cli.data.row import Row, write_rows
from safework_cli.engines.hf.engine import HFEngine
from safework_cli.engines.protocol import Sampling
from safework_cli.models.load import load_model, load_tokenizer
from safework_cli.verifiers.contract import Verdict
from safework_search.config import GuidedConfig
from safework_search.methods import Candidate, Guides, as_reply, best_of_n, choose, guided_steps
from safework_search.stage import stage
from scripted import Scripted, spaced_tokenizer


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
    assert choose([Candidate("a", [], None, 0.0), Candidate("b", [], 0.1, -9.0)]) == 1
    assert choose([Candidate("a", [], 0.2, -9.0), Candidate("b", [], 0.1, 0.0)]) == 0
    assert choose([Candidate("a", [], 0.2, -2.0), Candidate("b", [], 0.2, -1.0)]) == 1


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
        kept = [step[i] for step, i in zip(answer.candidates, answer.chosen, strict=True)]
        assert answer.token_ids == [token for candidate in kept for token in candidate.token_ids]
        assert answer.reply == engine.text_of([], answer.token_ids)
        assert len(answer.token_ids) <= 24


def test_an_open_thought_is_read_as_a_reply():
    assert as_reply("<think>so far") == "so far" and as_reply("<think>a</think>b") == "<think>a</think>b"


@pytest.mark.parametrize(("text", "spaced"), [("六七四十二 naïve", False), ("Ada wrote the first programme", True)])
def test_steps_that_cut_characters_or_words_leave_them_whole(engine, text, spaced):
    scripted, seen = Scripted(spaced_tokenizer(text) if spaced else engine.tokenizer, text), []

    class Reads(Likes):
        def judge(self, exchanges):
            seen.extend(e.reply for e in exchanges)
            return super().judge(exchanges)

    row = Row("r", "general", [{"role": "user", "content": "What is 6 times 7?"}])
    steps = {"step_tokens": 2 if spaced else 4, "boundaries": []}
    (answer,) = guided_steps(scripted, Guides({"e": Reads("e")}, {}, 0.0), [row], 2, Sampling(max_tokens=64), **steps)
    assert answer.reply == text and answer.stopped and answer.token_ids == scripted.script and len(answer.chosen) > 2
    assert seen and all(text.startswith(reply) for reply in seen), "guides read whole characters and words"
    assert [token for step in answer.candidates for token in step[0].token_ids] == scripted.script


def test_no_reply_is_longer_than_asked_whatever_its_steps(engine):
    class None_(Likes):  # the likeliest is kept
        def judge(self, exchanges):
            return [Verdict(0.5) for _ in exchanges]

    sampling = Sampling(max_tokens=10, temperature=1.0, seed=5)
    for answer in guided_steps(engine, Guides({"n": None_("e")}, {}, 0.0), ROWS, 2, sampling, step_tokens=7, boundaries=["e", " "]):
        assert len(answer.token_ids) == 10 or answer.stopped
        assert len(answer.token_ids) <= 10


def test_a_reply_does_not_depend_on_its_company(engine, tiny_model):
    rows = [*ROWS, Row("long", "safety", [{"role": "user", "content": "a much longer question " * 8}])]
    sampling = Sampling(max_tokens=20, temperature=1.0, seed=3)
    single = HFEngine(engine.model, engine.tokenizer, 1)
    guides = Guides({"e": Likes("e")}, {}, 0.0)
    steps = {"step_tokens": 7, "boundaries": ["e", " "]}
    together = guided_steps(engine, guides, rows, 2, sampling, **steps)
    for row, answer in zip(rows, together, strict=True):
        (single_answer,) = guided_steps(single, guides, [row], 2, sampling, **steps)
        assert single_answer.token_ids == answer.token_ids
    for row, answer in zip(rows, best_of_n(engine, guides, rows, 3, sampling), strict=True):
        (single_answer,) = best_of_n(single, guides, [row], 3, sampling)
        assert single_answer.token_ids == answer.token_ids
        assert len({tuple(c.token_ids) for c in answer.candidates[0]}) == 3


def test_weights_of_nothing(engine):
    class Broken(Likes):
        def judge(self, exchanges):
            raise AssertionError("a guide of weight 0 was asked")

    row = ROWS[0]
    guides = Guides({"a": Likes("a"), "off": Broken("b")}, {"off": 0.0}, 0.0)
    assert guides.score([row], ["aab"], [0.0], partial=False) == [pytest.approx(2 / 3)]
    likely = Guides({"a": Broken("a")}, {"a": 0.0}, 0.5)
    assert likely.score([row], ["aab"], [-2.0], partial=False) == [-1.0]
    with pytest.raises(ConfigError, match="every guide has the weight 0"):
        Guides({"a": Likes("a")}, {"a": 0.0}, 0.0)


def test_a_prompt_that_does_not_fit_is_a_failed_item(tiny_artifact, toy_data, work, monkeypatch, store, commit):
    from safework_search import run as module

    monkeypatch.setattr(module, "load_verifier", lambda artifact, **_: Likes("e"))
    folder = store.staging()
    (folder / "asked").mkdir()
    rows = [*ROWS, Row("long", "safety", [{"role": "user", "content": "x" * 5000}])]
    write_rows(folder / "asked" / "rows.parquet", rows)
    inputs = Inputs({"model": tiny_artifact, "prompts": commit(folder, "dataset", "asked"), "guide": {"e": tiny_artifact}})
    for method in ("guided_steps", "best_of_n"):
        (work.path / "generations.jsonl").unlink(missing_ok=True)
        config = GuidedConfig(method=method, candidates=2, max_tokens=8, step_tokens=4)
        outcome = stage.run(config, inputs, work)
        records = pq.read_table(work.output / "generations.parquet").to_pylist()
        assert outcome.failed_items == 1 and [r["error"] is None for r in records] == [True] * 3 + [False]
        assert "4096 positions" in records[3]["error"] and records[0]["token_ids"] and len(records[0]["token_ids"]) == records[0]["tokens"]


def test_a_rule_can_guide(cli, store, tiny_artifact, toy_data):
    words = [
        "search",
        f"model={tiny_artifact.ref}",
        f"prompts={toy_data.ref}:rl",
        "candidates=2",
        "max_tokens=8",
        "step_tokens=8",
        "limit=3",
    ]
    done = cli(*words, "guide.refusal=rule:refusal", "tasks=[safety]", "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["inputs"]["guide.refusal"]["ref"] == "rule:refusal" and made["metrics"]["scored"] == 3
    assert cli("artifacts", "lineage", made["ref"]).returncode == 0
    unknown = cli(*words, "guide.refusal=rule:refusl")
    assert unknown.returncode == 2 and "did you mean 'refusal'" in unknown.stderr
    nothing = cli(*words, "guide.refusal=rule:refusal", "guide_weights={refusal: 0}")
    assert nothing.returncode == 2 and "every guide has the weight 0" in nothing.stderr and "Traceback" not in nothing.stderr


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
