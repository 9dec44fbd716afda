"""The order in which rows are trained on."""

from __future__ import annotations

from statistics import mean

from safework_cli.lm.training import StepSampler


def test_a_step_sees_a_random_sample_sorted_by_length_inside():
    """Two kinds of rows, long and short: every step must see both, or the model learns one reply at a time."""
    lengths = [100 + i % 7 if i % 2 else 50 + i % 5 for i in range(203)]
    epoch = 0
    sampler = StepSampler(lengths, per_step=16, seed=3, epoch=lambda: epoch)
    first = list(sampler)
    assert sorted(first) == list(range(203)) and first == list(sampler)
    steps = [[lengths[row] for row in first[k : k + 16]] for k in range(0, 192, 16)]
    assert all(step == sorted(step, reverse=True) for step in steps)
    assert all(0.1 < mean(length > 80 for length in step) < 0.9 for step in steps)
    epoch = 1
    assert list(sampler) != first
