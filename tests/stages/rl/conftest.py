"""A reward that a random model can earn, and m3 on two groups of four short replies."""

from __future__ import annotations

import pytest

from safework_cli.core.artifacts import Store
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


@pytest.fixture
def index_artifact(store: Store, commit):
    """Two passages."""
    from safework_cli.environments.search.index import Passage, write_index

    folder = store.staging()
    write_index(folder, [Passage("a", "A", "Alpha is a letter.", ""), Passage("b", "B", "Beta is another.", "")], k1=1.5, b=0.75)
    return commit(folder, "index", "two")


@pytest.fixture
def search_data(store: Store, commit):
    """Eight questions whose gold answer is a letter that a random reply may hold."""
    from safework_cli.data.row import Row, write_rows

    folder = store.staging()
    (folder / "rl").mkdir()
    meta = {"answer_type": "contains"}
    rows = [Row(f"q{i}", "search", [{"role": "user", "content": f"Who is {c}?"}], answer=c, meta=meta) for i, c in enumerate("bcdefghj")]
    write_rows(folder / "rl" / "rows.parquet", rows)
    return commit(folder, "dataset", "questions")


@pytest.fixture
def acting(monkeypatch):
    """A random model writes no action: what it writes is a search or its answer, and the answer's length its confidence."""
    from safework_cli.environments.search import runner
    from safework_cli.environments.search.grammar import Action

    def act(text):
        return Action("search", query=text) if text[:1] < "A" else Action("answer", answer=text, confidence=len(text) % 11)

    monkeypatch.setattr(runner, "parse_action", act)
