"""The Lagrange multiplier of a constraint on a batch mean, updated by multiplicative weights.

Deliberative Searcher (arXiv 2507.16727) constrains reliability; its step size, bounds and threshold are not published, so these
defaults are choices (`docs/safeladder.md` 6).
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True)
class Multiplier:
    """λ of the constraint "mean value ≥ threshold".

    Attributes:
        value: λ now.
        threshold: what the constrained mean must reach, in [0, 1].
        step: η of λ ← λ·exp(η·(threshold − mean)).
        low, high: bounds that λ is projected onto.
        decay: of the exponential moving average of the mean; 0 uses only the batch.
        mean: the moving average, None before the first batch.
    """

    value: float
    threshold: float
    step: float
    low: float
    high: float
    decay: float
    mean: float | None = None

    def update(self, batch_mean: float) -> float:
        """Takes one batch's mean in and returns the new λ: up while the constraint is violated, down while it holds."""
        if not math.isfinite(batch_mean):
            return self.value
        self.mean = batch_mean if self.mean is None else self.decay * self.mean + (1 - self.decay) * batch_mean
        self.value = min(self.high, max(self.low, self.value * math.exp(self.step * (self.threshold - self.mean))))
        return self.value

    def state(self) -> dict[str, float | None]:
        """What moves."""
        return {"value": self.value, "mean": self.mean}

    @property
    def pinned(self) -> bool:
        """Whether λ is at a bound: above, the constraint looks infeasible; below, it costs nothing."""
        return self.value in (self.low, self.high)
