"""Trainer callbacks: logging, checkpoints, stop requests, NaN guards and learning rates of forked runs."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SchedulerType

from safework_cli.core.checkpoints import PREFIX, newest, rotate, seal
from safework_cli.core.errors import GateFailed
from safework_cli.core.heap import return_freed_memory
from safework_cli.core.plan.device import machine_memory
from safework_cli.core.progress import Phase
from safework_cli.core.stage import WorkDir
from safework_cli.core.system import resident_bytes
from safework_cli.training.evaluation import Evaluation
from safework_cli.training.group import any_of, barrier
from safework_cli.training.heldout import LOGGED


class WorkCallback(TrainerCallback):
    """Ties a trainer to its run folder: metrics and progress out, signals in."""

    def __init__(self, trainer: Trainer, work: WorkDir, phase: Phase):
        self._trainer, self._work, self._phase = trainer, work, phase

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if logs is None or "train_runtime" in logs:
            return  # the closing summary of the whole run, which would pass for its last step
        numbers = {_shown_name(key): float(value) for key, value in logs.items() if isinstance(value, (int, float))}
        if numbers:
            self._work.progress.metrics(state.global_step, numbers)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._phase.advance()
        stop, world = self._work.stop, self._work.world
        if any_of(world, stop.requested is not None, self._trainer.accelerator.device):  # all processes, at the same step
            stop.requested = stop.requested or signal.SIGTERM
            control.should_save = True
            control.should_training_stop = True


def _shown_name(key: str) -> str:
    """``eval_safety`` in the trainer's log is ``eval/safety`` in ``metrics.jsonl``, as trackers show it."""
    return f"eval/{key.removeprefix(LOGGED)}" if key.startswith(LOGGED) else key


class Seal(TrainerCallback):
    """Marks a checkpoint as complete, with the digests of its files, and deletes old ones, but for the best. The last callback: others
    write into the checkpoint too, and so do other processes."""

    def __init__(self, work: WorkDir, evaluation: Evaluation | None = None):
        self._work, self._evaluation = work, evaluation

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        barrier(self._work.world)
        if self._work.world.first:
            seal(self._work.checkpoints / f"{PREFIX}{state.global_step}", self._work.fingerprint)
            rotate(self._work.path, protected=self._evaluation.protected(newest(self._work.path)) if self._evaluation is not None else ())
        barrier(self._work.world)


GROWTH, SPARE = 1.2, 0.5
"""By how much a process has grown, and what share of the machine's memory it has, before what it has kept is returned."""


class ReturnGrownMemory(TrainerCallback):
    """Keeps the memory of a process that trains on a CPU near what its updates need: passes differ in size, so buffers that earlier ones
    freed do not fit, and kept ones would add up. Nothing is returned while the process has less than half of its share of the machine's
    memory, since mapping pages again takes time. Nor is it where the system does not say what is resident.

    Args:
        processes: how many share the machine.
    """

    def __init__(self, processes: int = 1):
        self._kept = SPARE * (machine_memory() or 0) / processes

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        return_freed_memory()  # of loading: weights that were divided since would count as the process's own
        self._most, self._returned = 0, True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        now = resident_bytes() or 0
        if self._returned:  # what an update takes that begins with nothing kept
            self._most, self._returned = max(self._most, now), False
        elif now > max(GROWTH * self._most, self._kept):
            return_freed_memory()
            self._returned = True


