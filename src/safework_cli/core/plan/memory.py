"""Bytes of one process by strategy: weights, gradients, moments, activations, logits, cache.

Weights, gradients and moments follow from counts (ZeRO: S. Rajbhandari et al., arXiv 1910.02054; AdamW keeps two float32 moments of each
weight). Activations follow from what a Llama-like decoder layer keeps for its backward pass, counted operation by operation in
``layer_bytes`` (tests compare with torch's memory tracker), or from the tracker itself.
"""

from __future__ import annotations

from safework_cli.core.plan.device import Device
from safework_cli.core.plan.shape import ModelShape
from safework_cli.core.plan.work import Activations, Head, Images, Memory, Work
from safework_cli.core.settings import LaunchSettings

ZERO_BUCKET = 500_000_000
"""Numbers in a bucket of gradients: DeepSpeed's default for reduce_bucket_size. Two are in use at the same time."""
ZERO3_LIVE = 1_000_000_000
"""Numbers that ZeRO-3 keeps gathered at most: DeepSpeed's default for stage3_max_live_parameters."""
ON_CPU = 300 * 2**20
"""Bytes that a process takes on a CPU in its first pass whatever the model's size, beyond tensors: generated kernels and their buffers,
threads, and pieces of freed memory. 0.2 to 0.5 GiB where it was measured (``benchmarks/plan.py``)."""
TILE = 32_768
"""Entries of the vocabulary in a tile of TRL's output embedding."""


