"""The order in which rows are seen: a function of the seed and the step, so that a resumed run sees the same rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler
from transformers import Trainer, TrainingArguments

from safework_cli.core.errors import InputError


class StepSampler(Sampler[int]):
    """Row indices such that each optimiser step sees a random sample, cut into forward passes of like length.

    Sorting by length goes no further than a step: over more rows it puts rows of one kind together (refusals are longer than plain
    answers), and a model that sees them in turns learns to give one kind of reply, not to choose between them. The order depends on
    the seed and the epoch's number only, so a resumed run sees what an uninterrupted one sees.

    Args:
        lengths: of each row, in tokens.
        per_step: rows of an optimiser step, over all its forward passes and processes.
        seed: of the order.
        epoch: the number of the epoch that begins.
        ahead: is called before each step with the rows that it and the next one see, so that what is costly of them can be prepared.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        per_step: int,
        seed: int,
        epoch: Callable[[], int],
        ahead: Callable[[Sequence[int]], None] | None = None,
    ):
        self.lengths, self.per_step, self.seed, self.epoch, self.ahead = lengths, per_step, seed, epoch, ahead

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch())
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        steps = [order[start : start + self.per_step] for start in range(0, len(order), self.per_step)]
        steps = [sorted(step, key=lambda row: -self.lengths[row]) for step in steps]
        for number, step in enumerate(steps):
            if self.ahead is not None:
                self.ahead([row for coming in steps[number : number + 2] for row in coming])
            yield from step


def rows_per_step(args: TrainingArguments) -> int:
    """Rows of an optimiser step, over all its forward passes and processes."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def step_sampler(trainer: Trainer, lengths: Sequence[int], ahead: Callable[[Sequence[int]], None] | None = None) -> StepSampler:
    """The sampler of a trainer whose rows have these lengths, in tokens.

    Args:
        ahead: see ``StepSampler``; it gets this process's rows only.

    Raises:
        InputError: several processes would take more rows in a step than there are.
    """
    args = trainer.args
    per_step = rows_per_step(args)
    if args.world_size > 1 and per_step > len(lengths):
        raise InputError(
            f"{args.world_size} processes take {per_step} rows in a step (per_device_train_batch_size × gradient_accumulation_steps × "
            f"processes), and there are {len(lengths)} to train on",
            "each process takes a whole share, so that some rows would count twice in every step",
            "lower per_device_train_batch_size or launch.processes",
        )
    steps_per_epoch = math.ceil(len(lengths) / per_step)

    def own(rows: Sequence[int]) -> None:
        assert ahead is not None
        passes = range(args.process_index * args.train_batch_size, len(rows), args.world_size * args.train_batch_size)
        ahead([row for start in passes for row in rows[start : start + args.train_batch_size]])  # forward passes are dealt in turns

    ahead_of_own = None if ahead is None else own
    return StepSampler(lengths, per_step, args.seed, lambda: trainer.state.global_step // steps_per_epoch, ahead_of_own)
