"""The plan compared with the run: what an update takes and what the process holds, measured at the first one and at the end."""

from __future__ import annotations

import mmap
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from safework_cli.core.formats import duration, size
from safework_cli.core.plan.work import Estimate
from safework_cli.core.stage import WorkDir
from safework_cli.core.system import peak_memory, resident_bytes
from safework_cli.training.memory import local_bytes


@dataclass(frozen=True, slots=True)
class Measured:
    """What a run took so far.

    Attributes:
        updates: measured; seconds: of one of them.
        peak: bytes at the peak, of the card or of this process beyond what it was without the model; None where that is not known.
        once: seconds of all of them that do not come again: the system gave this process memory that it keeps.
    """

    updates: int
    seconds: float
    peak: int | None
    once: float = 0.0

    @property
    def lasting(self) -> float:
        """Seconds of an update that follows."""
        return self.seconds - self.once / self.updates


class CompareWithPlan(TrainerCallback):
    """Says after the first update (or the updates of the first rollout) how the plan's numbers compare, and corrects them.

    Args:
        cycle: updates that one rollout serves: their time together is measured, since sampling is a part of it.
    """

    def __init__(self, trainer: Trainer, work: WorkDir, estimate: Estimate, cycle: int = 1):
        self._trainer, self._work, self._estimate, self._cycle = trainer, work, estimate, cycle
        self._on_card = torch.cuda.is_available()
        self._spent = 0.0
        self._since: float | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._product = product_speed(args.device, torch.bfloat16 if args.bf16 else torch.float32)
        self._without_model: int | None = None
        self._resident: int | None = None
        if not self._on_card:
            self._seconds_per_byte = new_memory_seconds()
            self._resident = resident = resident_bytes()
            self._without_model = None if resident is None else resident - held_bytes(self._trainer)
        self._first_step = state.global_step
        self.go_on()

    def go_on(self) -> None:
        """An update begins: what was done since the last one ended is not its time."""
        self._since = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        assert self._since is not None
        self._spent += time.monotonic() - self._since
        done = state.global_step - self._first_step
        if done != min(self._cycle, state.max_steps - self._first_step):
            return
        measured = self._measure(done)
        self._record("first_updates", measured)
        left = measured.lasting * (state.max_steps - state.global_step)
        self._work.progress.note(comparison(self._estimate, measured, left))

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if done := state.global_step - self._first_step:
            self._record("all_updates", self._measure(done))

    def _measure(self, updates: int) -> Measured:
        if self._on_card:
            peak: int | None = torch.cuda.max_memory_allocated()
        else:
            peak = None if self._without_model is None else peak_memory().host - self._without_model
        now = resident_bytes()
        grown = 0 if now is None or self._resident is None else max(0, now - self._resident)
        # pages are measured at one moment, on a machine that may be busy then: never more than half of the time
        once = min(grown * self._seconds_per_byte, self._spent / 2) if grown else 0.0
        return Measured(updates, self._spent / updates, peak, once)

    def _record(self, what: str, measured: Measured) -> None:
        planned = self._estimate.memory.first_peak if what == "first_updates" and measured.updates == 1 else self._estimate.memory.peak
        self._work.progress.event(
            what, updates=measured.updates, seconds=measured.seconds, lasting_seconds=measured.lasting,
            peak_bytes=measured.peak, planned_bytes=planned, planned_seconds=self._estimate.step_seconds, product_speed=self._product,
        )  # fmt: skip


class BetweenUpdates(TrainerCallback):
    """The last of the callbacks: evaluations and checkpoints belong to no update."""

    def __init__(self, compared: CompareWithPlan):
        self._compared = compared

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._compared.go_on()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._compared.go_on()

    def on_evaluate(self, *_: Any, **__: Any) -> None:
        self._compared.go_on()

    def on_save(self, *_: Any, **__: Any) -> None:
        self._compared.go_on()


def comparison(estimate: Estimate, measured: Measured, left: float) -> str:
    """The sentence for people.

    Args:
        left: seconds of the updates that are left, by the measured ones; evaluations and checkpoints come on top.
    """
    many = f"the first {measured.updates} updates took {duration(measured.seconds)} each" if measured.updates > 1 else (
        f"the first update took {duration(measured.seconds)}"
    )  # fmt: skip
    planned = f" (planned: {duration(estimate.step_seconds)})" if estimate.step_seconds else ""
    memory = ""
    if measured.peak is not None:
        at_first = estimate.memory.first_peak if measured.updates == 1 else estimate.memory.peak
        memory = f"; memory {size(measured.peak)} (planned: {size(at_first)})"
    return f"{many}{planned}{memory}" + (f"; the others take about {duration(left)}" if left else "")


PRODUCT = {"cpu": 1024, "cuda": 4096}
"""Rows and columns of the product that a device's speed is measured by: hundredths of a second."""
PRODUCTS = 9


def product_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Operations of a product a second on a device, the median of several: what the plan's time can be compared with on another machine."""
    size = PRODUCT.get(device.type, PRODUCT["cpu"])
    left = torch.ones(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(PRODUCTS):
        start = time.perf_counter()
        float((left @ left)[0, 0])  # waits for the device
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / median(seconds)


NEW_MEMORY = 64 * 2**20


def new_memory_seconds() -> float:
    """Seconds in which the system gives this process a byte of memory: it clears each page when it is first written to."""
    seconds = []
    with mmap.mmap(-1, NEW_MEMORY) as pages:
        tensor = torch.frombuffer(pages, dtype=torch.uint8)
        for value in (1, 2):  # the second time, they are there
            start = time.perf_counter()
            tensor.fill_(value)
            seconds.append(time.perf_counter() - start)
        del tensor
    return max(0.0, seconds[0] - seconds[1]) / NEW_MEMORY


def held_bytes(trainer: Trainer) -> int:
    """Bytes of the weights that this process holds: its part of divided ones, and a reference model's."""
    models = [trainer.model, getattr(trainer, "ref_model", None), getattr(trainer, "_reference", None)]
    weights = {id(weight): weight for model in models if isinstance(model, torch.nn.Module) for weight in model.parameters()}
    return sum(map(local_bytes, weights.values()))