def memory_of(work: Work, launch: LaunchSettings, device: Device, activations: Activations | None = None) -> Memory:
    """Bytes of one process.

    Args:
        activations: as measured, for ``work.pass_tokens``; by formula where None.
    """
    shape, n = work.shape, launch.world
    bf16 = device.bf16 if work.bf16 is None else work.bf16
    half_training = bf16 and launch.strategy in ("zero2", "zero3")  # DeepSpeed trains in bfloat16 over float32 masters
    own_bytes = work.weight_bytes or (2 if device.bf16 else 4)
    weight_bytes = 2 if half_training else own_bytes
    divided = launch.strategy in ("zero3", "fsdp")
    weights = weight_bytes * work.held // (n if divided else 1)
    compute_bytes = 2 if bf16 else 4
    root = shape.embedding + (0 if shape.tied else shape.head)
    if launch.strategy == "fsdp":
        weights += compute_bytes * (root + 2 * shape.layer)
    elif launch.strategy == "zero3":
        weights += weight_bytes * min(work.held, ZERO3_LIVE)

    gradient_bytes = 2 if half_training else 4
    whole = gradient_bytes * work.trained
    bucket = 2 * gradient_bytes * min(work.trained, ZERO_BUCKET) if launch.strategy.startswith("zero") else 0
    gradients, standing = {  # after the backward pass; those of them that are there before it, too
        "single": (whole, 0),
        "ddp": (2 * whole, whole),  # the reducer's buckets are copies
        "zero2": (whole // n + bucket, bucket),
        "zero3": (whole // n + bucket, bucket),
        "fsdp": (whole // n + (gradient_bytes * min(work.trained, root + 2 * shape.layer)), 0),
    }[launch.strategy]
    if work.passes > 1:
        standing = gradients
    moments = 8 + (4 if launch.strategy.startswith("zero") else 0)  # DeepSpeed keeps a float32 copy of its part
    optimizer = moments * work.trained // (1 if launch.strategy in ("single", "ddp") else n)

    kept = _activations(work, bf16=bf16, on_cpu=device.kind == "cpu", activations=activations)
    kept += 0 if work.images is None else image_bytes(work.images, bf16=bf16, attention_in_float32=device.kind == "cpu")
    if bf16 and own_bytes == 4 and not half_training and not divided:
        kept += 2 * shape.layer * work.layers + (0 if device.kind == "cpu" else 2 * shape.head)  # autocast's copies of the weights
    logits = _logits(work, work.head_on_card if device.kind == "gpu" and work.head_on_card else work.head)
    cache, sampling = _sampling(work, launch, device, bf16=bf16)
    parts_of_others = n if launch.strategy == "fsdp" and work.others_divided else 1
    other = 4 * work.other_weights // parts_of_others + (2 if device.bf16 else 4) * work.other_half
    early = gradient_bytes * shape.head if work.trained >= work.held and not divided else 0  # the head's gradient comes first
    backward = kept + logits + max(standing, early) if work.trained else kept + logits
    libraries = ON_CPU if device.kind == "cpu" else 0
    fixed = weights + other + libraries
    loading = 0 if launch.strategy == "fsdp" and work.loads_parts else own_bytes * work.held + other
    return Memory(
        weights, gradients, optimizer, round(kept), round(logits), cache, other, libraries,
        peak=round(max(loading, fixed + optimizer + max(backward, gradients, sampling + bucket))),
        first_peak=round(max(loading, fixed + max(backward, gradients + optimizer, sampling))),
    )  # fmt: skip


def layer_bytes(shape: ModelShape, *, bf16: bool, attention_in_float32: bool) -> float:
    """Bytes that a decoder layer keeps of each token for its backward pass.

    float32, in numbers of 4 bytes: each norm keeps its input and the normalised input (2 of its width), attention and MLP the input of
    their projections (2 hidden); attention keeps queries, keys and values as they are repeated for the query heads, and its output
    (4 query); the MLP keeps gate, activated gate, up and their product (4 feed-forward). Under autocast norms stay float32, each
    projection keeps a bfloat16 copy of its input (10 hidden), and what follows is bfloat16.
    """
    hidden, inner, query = shape.hidden, shape.feed_forward, shape.query
    normed = 2 * shape.norms * hidden + (2 * (query + shape.key) if shape.head_norms else 0)
    return _kept(hidden, inner, query, normed, bf16=bf16, attention_in_float32=attention_in_float32)


def _kept(hidden: int, inner: int, query: int, normed: int, *, bf16: bool, attention_in_float32: bool) -> float:
    """See ``layer_bytes``.

    Args:
        normed: numbers that the norms keep.
    """
    if not bf16:
        return 4 * (normed + 2 * hidden + 4 * query + 4 * inner)
    return 4 * normed + 10 * hidden + 8 * inner + (18 if attention_in_float32 else 8) * query


def image_bytes(images: Images, *, bf16: bool, attention_in_float32: bool) -> float:
    """Bytes of the images of the largest pass: as float32, and what the tower keeps of them for its backward pass, or works with in a
    layer where it is not trained. Its layers are counted as a decoder's are."""
    tower = images.tower
    if images.trained:
        width, inner = tower.hidden, tower.feed_forward
        layer = _kept(width, inner, width, 4 * width, bf16=bf16, attention_in_float32=attention_in_float32)
        return images.pass_patches * (4 * tower.inputs + tower.layers * layer)
    return images.pass_patches * (4 * tower.inputs + (2 if bf16 else 4) * (6 * tower.hidden + 3 * tower.feed_forward))


def _activations(work: Work, *, bf16: bool, on_cpu: bool, activations: Activations | None) -> float:
    """Bytes that the largest pass keeps, without logits."""
    if not work.trained:  # a layer's working memory
        return work.pass_tokens * (2 if bf16 else 4) * (2 * work.shape.hidden + 3 * work.shape.feed_forward)
    if activations is not None:
        base, layer = activations.base, activations.layer
    else:
        base = 8 * (work.shape.hidden + work.shape.feed_forward) * work.pass_tokens  # last norm, and gradients within a layer
        layer = layer_bytes(work.shape, bf16=bf16, attention_in_float32=on_cpu) * work.pass_tokens
    if work.checkpointing:
        return base + 4 * work.shape.hidden * work.pass_tokens * work.backward + layer  # each layer's input, and one layer at a time
    return base + layer * work.backward


def _logits(work: Work, head: Head) -> float:
    """Bytes of logits: they, their log-softmax and its gradient where a loss is taken over all of them."""
    vocabulary = work.shape.vocabulary
    return {
        "supervised": 12 * work.head_tokens * vocabulary,
        "tiles": 8 * work.head_tokens * min(vocabulary, TILE),
        "last": 8 * work.rows * vocabulary,
        "none": 0.0,
    }[head]


def _sampling(work: Work, launch: LaunchSettings, device: Device, *, bf16: bool) -> tuple[int, float]:
    """Bytes of keys and values, and of all that sampling takes beyond the weights."""
    if work.sampling is None:
        return 0, 0.0
    if work.sampling.elsewhere:
        inside = 0 if work.trained else (work.weight_bytes or 2) * work.held  # vLLM's share holds the weights, too
        taken = max(0, round(work.sampling.elsewhere * (device.memory or 0)) - inside)
        return taken, float(taken)
    number = 2 if bf16 and device.kind == "gpu" else 4
    tokens = work.sampling.batch * (work.sampling.prompt + work.sampling.reply)
    cache = round(2 * number * work.shape.key * work.layers * tokens)
    logits = 8.0 * work.sampling.batch * work.shape.vocabulary
    copies = 2 * (work.shape.layer * work.layers) if bf16 else 0
    gathered = (2 if bf16 else 4) * work.held if launch.strategy in ("zero3", "fsdp") else 0
    return cache, cache + logits + copies + gathered