class FiniteGuard(TrainerCallback):
    """Skips an update whose gradient is not finite: the weights and the optimiser's moments stay as they were. DeepSpeed has updated when
    this is called: it skips such updates itself, and they are counted here.

    Args:
        max_skipped: how many may be skipped in the whole run; one more raises, and the last checkpoint still holds good weights.
    """

    def __init__(self, trainer: Trainer, work: WorkDir, max_skipped: int):
        self._trainer, self._work, self._max = trainer, work, max_skipped
        self._skipped_by_engine = 0

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """transformers sets its sum of losses back by taking it from itself, which leaves a NaN a NaN permanently."""
        if not torch.isfinite(self._trainer._tr_loss):
            self._trainer._tr_loss.zero_()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        engine = self._trainer.model_wrapped
        by_engine = hasattr(engine, "skipped_steps")
        finite = self._finite_in(engine) if by_engine else _finite(model)
        if not any_of(self._work.world, not finite, self._trainer.accelerator.device):
            return
        step, before = state.global_step + 1, skipped_updates(state)
        if before == self._max:
            raise GateFailed(
                f"the gradient of step {step} is NaN or infinite; {before} updates were skipped for that before",
                "the learning rate is too high, or the data holds what the model cannot take; no update was made of it",
                "lower learning_rate; the last checkpoint holds good weights",
            )
        self._work.progress.warn(f"step {step}: the gradient is NaN or infinite; the update is skipped ({before + 1} so far)")
        state.log_history.append({"skipped_update": True, "step": step})  # a checkpoint keeps the count
        for parameter in () if by_engine else model.parameters():
            parameter.grad = None  # an optimiser leaves a parameter without a gradient alone, its decay and moments too

    def _finite_in(self, engine: Any) -> bool:
        """Whether DeepSpeed's last update was made.

        Raises:
            GateFailed: it was made of a gradient that is not finite.
        """
        before, self._skipped_by_engine = self._skipped_by_engine, int(engine.skipped_steps)
        if self._skipped_by_engine > before:
            return False
        norm = engine.get_global_grad_norm()
        if norm is not None and not math.isfinite(float(norm)):
            raise GateFailed(
                "the gradient of the last step is NaN or infinite, and DeepSpeed did not skip the update",
                "the weights are NaN or infinite since",
                "lower learning_rate; the last checkpoint holds good weights",
            )
        return True


def _finite(model: Any) -> bool:
    """Whether no gradient of a model is NaN or infinite."""
    gradients = [_local(p.grad) for p in model.parameters() if p.grad is not None]
    return not gradients or bool(torch.isfinite(torch.stack(torch._foreach_norm(gradients, ord=1))).all())


def _local(gradient: torch.Tensor) -> torch.Tensor:
    """A gradient, or this process's part of it under FSDP2."""
    local = getattr(gradient, "to_local", None)
    part: torch.Tensor = gradient if local is None else local()
    return part


def skipped_updates(state: TrainerState) -> int:
    """How many updates of a run were skipped for their gradient."""
    return sum("skipped_update" in entry for entry in state.log_history)


class _FirstStepLearns(TrainerCallback):
    """Lets warm-up begin above 0: transformers' first step has rate 0, so a run of one step learnt nothing and looked as if it had."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        **_: Any,
    ) -> None:
        steps = args.get_warmup_steps(state.max_steps)
        if not steps or args.lr_scheduler_type == SchedulerType.CONSTANT:
            return
        schedule = getattr(lr_scheduler, "scheduler", lr_scheduler)
        schedule.lr_lambdas = [partial(warm_up, steps=steps, after=factor) for factor in schedule.lr_lambdas]
        for group, base, factor in zip(optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
            group["lr"] = base * factor(schedule.last_epoch)
        schedule._last_lr = [group["lr"] for group in optimizer.param_groups]  # what is logged


def warm_up(step: int, *, steps: int, after: Callable[[int], float]) -> float:
    """The learning rate's factor at a step, from 0: 1/(steps+1), 2/(steps+1), … and from ``steps`` on what ``after`` says."""
    return (step + 1) / (steps + 1) if step < steps else after(step)


class _ForkedRate(TrainerCallback):
    """A forked checkpoint's optimiser brings the learning rate and decay of its old settings along: this run's replace them, for each group
    as the trainer makes it (heads may have a rate of their own, biases and norms have no decay)."""

    def __init__(self, trainer: Trainer):
        self._fresh: list[tuple[float, float]] = []
        """(learning rate, decay) of each group, before the checkpoint is loaded."""
        create: Callable[..., Any] = trainer.create_optimizer

        def remembered(*args: Any, **kwargs: Any) -> Any:
            optimizer = create(*args, **kwargs)
            self._fresh = self._fresh or [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
            return optimizer

        vars(trainer)["create_optimizer"] = remembered

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        **_: Any,
    ) -> None:
        schedule = getattr(lr_scheduler, "scheduler", lr_scheduler)
        schedule.base_lrs = [rate for rate, _ in self._fresh]
        for group, (rate, decay), factor in zip(optimizer.param_groups, self._fresh, schedule.lr_lambdas, strict=True):
            group["initial_lr"], group["weight_decay"] = rate, decay
            group["lr"] = rate * factor(schedule.last_epoch)
        schedule._last_lr = [group["lr"] for group in optimizer.param_groups]  # what is logged
