"""How rows of different lengths are divided into forward passes."""

from __future__ import annotations

from collections.abc import Sequence

COST_ON_CPU, COST_ELSEWHERE = 128, 4096
"""Fixed cost of a pass, in tokens: weights are read, gradients added, kernels launched."""


def pass_cost(device_type: str) -> float:
    """The fixed cost of a pass on a device type ("cpu", "cuda", …), in tokens."""
    return COST_ON_CPU if device_type == "cpu" else COST_ELSEWHERE


def bucket_by_length(lengths: Sequence[int], cost: float) -> list[list[int]]:
    """Rows divided into passes, longest first, with the least Σ over passes of (rows · longest + ``cost``).

    Args:
        lengths: of each row, in tokens; the running time is quadratic in their number.
        cost: fixed cost of a pass, in tokens; infinite for one pass.
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
