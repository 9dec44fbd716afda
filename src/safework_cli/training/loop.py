"""What every training loop shares: arguments, progress, signals, checkpoints that are whole or not there, resuming."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from safework_cli.core.checkpoints import latest, read_mark, step_of
from safework_cli.core.errors import InputError, SafeworkError
from safework_cli.core.settings import LaunchSettings
from safework_cli.core.stage import WorkDir
from safework_cli.core.system_errors import is_out_of_memory
from safework_cli.models.attention import attention_in_float32
from safework_cli.models.load import Place, pick_device, pick_dtype
from safework_cli.training.callbacks import FiniteGuard, ReturnGrownMemory, Seal, WorkCallback, _FirstStepLearns, _ForkedRate
from safework_cli.training.config import SupervisedConfig
from safework_cli.training.evaluation import Evaluation
from safework_cli.training.group import gathered
from safework_cli.training.memory import out_of_memory
from safework_cli.training.planned import BetweenUpdates, CompareWithPlan
from safework_cli.training.strategy import StrategyGuard, head_gathered, leave_weights_at, strategy_arguments
from safework_cli.training.tracking import tracked, tracking_arguments

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def training_arguments(
    kind: type[Arguments],
    work: WorkDir,
    *,
    seed: int,
    save_steps: int,
    tracking: Sequence[str] = (),
    launch: LaunchSettings | None = None,
    place: Place = "device",
    **settings: Any,
) -> Arguments:
    """Trainer arguments with the tool's defaults: checkpoints in the run folder, no progress bars, and trackers only where asked for.

    Args:
        place: where the model was read to.
    """
    on_gpu = pick_device().type != "cpu"
    defaults: dict[str, Any] = {
        "output_dir": str(work.checkpoints),
        "seed": seed,
        "data_seed": seed,
        "save_strategy": "steps",
        "save_steps": save_steps,
        "save_total_limit": None,  # transformers rotates by the files' times: Seal rotates by step
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it shows a NaN loss as the last good one
        **tracking_arguments(tracking, work),
        "disable_tqdm": True,
        "use_cpu": not on_gpu,
        "bf16": on_gpu and pick_dtype("auto") == torch.bfloat16,
        "gradient_checkpointing": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "log_level": "error",
        "adam_beta2": 0.95,  # the official launch scripts' Adam betas (0.9, 0.95), docs/safeladder.md 1
    }
    args = kind(**(defaults | strategy_arguments(launch or LaunchSettings(), work, place) | settings))
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


def supervised_arguments(kind: type[Arguments], config: SupervisedConfig, work: WorkDir, **settings: Any) -> Arguments:
    """Trainer arguments of a stage that learns from given answers: its optimisation settings and trackers, with ``settings`` added."""
    given: dict[str, Any] = {"seed": config.seed, "save_steps": config.save_steps, "tracking": config.tracking, "launch": config.launch}
    return training_arguments(kind, work, **(given | optimisation_of(config) | settings))


def warmup_share(ratio: float) -> float:
    """A share of the steps as transformers' ``warmup_steps``, which reads a value below 1 as a share and 1 as one step."""
    return min(ratio, math.nextafter(1.0, 0.0))


def latest_checkpoint(work: WorkDir) -> Path | None:
    """The newest whole checkpoint of this very run: with several processes, the one that the first finds. Each by itself, they would rename
    damaged ones away from each other, and one that fails to read a file would resume at another step.

    Raises:
        InputError: a checkpoint of other inputs or settings lies in the folder, or every one is damaged.
    """
    answer: list[Path | InputError | None] = []
    if work.world.first:
        try:
            answer.append(latest(work.path, work.fingerprint, work.progress.warn))
        except InputError as error:
            answer.append(error)
    (found,) = gathered(work.world, answer)
    if isinstance(found, InputError):
        raise found
    return found


