"""Which setting makes a run fit that does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec

from safework_cli.core.plan.device import Device
from safework_cli.core.plan.memory import memory_of
from safework_cli.core.plan.work import Memory, Work
from safework_cli.core.settings import LaunchSettings

PROCESSES = (2, 4, 8)
NODES = (1, 2, 4, 8, 16)
WORK_SPACE = 2**30
"""Bytes of a process in addition to what the plan counts: the libraries and, on a card, its context."""


def capacity(launch: LaunchSettings, device: Device) -> int | None:
    """Bytes that one process may take of its device; None where unknown. Processes on a CPU share the node's memory."""
    if device.memory is None:
        return None
    return device.memory // (launch.processes if device.kind == "cpu" else 1) - WORK_SPACE


def fits(memory: Memory, room: int | None) -> bool:
    """Whether a run may be tried: what is counted must fit, and four fifths of what is estimated."""
    return room is None or memory.peak - memory.uncertain // 5 <= room


def setting_that_fits(work: Work, launch: LaunchSettings, device: Device, *, many_processes: bool) -> tuple[str, Memory] | None:
    """The first change of settings that makes a run fit, with what it needs then; None where none of those that are tried does.

    Args:
        many_processes: whether the stage runs on several processes.
    """
    for text, changed, launched in _changes(work, launch, device, many_processes):
        memory, room = memory_of(changed, launched, device), capacity(launched, device)
        if room is not None and memory.peak <= room:
            return text, memory
    return None


def _changes(work: Work, launch: LaunchSettings, device: Device, many_processes: bool) -> Iterator[tuple[str, Work, LaunchSettings]]:
    """Changes from the least to the greatest: smaller passes, recomputed activations, weights divided among more processes, adapters."""
    for text, changed in _in_place(work):
        yield text, changed, launch
    for words, launched in _launches(launch) if many_processes and device.kind == "gpu" else ():
        yield words, work, launched
        for text, changed in _in_place(work):
            yield f"{words} {text}", changed, launched
    if work.lora is False:
        small = replace(work, trained=work.held // 100, own_gradient=0.0, lora=True)
        yield "lora={}", small, launch
        for text, changed in _in_place(small):
            yield f"lora={{}} {text}", changed, launch


def _launches(launch: LaunchSettings) -> Iterator[tuple[str, LaunchSettings]]:
    """As many processes or more, among which the weights are divided: first those of one node. (Without cards they would share its
    memory.)"""
    strategies = ["fsdp", *(["zero3"] if launch.strategy in ("zero2", "zero3") and find_spec("deepspeed") else [])]
    for nodes in NODES:
        for processes in PROCESSES if nodes == 1 else PROCESSES[-1:]:
            for strategy in strategies:
                if processes * nodes > launch.world or (processes * nodes == launch.world and strategy != launch.strategy):
                    words = f"launch.strategy={strategy} launch.processes={processes}" + (f" launch.nodes={nodes}" if nodes > 1 else "")
                    yield words, launch.model_copy(update={"strategy": strategy, "processes": processes, "nodes": nodes})


def _in_place(work: Work) -> Iterator[tuple[str, Work]]:
    """Changes that leave the processes as they are: the same rows in more passes, activations recomputed, and both."""
    starts = [("", work)]
    if work.checkpointing is False:
        starts.append((" gradient_checkpointing=true", replace(work, checkpointing=True)))
    for more, start in starts:
        if more:
            yield more.strip(), start
        rows, passes = start.rows, start.passes
        while start.trained and rows % 2 == 0:
            rows, passes = rows // 2, passes * 2
            share = rows / start.rows
            smaller = replace(start, rows=rows, passes=passes, pass_tokens=start.pass_tokens * share, head_tokens=start.head_tokens * share)
            yield f"per_device_train_batch_size={rows} gradient_accumulation_steps={passes}{more}", smaller
