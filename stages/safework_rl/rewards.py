"""Rewards routed by task: which verifiers judge a row, with which weights, and how the format counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from safework_cli.data.row import Row
from safework_cli.verifiers.contract import Exchange, Verdict, Verifier, judged
from safework_rl.config import FormatSettings, LanguageSettings

Routes = Mapping[str, Mapping[str, float]]


@dataclass(slots=True)
class Scored:
    """Judged replies, one entry each, in order.

    Attributes:
        reward: in [0, 1] (search: up to 1 + λ); NaN where a verifier could not score the reply.
        correct: the task's own verifier is content and the format was kept; None where a verifier could not score the reply.
        verdicts: by verifier name.
    """

    reward: list[float]
    correct: list[bool | None]
    verdicts: list[dict[str, Verdict]]


class TaskRewards:
    """R = Σ w_j·R_j / Σ w_j over the verifiers of the row's task; format and language are gates (R·0 where they fail) or further terms.

    The official code sums without normalising, which gives tasks with more verifiers more pull (`docs/safeladder.md` 3.2); here every
    task's reward lies in [0, 1].

    Args:
        routes: task → verifier name → weight. The first verifier of a task is the one that says whether the reply is right.
        verifiers: by name, "format" and "language" among them.
        form, language: how these two count.
        threshold: score from which the first verifier is content.
    """

    def __init__(
        self,
        routes: Routes,
        verifiers: Mapping[str, Verifier],
        form: FormatSettings,
        language: LanguageSettings,
        threshold: float,
    ):
        self._routes, self._verifiers, self._threshold = routes, verifiers, threshold
        self._manners: dict[str, FormatSettings | LanguageSettings] = {"format": form}
        if language.mode != "off":
            self._manners["language"] = language

    def score(self, rows: Sequence[Row], replies: Sequence[str]) -> Scored:
        """Judges one reply for each row."""
        exchanges = [self._exchange(row, reply) for row, reply in zip(rows, replies, strict=True)]
        verdicts: list[dict[str, Verdict]] = [{} for _ in rows]
        for name in sorted({name for row in rows for name in self._routes[row.task]} | self._manners.keys()):
            wanted = [i for i, row in enumerate(rows) if name in self._manners or name in self._routes[row.task]]
            found = judged(self._verifiers[name], [exchanges[i] for i in wanted])  # one batch for each verifier
            for i, verdict in zip(wanted, found, strict=True):
                verdicts[i][name] = verdict
        combined = [self._combine(self._routes[row.task], found) for row, found in zip(rows, verdicts, strict=True)]
        return Scored([reward for reward, _ in combined], [correct for _, correct in combined], verdicts)

    def deciding(self, task: str) -> str:
        """The verifier that says whether a reply of the task is right."""
        return next(iter(self._routes[task]))

    @staticmethod
    def _exchange(row: Row, reply: str) -> Exchange:
        exchange = Exchange.of(row, reply)
        # the refusal rule must know which side a refusal falls on; outside the safety task nothing is harmful unless the row says so
        return exchange if row.harmful is not None or row.task == "safety" else replace(exchange, harmful=False)

    def _combine(self, route: Mapping[str, float], verdicts: Mapping[str, Verdict]) -> tuple[float, bool | None]:
        scores = {name: verdict.score for name, verdict in verdicts.items() if verdict.score is not None}
        if len(scores) < len(verdicts):
            return math.nan, None
        terms = {name: manner.weight for name, manner in self._manners.items() if manner.mode == "term"} | dict(route)
        gates = [name for name, manner in self._manners.items() if manner.mode == "gate"]
        total = sum(terms.values())
        reward = sum(weight * scores[name] for name, weight in terms.items()) / total if total else 0.0
        if any(scores[name] < 1.0 for name in gates):
            reward = 0.0
        return reward, all(scores[name] == 1.0 for name in {"format", *gates}) and scores[next(iter(route))] >= self._threshold
