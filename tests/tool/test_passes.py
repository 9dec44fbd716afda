"""Rows cut into forward passes."""

from __future__ import annotations

import pytest

from safework_cli.engines.batching import bucket_by_length


@pytest.mark.parametrize(
    ("lengths", "cost", "expected"),
    [
        ([5, 5, 5], 0, 15), ([3, 9, 4, 8], 0, 24), ([3, 9, 4, 8], 100, 4 * 9 + 100), ([10, 100, 12, 90], 20, 2 * 100 + 2 * 12 + 2 * 20),
        ([10, 100], float("inf"), float("inf")), ([0, 0], 1, 1),
    ],
)  # fmt: skip
def test_passes_are_cut_where_they_cost_least(lengths, cost, expected):
    cuts = bucket_by_length(lengths, cost)
    assert sorted(row for rows in cuts for row in rows) == list(range(len(lengths)))
    assert sum(len(rows) * max(lengths[row] for row in rows) + cost for rows in cuts) == expected
    if cost == float("inf"):
        assert len(cuts) == 1
