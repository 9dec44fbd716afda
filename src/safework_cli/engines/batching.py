"""How rows of unequal length are cut into forward passes."""

from __future__ import annotations

from collections.abc import Sequence

COST_ON_CPU, COST_ELSEWHERE = 128, 4096
"""What a pass costs beyond its tokens, in tokens: weights are read and gradients added once more, kernels launched."""


def pass_cost(device_type: str) -> float:
    """Of a pass on such a device ("cpu", "cuda", …), beyond its tokens, in tokens."""
    return COST_ON_CPU if device_type == "cpu" else COST_ELSEWHERE


def like_lengths(lengths: Sequence[int], cost: float) -> list[list[int]]:
    """Rows cut into passes, longest first, so that Σ over passes of (rows · longest + ``cost``) is least.

    Args:
        lengths: of each row, in tokens; the time taken grows with the square of their number.
        cost: of a pass beyond its tokens, in tokens; infinite for one pass.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    least: list[tuple[float, int]] = [(0.0, 0)]  # of the first n rows: the cost, and where the last pass begins
    for end in range(1, len(order) + 1):
        least.append(min((least[start][0] + cost + (end - start) * lengths[order[start]], start) for start in range(end)))
    cuts, end = [], len(order)
    while end:
        start = least[end][1]
        cuts.append(order[start:end])
        end = start
    return cuts[::-1]
