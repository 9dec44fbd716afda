"""Evaluation during training: replies to held-out prompts, judged; the best step's checkpoint kept; early stopping."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from safework_cli.core.checkpoints import PREFIX, damage, is_complete
from safework_cli.core.errors import InputError, Interrupted, RunAgain, SafeworkError
from safework_cli.core.stage import Inputs, Outcome, WorkDir
from safework_cli.data.row import Row
from safework_cli.engines.protocol import Completion
from safework_cli.models.rendering import TemplateError
from safework_cli.training.config import EvaluationConfig
from safework_cli.training.group import spread
from safework_cli.training.heldout import (
    LOGGED,
    MEAN,
    MOST_FAILED,
    best_step,
    curve_of,
    deciding_metric,
    evaluations_without_gain,
    held_out_rows,
    is_due,
    is_rule,
    refuse_idle_judges,
    spread_over_tasks,
    unreliable_steps,
)
from safework_cli.training.strategy import leave_weights_at
from safework_cli.verifiers.contract import Exchange, Verifier, judged
from safework_cli.verifiers.load import load_verifier

Sampler = Callable[[Sequence[Row]], list[Completion]]
"""Samples one reply for each row from the model in training, as it is now."""
Measurer = Callable[[Sequence[Row], Sequence[Completion]], Mapping[str, float]]
"""What a stage measures of sampled replies: ``EvaluationConfig.measured`` beyond what every stage does, or nothing where it cannot."""


class Evaluation(TrainerCallback):
    """Evaluates every ``eval_steps`` steps and after the last one.

    Numbers are logged as ``eval/NAME``. A step that is the best so far is saved as a checkpoint, which is kept until a better one is.
    Nothing but the trainer's log is remembered, so a run that is killed and resumed decides as one that is not.

    A signal to stop does not wait for an evaluation, which can take longer than a scheduler does: the step's checkpoint is written without
    it, and the resumed run evaluates that step first. Two evaluations are finished: the last step's, since nothing is trained after it, and
    any that may end the run (``early_stopping_patience``). With several processes, one that has begun is finished too.

    Args:
        rows: whose prompts are used.
        judges: by name.
        refs: references of judges and data, for the manifest.
        sample: see ``Sampler``.
        measure: see ``Measurer``.

    Raises:
        ConfigError: see ``deciding_metric``.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        work: WorkDir,
        rows: Sequence[Row],
        judges: Mapping[str, Verifier],
        refs: Mapping[str, str],
        sample: Sampler,
        measure: Measurer | None = None,
    ):
        self._config, self._work, self._rows, self._judges, self._refs, self._sample = config, work, rows, judges, refs, sample
        self._measure = measure
        self.metric, self.greater = deciding_metric(config, judges)
        self._trainer: Trainer | None = None
        self._forked = False

    def attach(self, trainer: Trainer, *, forked: bool) -> None:
        """Names the trainer whose model is evaluated. A forked run does not take over the evaluations of the other run."""
        self._trainer, self._forked = trainer, forked

    # ------------------------------------------------------------ as a callback

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._forked:
            state.log_history[:] = [entry for entry in state.log_history if not curve_of([entry])]
        curve = curve_of(state.log_history)
        left_out = state.global_step and self._due(state) and state.global_step not in dict(curve)
        if not curve or (left_out and not self._forked):
            with self._interruptible(state):
                self._evaluate(control)
            self._remember_best(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not self._due(state):
            return
        if control.should_training_stop and self._may_wait(state):  # a signal came: all processes have agreed on it
            return
        try:
            with self._interruptible(state):
                self._evaluate(control)
        except (Interrupted, RunAgain):  # raised again when the checkpoint is written
            control.should_save = control.should_training_stop = True
            return
        if self._remember_best(state):
            control.should_save = True
        if self.stopped(state):
            control.should_save = control.should_training_stop = True

    def _due(self, state: TrainerState) -> bool:
        return is_due(state.global_step, self._config.eval_steps or 1, state.max_steps)

    def _may_wait(self, state: TrainerState) -> bool:
        return state.global_step < state.max_steps and self._config.early_stopping_patience is None

    def _interruptible(self, state: TrainerState) -> AbstractContextManager[None]:
        """Inside, a signal raises Interrupted or RunAgain where the evaluation may wait for the resumed run."""
        return self._work.stop.at_once() if self._may_wait(state) and self._work.world.size == 1 else nullcontext()

    def _remember_best(self, state: TrainerState) -> bool:
        """Notes the best step in the trainer's state; whether it is the current one."""
        best = self.best(state)
        if best is None or best[0] != state.global_step:
            return False
        state.best_global_step, state.best_metric = best
        return True

    def _evaluate(self, control: TrainerControl) -> None:
        assert self._trainer is not None
        numbers = self.measure()
        logging = control.should_log
        # past TRL's own log, which would take the training numbers of this step along
        Trainer.log(self._trainer, {f"{LOGGED}{name}": value for name, value in numbers.items()})
        control.should_log = logging  # the trainer's own numbers of this step are still to be logged

    def measure(self) -> dict[str, float]:
        """Samples and judges one reply for each prompt. The random numbers of the training are left as they are.

        Raises:
            SafeworkError: a judge could score none of the replies, or what decides could not be measured.
        """
        with self._work.progress.phase("evaluate", len(self._rows)), _same_random_numbers():
            world = self._work.world
            completions = spread(world, self._rows, self._sample)
            numbers = {
                "stop_rate": fmean(completion.finish_reason == "stop" for completion in completions),
                "mean_tokens": fmean(len(completion.token_ids) for completion in completions),
            }
            numbers |= self._measure(self._rows, completions) if self._measure else {}
            exchanges = [Exchange.of_task(row, completion.text) for row, completion in zip(self._rows, completions, strict=True)]
            for name, judge in self._judges.items():
                tasks = self._config.eval_judge_tasks.get(name)
                asked = [e for row, e in zip(self._rows, exchanges, strict=True) if tasks is None or row.task in tasks]
                verdicts = spread(world, asked, partial(judged, judge))
                scores = [verdict.score for verdict in verdicts if verdict.score is not None]
                if not scores:
                    raise SafeworkError(
                        f"eval_verifiers.{name} could score none of the {len(verdicts)} replies of an evaluation",
                        str(verdicts[0].error),
                        "choose eval_data and eval_tasks that it can judge, or another verifier",
                    )
                numbers[name] = fmean(scores)
                if len(scores) < len(verdicts):
                    numbers[f"{name}/failed"] = len(verdicts) - len(scores)
                    if not is_rule(self._refs[name]):
                        numbers[f"{name}/failed_share"] = 1 - len(scores) / len(verdicts)
            if len(parts := [*self._judges, *self._config.in_mean]) > 1 and numbers.keys() >= set(parts):
                numbers[MEAN] = fmean(numbers[name] for name in parts)
                if failed := max(numbers.get(f"{name}/failed", 0) for name in parts):
                    numbers[f"{MEAN}/failed"] = failed
                if share := max(numbers.get(f"{name}/failed_share", 0.0) for name in parts):
                    numbers[f"{MEAN}/failed_share"] = share
        if self.metric not in numbers:
            raise SafeworkError(
                f"{self.metric} could not be measured on the {len(self._rows)} replies of an evaluation",
                "none of their answers could be compared with a gold answer",
                "give eval_data with gold answers and meta.answer_type, or another metric_for_best_model",
            )
        return numbers

    # ------------------------------------------------------------ what the evaluations say

    def best(self, state: TrainerState) -> tuple[int, float] | None:
        """The best evaluated step so far, and its value."""
        return best_step(curve_of(state.log_history), self.metric, self.greater)

    def stopped(self, state: TrainerState) -> bool:
        """Whether patience has run out: the run ends here."""
        patience, threshold = self._config.early_stopping_patience, self._config.early_stopping_threshold
        return patience is not None and (
            evaluations_without_gain(curve_of(state.log_history), self.metric, self.greater, threshold) >= patience
        )

    def protected(self, kept: Sequence[Path]) -> set[int]:
        """Steps whose checkpoints must be kept: the best ones by what the kept checkpoints say. A run that falls back on the older one,
        where the newest is damaged, needs the step that was the best then."""
        found: set[int] = set()
        for checkpoint in kept:
            with suppress(OSError, ValueError, TypeError, KeyError):  # a damaged one: it is not resumed from
                if best := self.best(TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))):
                    found.add(best[0])
        return found

    def check_best(self, state: TrainerState) -> None:
        """Raises InputError where the checkpoint of a resumed run's best step is missing or damaged."""
        if (best := self.best(state)) is None or not self._config.load_best_model_at_end:
            return
        checkpoint = self._work.checkpoints / f"{PREFIX}{best[0]}"
        why = damage(checkpoint) if is_complete(checkpoint) else "it is missing or incomplete"
        if why:
            raise InputError(f"the checkpoint of the best step, {checkpoint}, cannot be used", why, "run again with --fresh")

    def take_best(self, trainer: Trainer) -> None:
        """Loads the weights of the best step into the trainer's model, where the settings say so."""
        best = self.best(trainer.state)
        if best is None or not self._config.load_best_model_at_end or best[0] == trainer.state.global_step:
            return
        self.check_best(trainer.state)
        checkpoint = self._work.checkpoints / f"{PREFIX}{best[0]}"
        if self._work.world.size > 1:
            leave_weights_at(trainer, checkpoint)
        else:
            trainer._load_from_checkpoint(str(checkpoint))
        self._work.progress.note(f"the weights of step {best[0]} are taken: {self.metric} {best[1]:.4g} was the best there")

    def record(self, outcome: Outcome, state: TrainerState) -> None:
        """Writes what was measured into a run's outcome: numbers for the manifest, and sentences for its notes."""
        curve = curve_of(state.log_history)
        best = best_step(curve, self.metric, self.greater)
        assert best is not None, "the last step is always evaluated"
        start, last = curve[0][1][self.metric], curve[-1][1][self.metric]
        saved = best[0] if self._config.load_best_model_at_end else state.global_step
        early = self.stopped(state) and state.global_step < state.max_steps
        outcome.metrics["evaluation"] = {
            "metric": self.metric,
            "greater_is_better": self.greater,
            "start": round(start, 4),
            "best": round(best[1], 4),
            "best_step": best[0],
            "last": round(last, 4),
            "last_step": curve[-1][0],
            "saved_step": saved,
            "stopped_early": early,
            "evaluations": len(curve),
            "prompts": len(self._rows),
            "data": self._refs["data"],
            "judges": {name: self._refs[name] for name in self._judges},
            "best_numbers": {name: round(value, 4) for name, value in dict(curve)[best[0]].items()},
        }
        if early:
            count = evaluations_without_gain(curve, self.metric, self.greater, self._config.early_stopping_threshold)
            what = f"{count} evaluations in a row did not improve {self.metric} (early_stopping_patience)"
            outcome.notes.append(f"training ended at step {state.global_step} of {state.max_steps}: {what}")
        outcome.notes.append(
            f"the saved weights are those of step {saved}; by {self.metric} ({self._refs.get(self.metric, 'of the replies')}), "
            f"step {best[0]} is the best: {best[1]:.4g} (start {start:.4g}, step {curve[-1][0]} {last:.4g})"
        )
        if failed := dict(curve)[best[0]].get(f"{self.metric}/failed"):
            replies = f"{failed:g} of the {len(self._rows)} replies of step {best[0]}"
            outcome.notes.append(f"{self.metric} could not score {replies}: its value there is the mean of the others")
            self._work.progress.warn(outcome.notes[-1])
        if unreliable := unreliable_steps(curve, self.metric):
            which = f"step{'s' if len(unreliable) > 1 else ''} {', '.join(map(str, unreliable))}"
            why = f"{self.metric} could not score more than {MOST_FAILED:.0%} of the replies there"
            if len(unreliable) < len(curve) - 1:
                outcome.notes.append(f"{which} cannot be the best: {why}")
            else:
                outcome.not_measured(f"the best step was chosen by a part of the replies, at each step another: {why} ({which})")
            self._work.progress.warn(outcome.notes[-1])
        if not (best[1] > start if self.greater else best[1] < start):
            outcome.notes.append(f"no evaluated step is better than the starting model by {self.metric} ({start:.4g})")
            self._work.progress.warn(outcome.notes[-1])


