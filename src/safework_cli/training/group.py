"""The process group of a run on several processes, and what stages do with it: gather, wait, decide alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from safework_cli.core.launch.world import World
from safework_cli.core.settings import LaunchSettings

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def started_group(launch: LaunchSettings, world: World) -> Iterator[None]:
    """A process group for the body, by gloo on CPUs, and by NCCL on GPUs, of which this process takes the one of its local rank."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(world.local_rank)
    backend, timeout = "cpu:gloo,cuda:nccl" if on_gpu else "gloo", timedelta(minutes=launch.timeout_minutes)
    dist.init_process_group(backend, timeout=timeout)
    yield
    dist.destroy_process_group()  # not after an error: it would wait for the others


def gathered(world: World, items: Sequence[Item]) -> list[Item]:
    """The items of all processes, in the order of their ranks; every process gets them. They are pickled between processes of one run."""
    if world.size == 1:
        return list(items)
    parts: list[list[Item]] = [[] for _ in range(world.size)]
    dist.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]


def spread(world: World, items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]]) -> list[Result]:
    """``work`` on each process's share of the items; every process gets all results, in the order of the items."""
    return gathered(world, work(items[world.share(len(items))]))


def barrier(world: World) -> None:
    """Waits for all processes."""
    if world.size > 1:
        dist.barrier()


def any_of(world: World, flag: bool, device: torch.device | str = "cpu") -> bool:
    """Whether the flag is set in any process: the same answer in all."""
    if world.size == 1:
        return flag
    flag_1 = torch.tensor([float(flag)], device=device)
    dist.all_reduce(flag_1, op=dist.ReduceOp.MAX)
    return bool(flag_1.item())
