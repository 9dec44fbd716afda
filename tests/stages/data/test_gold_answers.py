"""Rows whose gold answer no reply can be compared with are dropped when the dataset is built, by name."""

from __future__ import annotations

import pytest

from safework_cli.data.row import Message, Row
from safework_cli.verifiers.rules.registry import MAX_GOLD_CHARACTERS
from safework_data.build.checks import examined
from safework_data.build.config import BuildConfig
from safework_data.build.drops import Candidate


def candidate(answer: str | None, **meta: object) -> Candidate:
    return Candidate(Row("r", "knowledge", [Message(role="user", content="Which?")], answer=answer, meta=dict(meta)), "rl", "s")


@pytest.mark.parametrize(
    ("answer", "meta", "words"),
    [
        ("x" * (MAX_GOLD_CHARACTERS + 1), {"answer_type": "exact"}, "compare at most"),
        ("x", {"answer_type": "contains", "aliases": ["y" * MAX_GOLD_CHARACTERS]}, "compare at most"),
        ("x" * MAX_GOLD_CHARACTERS, {"answer_type": "exact"}, None),
        ("x" * (MAX_GOLD_CHARACTERS + 1), {}, None),  # compared by no rule
        ("M", {"answer_type": "choice", "choices": [str(n) for n in range(13)]}, None),
    ],
)
def test_a_gold_answer_over_the_bound_is_dropped(answer, meta, words):
    (problem,) = examined([candidate(answer, **meta)], BuildConfig())
    if words is None:
        assert problem is None
    else:
        assert problem is not None and problem[0] == "gold answer that no reply can be compared with" and words in problem[1]
