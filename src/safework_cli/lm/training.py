"""What every training loop shares: arguments, progress, signals, checkpoints that are whole or not there, resuming."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import SchedulerType

from safework_cli.checkpoints import PREFIX, latest, read_mark, rotate, seal, step_of
from safework_cli.errors import InputError, SafeworkError
from safework_cli.lm.attention import attention_in_float32
from safework_cli.lm.models import pick_dtype
from safework_cli.progress import Phase
from safework_cli.stage import WorkDir

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def training_arguments(kind: type[Arguments], work: WorkDir, *, seed: int, save_steps: int, **settings: Any) -> Arguments:
    """Trainer arguments with the tool's ways: checkpoints in the run folder, no trackers unless asked, no bars of their own."""
    on_gpu = torch.cuda.is_available()
    defaults: dict[str, Any] = {
        "output_dir": str(work.checkpoints),
        "seed": seed,
        "data_seed": seed,
        "save_strategy": "steps",
        "save_steps": save_steps,
        "save_total_limit": None,  # transformers rotates by the files' times: Seal rotates by step
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it shows a NaN loss as the last good one
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not on_gpu,
        "bf16": on_gpu and torch.cuda.is_bf16_supported(),
        "gradient_checkpointing": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": on_gpu,
        "log_level": "error",
        "adam_beta2": 0.95,  # the official launch scripts' Adam betas (0.9, 0.95), docs/safeladder.md 1
    }
    args = kind(**(defaults | settings))
    _pin_one_device(args, work)
    return args


def _pin_one_device(args: TrainingArguments, work: WorkDir) -> None:
    """One process trains on one GPU. Where several are visible, transformers would spread each batch over them by DataParallel, which
    computes other gradients for losses that are not plain means, and which most models here do not survive."""
    if args.n_gpu > 1:
        work.progress.note(f"{args.n_gpu} GPUs are visible, one is used: {args.device} (CUDA_VISIBLE_DEVICES=… chooses another)")
        args._n_gpu = 1


OPTIMISATION = (
    "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "lr_scheduler_type",
    "weight_decay", "max_grad_norm", "gradient_checkpointing",
)  # fmt: skip


def multiplies_in_bf16(config: Any) -> bool:
    """Whether a stage's ``bf16`` asks for it; unset, whether the hardware does it."""
    return pick_dtype("auto") == torch.bfloat16 if config.bf16 is None else config.bf16


def optimisation_of(config: Any) -> dict[str, Any]:
    """The trainer arguments that a stage's settings of the same names give; ``warmup_ratio`` becomes the steps' share."""
    found = {name: getattr(config, name) for name in OPTIMISATION if hasattr(config, name)}
    if hasattr(config, "bf16"):
        found["bf16"] = multiplies_in_bf16(config)
    return found | {"warmup_steps": warmup_share(config.warmup_ratio)}


def warmup_share(ratio: float) -> float:
    """A share of the steps as transformers' ``warmup_steps``, which reads a value below 1 as a share and 1 as one step."""
    return min(ratio, math.nextafter(1.0, 0.0))


class WorkCallback(TrainerCallback):
    """Ties a trainer to its run folder: metrics and progress out, signals in."""

    def __init__(self, work: WorkDir, phase: Phase):
        self._work, self._phase = work, phase

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if logs is None or "train_runtime" in logs:
            return  # the closing summary of the whole run, which would pass for its last step
        numbers = {key: float(value) for key, value in logs.items() if isinstance(value, (int, float))}
        if numbers:
            self._work.progress.metrics(state.global_step, numbers)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._phase.advance()
        if self._work.stop.requested:
            control.should_save = True
            control.should_training_stop = True


class Seal(TrainerCallback):
    """Marks a checkpoint as whole, with the digests of its files, and deletes old ones. The last callback: others write into it too."""

    def __init__(self, work: WorkDir):
        self._work = work

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        seal(self._work.checkpoints / f"{PREFIX}{state.global_step}", self._work.fingerprint)
        rotate(self._work.path)


def latest_checkpoint(work: WorkDir) -> Path | None:
    """The newest whole checkpoint of this very run.

    Raises:
        InputError: a checkpoint of other inputs or settings lies in the folder, or every one is damaged.
    """
    return latest(work.path, work.fingerprint, work.progress.warn)


class FiniteGuard(TrainerCallback):
    """Skips an update whose gradient is not finite: the weights and the optimiser's moments stay as they were.

    Args:
        max_skipped: how many may be skipped in the whole run; one more raises, and the last checkpoint still holds good weights.
    """

    def __init__(self, trainer: Trainer, work: WorkDir, max_skipped: int):
        self._trainer, self._work, self._max = trainer, work, max_skipped

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """transformers sets its sum of losses back by taking it from itself, which leaves a NaN a NaN permanently."""
        if not torch.isfinite(self._trainer._tr_loss):
            self._trainer._tr_loss.zero_()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if not gradients or torch.isfinite(torch.stack(torch._foreach_norm(gradients, ord=1))).all():
            return
        step, before = state.global_step + 1, skipped_updates(state)
        if before == self._max:
            raise SafeworkError(
                f"the gradient of step {step} is NaN or infinite; {before} updates were skipped for that before",
                "the learning rate is too high, or the data holds what the model cannot take; no update was made of it",
                "lower learning_rate; the last checkpoint holds good weights",
            )
        self._work.progress.warn(f"step {step}: the gradient is NaN or infinite; the update is skipped ({before + 1} so far)")
        state.log_history.append({"skipped_update": True, "step": step})  # a checkpoint keeps the count
        for parameter in model.parameters():
            parameter.grad = None  # an optimiser leaves a parameter without a gradient alone, its decay and moments too


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
    """A forked checkpoint's optimiser brings the learning rate and decay of its old settings along: this run's stand in their place."""

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
        schedule.base_lrs = [args.learning_rate] * len(optimizer.param_groups)
        for group, factor in zip(optimizer.param_groups, schedule.lr_lambdas, strict=True):
            group["initial_lr"] = args.learning_rate
            group["lr"] = args.learning_rate * factor(schedule.last_epoch)
        optimizer.param_groups[0]["weight_decay"] = args.weight_decay  # transformers' second group, biases and norms, has none
        schedule._last_lr = [group["lr"] for group in optimizer.param_groups]  # what is logged


