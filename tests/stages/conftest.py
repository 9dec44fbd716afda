"""Search episodes for a random model: passages, questions, and actions read into whatever it writes."""

from __future__ import annotations

import pytest

from safework_cli.core.artifacts import Store


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
