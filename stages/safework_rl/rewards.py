"""Rewards routed by task: which verifiers judge a row, with which weights, and how the format counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from safework_cli.rows import Row
from safework_cli.verifiers.contract import Exchange, Verdict, Verifier
from safework_rl.settings import FormatSettings

Routes = Mapping[str, Mapping[str, float]]


@dataclass(slots=True)
class Scored:
    """Judged replies, one entry each, in order.

    Attributes:
        reward: in [0, 1] (search: up to 1 + λ); NaN where a verifier could not score the reply.
        correct: the task's own verifier is content and the format was kept.
        verdicts: by verifier name.
    """

    reward: list[float]
    correct: list[bool]
    verdicts: list[dict[str, Verdict]]


class TaskRewards:
    """R = Σ w_j·R_j / Σ w_j over the verifiers of the row's task, gated by the format or with the format as one more term.

    The official code sums without normalising, which gives tasks with more verifiers more pull (`docs/safeladder.md` 3.2); here every
    task's reward lies in [0, 1].

    Args:
        routes: task → verifier name → weight. The first verifier of a task is the one that says whether the reply is right.
        verifiers: by name.
        format_settings: gate or term.
        threshold: score from which the first verifier is content.
    """

    def __init__(self, routes: Routes, verifiers: Mapping[str, Verifier], format_settings: FormatSettings, threshold: float):
        self._routes, self._verifiers, self._format, self._threshold = routes, verifiers, format_settings, threshold

    def score(self, rows: Sequence[Row], replies: Sequence[str]) -> Scored:
        """Judges one reply for each row."""
        exchanges = [self._exchange(row, reply) for row, reply in zip(rows, replies, strict=True)]
        verdicts: list[dict[str, Verdict]] = [{} for _ in rows]
        names = {name for row in rows for name in self._routes[row.task]} | {"format"}
        for name in sorted(names):
            wanted = [i for i, row in enumerate(rows) if name == "format" or name in self._routes[row.task]]
            judged = self._verifiers[name].judge([exchanges[i] for i in wanted])  # one batch for each verifier
            for i, verdict in zip(wanted, judged, strict=True):
                verdicts[i][name] = verdict
        combined = [self._combine(self._routes[row.task], found) for row, found in zip(rows, verdicts, strict=True)]
        return Scored([reward for reward, _ in combined], [correct for _, correct in combined], verdicts)

    @staticmethod
    def _exchange(row: Row, reply: str) -> Exchange:
        exchange = Exchange.of(row, reply)
        # the refusal rule must know which side a refusal falls on; outside the safety task nothing is harmful unless the row says so
        return exchange if row.harmful is not None or row.task == "safety" else replace(exchange, harmful=False)

    def _combine(self, route: Mapping[str, float], verdicts: Mapping[str, Verdict]) -> tuple[float, bool]:
        scores = {name: score for name in route if (score := verdicts[name].score) is not None}
        if len(scores) < len(route) or verdicts["format"].score is None:
            return math.nan, False
        in_format = verdicts["format"].score == 1.0
        total = sum(weight * scores[name] for name, weight in route.items())
        weights = sum(route.values())
        right = in_format and scores[next(iter(route))] >= self._threshold
        if self._format.mode == "gate":
            return (total / weights if in_format else 0.0), right
        return (total + self._format.weight * in_format) / (weights + self._format.weight), right
