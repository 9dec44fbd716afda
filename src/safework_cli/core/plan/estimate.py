"""Turns what a stage asks for into numbers, refuses what cannot fit, and says all of it in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from safework_cli.core.errors import ConfigError
from safework_cli.core.formats import duration, size
from safework_cli.core.plan.device import Device, device_of
from safework_cli.core.plan.duration import step_flops, step_seconds
from safework_cli.core.plan.fit import WORK_SPACE, capacity, fits, setting_that_fits
from safework_cli.core.plan.memory import memory_of
from safework_cli.core.plan.work import Activations, Estimate, Memory, Work
from safework_cli.core.settings import LaunchSettings

if TYPE_CHECKING:
    from safework_cli.core.stage import Plan, Stage


def estimate(stage: Stage, config: Any, plan: Plan, activations: Activations | None = None) -> None:
    """Adds to a plan what its work needs on its device, and why it is too large where that cannot fit.

    Args:
        activations: as measured by the memory tracker; by formula where None.
    """
    if plan.work is None:
        return
    work, launch = plan.work, config.launch
    try:
        device = device_of(launch, config.slurm)
    except ConfigError as refusal:
        plan.refusals.append(refusal)
        return
    memory, room = memory_of(work, launch, device, activations), capacity(launch, device)
    plan.estimate = Estimate(
        device=device.name,
        card_hours=device.kind == "gpu",
        capacity=room,
        memory=memory,
        host=_host(work, memory, launch, device),
        step_seconds=step_seconds(work, launch, device) if work.steps else 0.0,
        step_flops=step_flops(work),
        steps=work.steps,
        world=launch.world,
        measured=activations is not None if work.trained else None,
    )
    if room is None:
        plan.estimate.notes.append(f"whether it fits is not known: {device.name} is not in the table; launch.device=NAME names another")
    elif not launch.check_memory:
        pass
    elif not fits(memory, room):
        plan.too_large = _refusal(stage, config, work, memory, room, device)
    elif memory.peak > room:
        plan.estimate.notes.append("it is close: the estimate is above what there is, by less than it is uncertain")


def _host(work: Work, memory: Memory, launch: LaunchSettings, device: Device) -> int:
    """Bytes of a node's own memory. With cards: the processes' libraries, and divided weights where the first process saves them, gathered
    and in the model that they are put into."""
    if device.kind == "cpu":
        return launch.processes * (memory.peak + WORK_SPACE)
    if launch.strategy not in ("zero3", "fsdp"):
        return launch.processes * WORK_SPACE
    read = 4 * (work.held + (work.other_weights if work.others_divided else 0))  # by the first process, before they are divided
    return launch.processes * WORK_SPACE + max(8 * work.held, read)


def _refusal(stage: Stage, config: Any, work: Work, memory: Memory, room: int, device: Device) -> ConfigError:
    fitting = setting_that_fits(work, config.launch, device, many_processes=stage.many_processes)
    if fitting is None:
        do = "take a smaller model or shorter rows"
    else:
        do = f"{fitting[0]} needs {size(fitting[1].peak)}"
    return ConfigError(
        f"{stage.name} needs {size(memory.peak)} in each process, and {device.name} leaves {size(max(room, 0))} for it",
        f"{_parts(memory)} (launch.strategy={config.launch.strategy}, {config.launch.world} process"
        + ("es)" if config.launch.world > 1 else ")"),
        f"{do}; launch.check_memory=false starts it all the same",
    )


def _parts(memory: Memory) -> str:
    return " · ".join(f"{name} {size(count)}" for name, count in memory.parts.items())


def estimate_lines(plan: Plan) -> Iterator[str]:
    """What a plan needs, in lines for people."""
    made = plan.estimate
    if made is not None:
        each = f"each of {made.world} processes" if made.world > 1 else "the process"
        of = f" of {size(made.capacity)}" if made.capacity is not None else ""
        how = {None: "", True: "; activations by torch's memory tracker", False: "; activations by formula, --measure measures them"}
        yield f"memory of {each} at its peak: {size(made.memory.peak)}{of} ({made.device}{how[made.measured]})"
        yield f"  {_parts(made.memory)}"
        yield from (f"  note: {note}" for note in made.notes)
    figures = {
        "host memory": size(made.host) + " a node" if made is not None and made.card_hours else None,
        "disk": None if plan.disk_bytes is None else size(plan.disk_bytes),
        "tokens": None if plan.tokens is None else f"{plan.tokens:,}",
        "optimizer steps": None if plan.optimizer_steps is None else f"{plan.optimizer_steps:,}",
        "time": _time(made) if made is not None else None,
    }
    if line := " · ".join(f"{name}: {value}" for name, value in figures.items() if value is not None):
        yield line


def _time(made: Estimate) -> str | None:
    """The updates' time, corrected by the first one once it runs."""
    if made.seconds is None:
        return None
    hours = f", {made.seconds * made.world / 3600:.1f} GPU hours" if made.card_hours else ""
    step = f"{duration(made.step_seconds)} a step, " if made.measured is not None else ""
    return f"about {duration(made.seconds)} ({step}before any is measured){hours}"
