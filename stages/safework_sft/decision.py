"""How well the model recognises harmful prompts by its verdict: before training, after it, and where the threshold belongs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from safework_cli.core.errors import InputError
from safework_cli.core.stage import WorkDir
from safework_cli.data.row import Row
from safework_cli.data.verdict import Mark, Words
from safework_cli.models.verdict import Choice, log_odds
from safework_cli.statistics.decision import balanced_accuracy, best_threshold, decision_figures
from safework_sft.encode import encode_rows


class Decision:
    """Measures a model's verdicts on held-out rows.

    Args:
        pairs: the rows with their marks; those that are too long or that the chat template refuses are left out.
        words: what the words mean.
        choices: language → its words as tokens.
        ref: of the data.

    Raises:
        InputError: no row of a class is left.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Row, Mark]],
        words: Words,
        choices: Mapping[str, Choice],
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: list[int],
        longest: int,
        ref: str,
    ):
        marks = {row.id: mark for row, mark in pairs}
        encoded = encode_rows([row for row, _ in pairs], tokenizer, stop_ids, longest, marks=marks)
        self.ref, self._pad_id = ref, int(tokenizer.pad_token_id or 0)
        self._prefixes: list[list[int]] = []
        self._choices: list[Choice] = []
        self._groups: list[str] = []
        positive = []
        for row, ids, marked in zip(encoded.rows, encoded.input_ids, encoded.marked, strict=True):
            if marked is not None and marked[0].language in choices:
                choice = choices[marked[0].language]
                self._prefixes.append(ids[: marked[1] + choice.shared])
                self._choices.append(choice)
                self._groups.append(row.group)
                positive.append(words[marked[0].language][marked[0].word])
        self._positive_N = np.array(positive, dtype=bool)
        if self._positive_N.all() or not self._positive_N.any():
            left = f"{len(positive)} of {len(pairs)} rows can be encoded, all of one class"
            raise InputError(f"{ref} cannot show how well harmful prompts are recognised", left, "give other verdict_data")

    def log_odds(self, model: Any, work: WorkDir) -> np.ndarray:
        """(N,) log-odds of harmful."""
        with work.progress.phase("measure verdicts", len(self._prefixes)):
            return log_odds(model, self._prefixes, self._choices, self._pad_id)

    def threshold(self, odds_N: np.ndarray) -> float:
        """The threshold with the best balanced accuracy on these rows."""
        return best_threshold(odds_N, self._positive_N)

    def figures(self, odds_N: np.ndarray) -> dict[str, Any]:
        """What the manifest keeps: AUC, shares called harmful, the best threshold and what it would give."""
        measured = decision_figures(odds_N, self._positive_N, self._groups)
        called = measured["called_positive"]
        threshold = self.threshold(odds_N)
        return {
            "auc": measured["auc"],
            "called_harmful": {"harmful": called["positive"], "harmless": called["negative"]},
            "threshold": round(threshold, 4),
            "balanced_accuracy": round(balanced_accuracy(odds_N, self._positive_N), 4),
            "balanced_accuracy_at_threshold": round(balanced_accuracy(odds_N, self._positive_N, threshold), 4),
        }