def run_training(
    trainer: Trainer,
    work: WorkDir,
    *,
    name: str = "train",
    max_skipped: int = 0,
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainerState:
    """Trains from the latest checkpoint, stops cleanly on a signal, and makes sure that every planned step was taken, and none more:
    where the checkpoint is the last step's, the trainer gets its weights, state and random numbers and trains nothing.

    Args:
        max_skipped: updates that may be skipped for a gradient that is not finite.
        callbacks: called after a step's numbers are written down.

    Raises:
        InputError: a forked checkpoint lies at or after the last step; a checkpoint is damaged, and no earlier one is whole.
        Interrupted, RunAgain: a signal came; a checkpoint was written.
        SafeworkError: fewer steps were taken than planned, or more gradients than that were not finite.
    """
    checkpoint = latest_checkpoint(work)
    planned = _planned_steps(trainer)
    forked = checkpoint is not None and read_mark(checkpoint)["forked"]
    if checkpoint is not None and forked and step_of(checkpoint) >= planned:
        raise InputError(
            f"the forked checkpoint lies at step {step_of(checkpoint)}, and this run ends at step {planned}",
            "there would be nothing to train, and what came out would be the other run's model",
            "ask for more steps",
        )
    with work.progress.phase(name, planned) as phase:
        if checkpoint is not None:
            phase.advance(step_of(checkpoint))
            work.progress.note(f"resumed at step {phase.done} of {planned}")
        if checkpoint is not None and step_of(checkpoint) >= planned:
            _take_over(trainer, checkpoint)
        else:
            _train(trainer, work, checkpoint, [WorkCallback(work, phase), FiniteGuard(trainer, work, max_skipped)], forked, callbacks)
    if trainer.state.global_step < planned:
        raise SafeworkError(
            f"training ended after {trainer.state.global_step} of {planned} steps",
            "the trainer stopped early",
            "run with --fresh; if it repeats, report it",
        )
    return trainer.state


def _train(
    trainer: Trainer,
    work: WorkDir,
    checkpoint: Path | None,
    ours: list[TrainerCallback],
    forked: bool,
    callbacks: Sequence[TrainerCallback],
) -> None:
    trainer.remove_callback(PrinterCallback)  # it prints every log as a dict
    for callback in [*ours, _FirstStepLearns(), *([_ForkedRate()] if forked else []), *callbacks, Seal(work)]:
        trainer.add_callback(callback)
    args = trainer.args
    on_cpu_in_bf16 = args.bf16 and args.device.type == "cpu"
    with work.stop.deferred(), attention_in_float32(trainer.model) if on_cpu_in_bf16 else nullcontext():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    own: dict[str, Any] = vars(trainer.model)
    if own.pop("_original_forward", None):
        del own["forward"]  # accelerate's autocast, which would stay: what samples or judges from here on is the model as it is saved


def _take_over(trainer: Trainer, checkpoint: Path) -> None:
    """Puts a trainer where it stood when the last step's checkpoint was written. ``trainer.train`` would train another step first."""
    trainer._load_from_checkpoint(str(checkpoint))
    trainer.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    trainer._load_rng_state(str(checkpoint))
    assert trainer.model is not None
    trainer.model.train()  # as the loop leaves it


def _planned_steps(trainer: Trainer) -> int:
    args = trainer.args
    if args.max_steps > 0:
        return args.max_steps
    batches = math.ceil(len(trainer.get_train_dataloader()))
    return math.ceil(math.ceil(batches / args.gradient_accumulation_steps) * args.num_train_epochs)


class StepSampler(Sampler[int]):
    """Row indices such that each optimiser step sees a random sample, cut into forward passes of like length.

    Sorting by length goes no further than a step: over more rows it puts rows of one kind together (refusals are longer than plain
    answers), and a model that sees them in turns learns to give one kind of reply, not to choose between them. The order depends on
    the seed and the epoch's number alone, so a resumed run sees what an uninterrupted one sees.

    Args:
        lengths: of each row, in tokens.
        per_step: rows of an optimiser step, over all its forward passes and processes.
        seed: of the order.
        epoch: the number of the epoch that begins.
    """

    def __init__(self, lengths: Sequence[int], per_step: int, seed: int, epoch: Callable[[], int]):
        self.lengths, self.per_step, self.seed, self.epoch = lengths, per_step, seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch())
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        for start in range(0, len(order), self.per_step):
            yield from sorted(order[start : start + self.per_step], key=lambda row: -self.lengths[row])


def step_sampler(trainer: Trainer, lengths: Sequence[int]) -> StepSampler:
    """The sampler of a trainer whose rows have these lengths, in tokens."""
    args = trainer.args
    per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    steps_per_epoch = math.ceil(len(lengths) / per_step)
    return StepSampler(lengths, per_step, args.seed, lambda: trainer.state.global_step // steps_per_epoch)
