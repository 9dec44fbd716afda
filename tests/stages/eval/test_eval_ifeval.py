"""IFEval's four published numbers in the summary, and their absence where rows carry other constraints."""

from __future__ import annotations

import pytest

from safework_cli.data.row import Row
from safework_eval.samples import RecordedReply, ScoredSample
from safework_eval.summary import ifeval_numbers

COMMA, TITLE = {"id": "punctuation:no_comma"}, {"id": "detectable_format:title"}


def sample(text: str, constraints: list[dict[str, str]], error: str | None = None) -> ScoredSample:
    row = Row("r", "general", [{"role": "user", "content": "Write."}], meta={"constraints": constraints})
    return ScoredSample("ifeval", row, RecordedReply(text, 1, 1, "stop", error))


def test_the_four_numbers_of_a_suite():
    samples = [
        sample("<think>a, b</think><<T>>\nno", [COMMA, TITLE]),
        sample("<think>t</think>first, line\nnone", [COMMA]),
        sample("", [COMMA], "too long"),
    ]
    assert ifeval_numbers(samples) == pytest.approx(
        {
            "prompt_level_strict_accuracy": 1 / 3,
            "inst_level_strict_accuracy": 2 / 4,
            "prompt_level_loose_accuracy": 2 / 3,
            "inst_level_loose_accuracy": 3 / 4,
        }
    )


def test_other_constraints_have_none():
    assert ifeval_numbers([sample("<think>t</think>a", [{"type": "no_commas"}])]) == {}
    assert ifeval_numbers([sample("<think>t</think>a", [COMMA]), sample("a", [])]) == {}
