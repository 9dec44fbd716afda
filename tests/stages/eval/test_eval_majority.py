"""The share of the most frequent gold answer next to a suite's value."""

from __future__ import annotations

from safework_cli.data.row import Message, Row
from safework_eval.summary import majority
from safework_eval.table import _majorities


def rows(*answers: str | None) -> list[Row]:
    asked = [Message(role="user", content="?")]
    return [Row(str(number), "general", asked, answer=answer) for number, answer in enumerate(answers)]


def test_the_most_frequent_answer_and_its_share():
    assert majority(rows("2", "1", "2", "3")) == {"answer": "2", "share": 0.5}
    assert majority(rows("b", "a")) == {"answer": "a", "share": 0.5}
    assert majority(rows("a", None)) is None and majority([]) is None


def test_the_table_names_it_where_answers_repeat():
    suites = {"count": {"majority": {"answer": "2", "share": 0.25}}, "sums": {"majority": {"answer": "17", "share": 0.02}}, "refused": {}}
    assert _majorities({"suites": suites}) == ["always the most frequent answer: count 25.0% (2)"]
    assert _majorities({"suites": {"sums": suites["sums"]}}) == []
