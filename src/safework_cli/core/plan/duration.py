"""Seconds of an update: the operations of its products over what the device reaches, and the bytes that an optimiser and sampling move."""

from __future__ import annotations

from math import ceil

from safework_cli.core.plan.device import Device
from safework_cli.core.plan.work import Work
from safework_cli.core.settings import LaunchSettings

REACHED = {"gpu": 0.4, "cpu": 0.8}
"""Share of a device's peak (of a CPU's measured product) that training reaches, without communication."""
STREAMED = 0.6
"""Share of the memory's bandwidth that decoding reaches."""
ADAMW_BYTES = 28
"""Of each trained weight: weight, gradient and two moments are read, three of them written."""
LAUNCH_SECONDS = 4e-4
"""A GPU's decoder layer of one token, at least: transformers starts its kernels one by one."""


def step_flops(work: Work) -> float:
    """Operations of the products in an update of one process: two for each weight and token, forward; as many again for the gradient of
    what came in, and for that of a weight of its own. Attention is causal: half of the pairs."""
    layer = 2 * work.shape.active + 2 * work.shape.query * work.length
    head = 2 * work.shape.hidden * work.shape.vocabulary * (3 if work.trained else 1)
    forward = layer * work.layers * (1 + work.extra_forwards)
    backward = layer * work.backward * (1 + work.own_gradient + bool(work.checkpointing)) if work.trained else 0
    return work.step_tokens * (forward + backward) + work.step_head_tokens * head + _image_flops(work)


def _image_flops(work: Work) -> float:
    """Operations of the vision tower's products; attention between patches, which many towers restrict to windows, is left out."""
    if work.images is None:
        return 0.0
    once = 2 * work.images.tower.layer * work.images.tower.layers
    return work.images.step_patches * once * (1 + work.extra_forwards + (2 if work.images.trained else 0))


def step_seconds(work: Work, launch: LaunchSettings, device: Device) -> float:
    """Seconds of an update; 0 where the device's speed is unknown. Processes on a CPU share its cores."""
    bf16 = device.bf16 if work.bf16 is None else work.bf16
    shared = launch.processes if device.kind == "cpu" else 1
    speed, bandwidth = (device.half if bf16 else device.single) / shared, device.bandwidth / shared
    if not speed or not bandwidth:
        return 0.0
    divided = launch.world if launch.strategy in ("zero2", "zero3", "fsdp") else 1
    update = ADAMW_BYTES * work.trained / divided / bandwidth
    return step_flops(work) / (speed * REACHED[device.kind]) + update + _sampling_seconds(work, device, speed, bandwidth, bf16=bf16)


def _sampling_seconds(work: Work, device: Device, speed: float, bandwidth: float, *, bf16: bool) -> float:
    """Seconds in which the replies of an update are sampled, if all are as long as allowed."""
    if work.sampling is None:
        return 0.0
    sampling, shape = work.sampling, work.shape
    batch = min(sampling.batch, ceil(sampling.step_replies))
    number = 2 if bf16 else 4
    token_flops = 2 * (shape.active * work.layers + shape.hidden * shape.vocabulary)
    read = number * (work.held + 2 * shape.key * work.layers * batch * (sampling.prompt + sampling.reply / 2))
    one = max(read / (bandwidth * STREAMED), batch * token_flops / (speed * REACHED[device.kind]))
    if device.kind == "gpu" and not sampling.elsewhere:
        one = max(one, LAUNCH_SECONDS * work.layers)
    prompts = sampling.step_replies * sampling.prompt * token_flops / (speed * REACHED[device.kind])
    return prompts + sampling.step_replies / batch * sampling.reply * one