def run_training(
    trainer: Trainer,
    work: WorkDir,
    *,
    name: str = "train",
    launch: LaunchSettings | None = None,
    max_skipped: int = 0,
    callbacks: Sequence[TrainerCallback] = (),
    evaluation: Evaluation | None = None,
    cycle: int = 1,
) -> TrainerState:
    """Trains from the latest checkpoint, stops cleanly on a signal, and makes sure that every planned step was taken, and none more:
    where the checkpoint is the last step's, the trainer gets its weights, state and random numbers and trains nothing. With an
    evaluation, the run may end early, and the trainer's model has the best step's weights afterwards.

    Args:
        launch: how many processes are to train, and by which strategy; one, where it is left out.
        max_skipped: updates that may be skipped for a gradient that is not finite.
        callbacks: called after a step's numbers are written down.
        evaluation: of the model in training, on held-out prompts.
        cycle: updates that are measured together against the plan: those of a rollout.

    Raises:
        InputError: a forked checkpoint is at or after the last step; a checkpoint is damaged, and no earlier one is whole.
        Interrupted, RunAgain: a signal came; a checkpoint was written.
        SafeworkError: fewer steps were taken than planned, or more gradients than that were not finite.
    """
    checkpoint = latest_checkpoint(work)
    planned = _planned_steps(trainer)
    forked = checkpoint is not None and read_mark(checkpoint)["forked"]
    if checkpoint is not None and forked and step_of(checkpoint) >= planned:
        raise InputError(
            f"the forked checkpoint is at step {step_of(checkpoint)}, and this run ends at step {planned}",
            "there would be nothing to train, and the result would be the other run's model",
            "ask for more steps",
        )
    ended = False
    if evaluation is not None:
        evaluation.attach(trainer, forked=forked)
        if checkpoint is not None and not forked:
            before = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
            evaluation.check_best(before)
            ended = evaluation.stopped(before)
    with work.progress.phase(name, planned) as phase:
        if checkpoint is not None:
            phase.advance(step_of(checkpoint))
            work.progress.note(f"resumed at step {phase.done} of {planned}")
        if checkpoint is not None and (ended or step_of(checkpoint) >= planned):
            _take_over(trainer, work, checkpoint)
        else:
            ours: list[TrainerCallback] = [WorkCallback(trainer, work, phase), FiniteGuard(trainer, work, max_skipped)]
            if launch is not None and launch.world > 1:
                ours.append(StrategyGuard(trainer, launch))
            if trainer.args.device.type == "cpu":
                # before the plan's comparison, which measures what the process has of its own
                ours.append(ReturnGrownMemory(launch.processes if launch is not None else 1))
            if work.estimate is not None:
                ours.append(CompareWithPlan(trainer, work, work.estimate, cycle))
            _train(trainer, work, launch or LaunchSettings(), checkpoint, ours, forked, callbacks, evaluation)
    if trainer.state.global_step < planned and not (evaluation is not None and evaluation.stopped(trainer.state)):
        raise SafeworkError(
            f"training ended after {trainer.state.global_step} of {planned} steps",
            "the trainer stopped early",
            "run with --fresh; if it repeats, report it",
        )
    if evaluation is not None:
        evaluation.take_best(trainer)
    return trainer.state


def _train(
    trainer: Trainer,
    work: WorkDir,
    launch: LaunchSettings,
    checkpoint: Path | None,
    ours: list[TrainerCallback],
    forked: bool,
    callbacks: Sequence[TrainerCallback],
    evaluation: Evaluation | None,
) -> None:
    trainer.remove_callback(PrinterCallback)  # it prints every log as a dict
    evaluating = [] if evaluation is None else [evaluation]
    last = [Seal(work, evaluation), *(BetweenUpdates(callback) for callback in ours if isinstance(callback, CompareWithPlan))]
    for callback in [*ours, _FirstStepLearns(), *([_ForkedRate(trainer)] if forked else []), *callbacks, *evaluating, *last]:
        trainer.add_callback(callback)
    args = trainer.args
    on_cpu_in_bf16 = args.bf16 and args.device.type == "cpu"
    in_float32 = attention_in_float32(trainer.model) if on_cpu_in_bf16 else nullcontext()
    with work.stop.deferred(), tracked(trainer, work), in_float32, head_gathered(trainer.model, launch):
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise out_of_memory(trainer, error) from error
    own: dict[str, Any] = vars(trainer.model)
    if own.pop("_original_forward", None):
        del own["forward"]  # accelerate's autocast, which would stay: what samples or judges from here on is the model as it is saved


def _take_over(trainer: Trainer, work: WorkDir, checkpoint: Path) -> None:
    """Puts a trainer where it stood when the last step's checkpoint was written. ``trainer.train`` would train another step first."""
    if work.world.size > 1:
        leave_weights_at(trainer, checkpoint)
        trainer.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        return
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
