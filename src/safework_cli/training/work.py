"""What a training stage asks its machine for, from its settings and its rows. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safework_cli.core.checkpoints import KEPT
from safework_cli.core.errors import InputError
from safework_cli.core.plan.images import ImageCost
from safework_cli.core.plan.shape import ModelShape
from safework_cli.core.plan.tokens import Passes, passes_of
from safework_cli.core.plan.work import Head, Images, Work
from safework_cli.core.stage import Plan
from safework_cli.data.images import image_size
from safework_cli.data.row import Row
from safework_cli.models.pixels import PixelBounds
from safework_cli.training.config import Lora, SaveDtype

SAVED_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}


def training_work(
    folder: Path,
    config: Any,
    lengths: Sequence[float],
    steps: int,
    head: Head,
    *,
    head_on_card: Head | None = None,
    supervised: float = 1.0,
    padded: bool = True,
    frozen_embedding: bool = False,
    extra_forwards: float = 0.0,
    loads_parts: bool = False,
    patches: Sequence[float] = (),
) -> Work:
    """The work of a stage that learns from given rows.

    Args:
        config: its settings; those that other stages lack (``lora``, ``train_layers``, ``keep_layers``, ``gradient_checkpointing``) may be
            missing.
        lengths: tokens of the training rows.
        supervised: share of the tokens whose logits are computed, where the head is "supervised".
        padded: as for ``passes_of``.
        patches: of the rows' images, as ``tokens_and_patches`` counts them.

    Raises:
        InputError: the model's weights are damaged.
    """
    rows, accumulated = config.per_device_train_batch_size, config.gradient_accumulation_steps
    passes = passes_of(lengths, rows, accumulated, config.launch.world, padded=padded)
    read = _logit_tokens(head, passes, rows, accumulated, supervised)
    shape = ModelShape.of(folder)
    return Work(
        folder, shape, **trained_weights(shape, config, frozen_embedding=frozen_embedding),
        rows=rows, length=passes.longest, pass_tokens=passes.largest, head=head, head_tokens=read[0], head_on_card=head_on_card,
        step_tokens=passes.per_step, step_head_tokens=read[1], passes=accumulated, extra_forwards=extra_forwards, steps=steps,
        bf16=config.bf16, loads_parts=loads_parts, checkpointing=getattr(config, "gradient_checkpointing", None),
        images=images_work(folder, patches, rows, accumulated, trained=getattr(config, "train_vision", False)),
    )  # fmt: skip


def tokens_and_patches(folder: Path, rows: Sequence[Row], pixels: PixelBounds) -> list[tuple[int, int]]:
    """Of each row's images, about, by the headers of their files: the tokens that they add to the row, and the patches that the vision
    tower reads. What cannot be read counts as nothing: the run says what is wrong with it."""
    cost = ImageCost.of(folder, pixels.given) if any(row.images for row in rows) else None
    if cost is None:
        return [(0, 0)] * len(rows)
    found = []
    for row in rows:
        try:
            sizes = [image_size(image) for image in row.images]
        except InputError:
            sizes = []
        found.append((sum(cost.tokens(*size) for size in sizes), sum(cost.patches(*size) for size in sizes)))
    return found


def images_work(folder: Path, patches: Sequence[float], rows: int, passes: int, *, trained: bool = False) -> Images | None:
    """What images ask of the vision tower; None where there are none.

    Args:
        patches: of each training row; a pass takes ``rows`` of them, an update ``passes`` passes.
    """
    cost = ImageCost.of(folder) if any(patches) else None
    if cost is None:
        return None
    return Images(cost.tower, rows * max(patches), passes * rows * sum(patches) / len(patches), trained)


def judging_work(folder: Path, rows: int, length: int) -> Work:
    """The work of a model that only reads: batches of rows of a length at most, one position of each through the head."""
    shape = ModelShape.of(folder)
    return Work(
        folder, shape, held=shape.parameters, trained=0, layers=shape.layers, backward=0, rows=rows, length=length,
        pass_tokens=rows * length, head="last", head_tokens=rows, weight_bytes=None,
    )  # fmt: skip


def _logit_tokens(head: Head, passes: Passes, rows: int, accumulated: int, supervised: float) -> tuple[float, float]:
    """Positions whose logits are computed in the largest pass, and in an update."""
    if head in ("last", "none"):
        return (float(rows), float(rows * accumulated)) if head == "last" else (0.0, 0.0)
    share = supervised if head == "supervised" else 1.0
    return passes.largest * share, passes.per_step * share


def trained_weights(shape: ModelShape, config: Any, *, frozen_embedding: bool = False) -> dict[str, Any]:
    """``held``, ``trained``, ``layers``, ``backward``, ``own_gradient`` and ``lora`` of a ``Work``, by the settings that choose weights."""
    layers = getattr(config, "keep_layers", None) or shape.layers
    held = shape.parameters - (shape.layers - layers) * shape.layer
    lora: Lora | None = getattr(config, "lora", None)
    top: int | None = getattr(config, "train_layers", None)
    trained, backward = held - (shape.embedding if frozen_embedding else 0), layers
    if lora is not None:
        trained = lora.r * layers * adapter_width(shape)
    elif top is not None:
        trained, backward = top * shape.layer, top
    return {
        "held": held + (trained if lora is not None else 0),
        "trained": trained,
        "layers": layers,
        "backward": backward,
        "own_gradient": 0.0 if lora is not None else 1.0,
        "lora": None if not hasattr(config, "lora") else lora is not None,
    }


def adapter_width(shape: ModelShape) -> int:
    """Numbers of a layer's adapters of rank 1, on every linear layer of a Llama-like decoder: inputs and outputs of its projections."""
    attention = 2 * (shape.hidden + shape.query) + 2 * (shape.hidden + shape.key)
    return attention + 3 * (shape.hidden + shape.feed_forward)


def disk_of(work: Work, save: SaveDtype | None, *, adapters_only: bool = False) -> int:
    """Bytes at the peak: of the checkpoints that are kept with the next one, which is written before the oldest is deleted, or with the
    artifact, which is written after the last one. A checkpoint has weights in float32 and two moments of each trained one, or the adapters
    only.

    Args:
        save: type of the artifact's weights; None: as in the model's own files.
        adapters_only: the artifact holds the adapters and not the model that they change.
    """
    own = work.shape.stored if save in (None, "source") else SAVED_BYTES[save]
    artifact = 4 * work.trained if adapters_only else round(own * work.held)
    return KEPT * checkpoint_bytes(work) + max(checkpoint_bytes(work), artifact)


def checkpoint_bytes(work: Work) -> int:
    """Bytes of a checkpoint."""
    return 12 * work.trained if work.lora else 4 * work.held + 8 * work.trained


def hold_others(plan: Plan, weights: int = 0, half: int = 0) -> None:
    """Adds models that the processes hold besides: numbers in float32, and in the type that the device is fast in."""
    if plan.work is not None:
        plan.work = replace(plan.work, other_weights=plan.work.other_weights + weights, other_half=plan.work.other_half + half)
