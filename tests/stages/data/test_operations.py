"""Cognitive operations: detected by their words, counted, and spread evenly."""

import math

import pytest

from safework_data.cot.operations import OPERATIONS, balanced, entropy, histogram, operations_of


@pytest.mark.parametrize(
    ("thought", "found"),
    [
        ("First I list what I know. Wait, that is not enough. Let me check the sum.", ["decompose", "backtrack", "verify"]),
        ("A bomb is dangerous and could hurt children. So I decline.", ["weigh risk", "consider people", "reflect"]),
        ("首先看题目。不对，再检查一遍。", ["decompose", "backtrack", "verify"]),
        ("Paris.", []),
        ("The firstborn waited unharmed.", []),  # whole words only
    ],
)
def test_operations_in_the_order_in_which_they_are_met(thought, found):
    assert operations_of(thought) == found


def test_entropy_by_hand():
    assert entropy([1, 1, 1, 1]) == pytest.approx(1.0)
    assert entropy([5, 0, 0]) == 0.0 == entropy([0, 0]) == entropy([])
    assert entropy([3, 1]) == pytest.approx(-(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)))


def test_a_histogram_names_every_operation():
    assert histogram([["verify"], ["verify", "reflect"], []]) == {name: {"verify": 2, "reflect": 1}.get(name, 0) for name in OPERATIONS}


def test_a_balanced_sample_is_flatter_in_order_and_seeded():
    items = [("weigh risk",)] * 80 + [("verify",)] * 10 + [("backtrack",)] * 10 + [()] * 20
    numbered = list(enumerate(items))
    drawn = balanced(numbered, lambda item: item[1], 30, seed=0)
    assert len(drawn) == 30 and drawn == sorted(drawn)
    counts = histogram([found for _, found in drawn])
    assert (counts["weigh risk"], counts["verify"], counts["backtrack"]) == (10, 10, 10)
    assert drawn == balanced(numbered, lambda item: item[1], 30, seed=0) != balanced(numbered, lambda item: item[1], 30, seed=1)
    assert balanced(numbered, lambda item: item[1], 500, seed=0) == numbered
    assert sum(not found for _, found in balanced(numbered, lambda item: item[1], 110, seed=0)) == 10, "thoughts without any come last"