def evaluation_during(
    config: EvaluationConfig,
    inputs: Inputs,
    work: WorkDir,
    *,
    length_of: Callable[[Row], float],
    longest: float,
    sample: Sampler,
    measure: Measurer | None = None,
    trust_remote_code: bool = False,
) -> Evaluation | None:
    """The evaluation that a run's settings ask for; None where they ask for none.

    Args:
        length_of: tokens of a row's prompt; raises TemplateError where it cannot be asked.
        longest: tokens of a prompt at most, so that a whole reply fits.

    Raises:
        InputError: none of the held-out prompts can be used.
    """
    if config.eval_steps is None:
        return None
    rows = held_out_rows(config, inputs)
    fitting = [row for row in rows if _fits(row, length_of, longest)]
    if not fitting:
        raise InputError(
            f"none of the {len(rows)} held-out prompts can be used",
            f"{config.evaluation_limit}={config.evaluation_tokens} leaves {longest:g} tokens, and they are longer or cannot be asked",
            f"lower {config.evaluation_limit}, or give other eval_data",
        )
    if len(fitting) < len(rows):
        work.progress.note(f"{len(rows) - len(fitting)} of {len(rows)} held-out prompts are too long or cannot be asked, and are left out")
    chosen = spread_over_tasks(fitting, config.eval_samples)
    refuse_idle_judges(config, chosen)
    artifacts = inputs.many("eval_verifiers")
    judges = {name: load_verifier(artifact, trust_remote_code=trust_remote_code) for name, artifact in artifacts.items()}
    refs = {name: artifact.ref for name, artifact in artifacts.items()}
    refs["data"] = (inputs.maybe("eval_data") or inputs.one("data")).ref
    return Evaluation(config, work, chosen, judges, refs, sample, measure)


def _fits(row: Row, length_of: Callable[[Row], float], longest: float) -> bool:
    try:
        return length_of(row) <= longest
    except TemplateError:
        return False


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield
