"""How well the model recognises harmful prompts by its verdict: before training, after it, and where the threshold belongs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from safework_cli.core.errors import InputError
from safework_cli.core.stage import WorkDir
from safework_cli.data.row import Row
from safework_cli.data.verdict import Mark, Words
from safework_cli.models.verdict import Choice, log_odds
from safework_cli.models.vision import base_of
from safework_cli.statistics.decision import balanced_accuracy, decision_figures, even_threshold
from safework_cli.training.group import spread
from safework_sft.encode import encode_rows


class Decision:
    """Measures a model's verdicts on held-out rows.

    Args:
        pairs: the rows with their marks; those that are too long or that the chat template refuses are left out.
        words: what the words mean.
        choices: language → its words as tokens.
        ref: of the data.
        bf16: multiply in bfloat16, as the training does.
        harmless_weight: how many times worse it is to call a harmless prompt harmful than the reverse; the threshold follows from it.

    Attributes:
        positive_N: whether each row is harmful.
        dropped: reason → ids of the rows that were left out for it.

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
        *,
        bf16: bool,
        harmless_weight: float = 1.0,
    ):
        marks = {row.id: mark for row, mark in pairs}
        encoded = encode_rows([row for row, _ in pairs], tokenizer, stop_ids, longest, marks=marks)
        self.dropped = encoded.dropped
        self.ref, self._bf16, self._pad_id = ref, bf16, int(tokenizer.pad_token_id or 0)
        self._harmless_weight = harmless_weight
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
            else:
                self.dropped.setdefault("no word of its language is trained on", []).append(row.id)
        self.positive_N = np.array(positive, dtype=bool)
        if self.positive_N.all() or not self.positive_N.any():
            left = f"{len(positive)} of {len(pairs)} rows can be encoded, all of one class"
            raise InputError(f"{ref} cannot show how well harmful prompts are recognised", left, "give other verdict_data")

    def log_odds(self, model: Any, work: WorkDir) -> np.ndarray:
        """(N,) log-odds of harmful."""
        autocast = torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=self._bf16)
        with work.progress.phase("measure verdicts", len(self._prefixes)), autocast:
            return np.array(spread(work.world, range(len(self._prefixes)), partial(self._log_odds, model)))

    def _log_odds(self, model: Any, places: Sequence[int]) -> list[float]:
        own: np.ndarray = log_odds(model, [self._prefixes[i] for i in places], [self._choices[i] for i in places], self._pad_id)
        return own.tolist()

    def effect(self, model: Any, inputs_of: Callable[[Any], AbstractContextManager[list[torch.Tensor]]]) -> torch.Tensor:
        """(D,) mean over the rows of u ⊙ ∂(log-odds)/∂u, u being what the output embedding is given before the deciding token.

        Args:
            inputs_of: opens a context that collects u of each forward pass.
        """
        weight_VD = base_of(model).get_output_embeddings().weight.float()
        total_D = torch.zeros(weight_VD.shape[1], device=weight_VD.device)
        for ids, choice in zip(self._prefixes, self._choices, strict=True):
            with inputs_of(model) as seen:
                logits_V = model(input_ids=torch.tensor([ids], device=base_of(model).device), use_cache=False).logits[0, -1].float()
            positive, negative = [*choice.positive], [*choice.negative]
            gradient_D = logits_V[positive].softmax(0) @ weight_VD[positive] - logits_V[negative].softmax(0) @ weight_VD[negative]
            total_D += seen[0][0, -1].float() * gradient_D
        return (total_D / len(self._prefixes)).cpu()

    def threshold(self, odds_N: np.ndarray) -> float:
        """The threshold at which both classes are equally probable on these rows, or that of least cost."""
        return even_threshold(odds_N, self.positive_N, self._harmless_weight)

    def figures(self, odds_N: np.ndarray) -> dict[str, Any]:
        """What the manifest keeps: AUC, shares called harmful, and the threshold that suits these rows, with the balanced accuracy that it
        gives on them: on other rows it gives less."""
        measured = decision_figures(odds_N, self.positive_N, self._groups)
        called = measured["called_positive"]
        threshold = self.threshold(odds_N)
        return {
            "auc": measured["auc"],
            "called_harmful": {"harmful": called["positive"], "harmless": called["negative"]},
            "threshold": round(threshold, 4),
            "balanced_accuracy": round(balanced_accuracy(odds_N, self.positive_N), 4),
            "balanced_accuracy_at_own_threshold": round(balanced_accuracy(odds_N, self.positive_N, threshold), 4),
        }
