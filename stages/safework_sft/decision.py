"""How well the model recognises harmful prompts by its verdict: before training, after it, and where the threshold belongs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from safework_cli.core.errors import InputError
from safework_cli.core.stage import WorkDir
from safework_cli.data.row import Row
from safework_cli.data.verdict import Mark, Words
from safework_cli.models.verdict import Choice, log_odds
from safework_cli.statistics.decision import balanced_accuracy, decision_figures, even_threshold
from safework_cli.training.group import spread
from safework_cli.training.strategy import whole_policy
from safework_sft.encode import encode_rows

if TYPE_CHECKING:
    from safework_sft.trainer import SupervisedTrainer

CALIBRATED_AT = {0.8: 0.6, 0.9: 1.0}
"""Share of the steps after which the threshold is measured → share of it that is added to the loss term. In two runs on SmolLM2 the
log-odds of held-out prompts moved by one and a half times the first offset, and by half of the second, when little training is left."""
THRESHOLD = "verdict_threshold"
"""The threshold's name in the trainer's log."""


class Decision:
    """Measures a model's verdicts on held-out rows.

    Args:
        pairs: the rows with their marks; those that are too long or that the chat template refuses are left out.
        words: what the words mean.
        choices: language → its words as tokens.
        ref: of the data.
        bf16: multiply in bfloat16, as the training does.

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
    ):
        marks = {row.id: mark for row, mark in pairs}
        encoded = encode_rows([row for row, _ in pairs], tokenizer, stop_ids, longest, marks=marks)
        self.ref, self._bf16, self._pad_id = ref, bf16, int(tokenizer.pad_token_id or 0)
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
        autocast = torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=self._bf16)
        with work.progress.phase("measure verdicts", len(self._prefixes)), autocast:
            return np.array(spread(work.world, range(len(self._prefixes)), partial(self._log_odds, model)))

    def _log_odds(self, model: Any, places: Sequence[int]) -> list[float]:
        own: np.ndarray = log_odds(model, [self._prefixes[i] for i in places], [self._choices[i] for i in places], self._pad_id)
        return own.tolist()

    def threshold(self, odds_N: np.ndarray) -> float:
        """The threshold at which both classes are equally probable on these rows."""
        return even_threshold(odds_N, self._positive_N)

    def figures(self, odds_N: np.ndarray) -> dict[str, Any]:
        """What the manifest keeps: AUC, shares called harmful, and the threshold that suits these rows, with the balanced accuracy that it
        gives on them: on other rows it gives less."""
        measured = decision_figures(odds_N, self._positive_N, self._groups)
        called = measured["called_positive"]
        threshold = self.threshold(odds_N)
        return {
            "auc": measured["auc"],
            "called_harmful": {"harmful": called["positive"], "harmless": called["negative"]},
            "threshold": round(threshold, 4),
            "balanced_accuracy": round(balanced_accuracy(odds_N, self._positive_N), 4),
            "balanced_accuracy_at_own_threshold": round(balanced_accuracy(odds_N, self._positive_N, threshold), 4),
        }


class Calibration(TrainerCallback):
    """Moves the decision's threshold to 0: what is measured is added to the log-odds of the verdict's loss term from then on, so that the
    model learns log-odds that are lower by it.

    Nothing but the trainer's log is remembered, so a resumed run trains as an uninterrupted one.
    """

    def __init__(self, trainer: SupervisedTrainer, decision: Decision, work: WorkDir):
        self._trainer, self._decision, self._work = trainer, decision, work

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._trainer.set_offset(offset(state))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step not in calibration_steps(state.max_steps):
            return
        with whole_policy(self._trainer) as model:
            threshold = self._decision.threshold(self._decision.log_odds(model, self._work))
        logging = control.should_log
        Trainer.log(self._trainer, {THRESHOLD: threshold})  # past TRL's own log, which would take the training numbers of this step along
        control.should_log = logging
        self._trainer.set_offset(offset(state))


def calibration_steps(steps: int) -> dict[int, float]:
    """The steps of a run after which the threshold is measured, with the share of it that is added."""
    return {step: added for share, added in CALIBRATED_AT.items() if (step := int(share * steps)) not in (0, steps)}


def offset(state: TrainerState) -> float:
    """What is added to the log-odds in the loss, from all that was measured."""
    added = calibration_steps(state.max_steps)
    return sum(added.get(one["step"], 1.0) * one["threshold"] for one in thresholds(state))


def thresholds(state: TrainerState) -> list[dict[str, Any]]:
    """Every measured threshold of a run, with its step."""
    return [{"step": entry["step"], "threshold": entry[THRESHOLD]} for entry in state.log_history if THRESHOLD in entry]
