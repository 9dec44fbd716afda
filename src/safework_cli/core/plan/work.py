"""What a stage asks its machine for, and what becomes of that: ``Work`` in, ``Estimate`` out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from safework_cli.core.plan.config_shape import Tower
from safework_cli.core.plan.shape import ModelShape

Head = Literal["supervised", "tiles", "last", "none"]
"""Where logits exist at the same time: at the supervised positions, at all positions in tiles of the vocabulary, at the last position of
each row, or nowhere."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Replies that are sampled between updates.

    Attributes:
        batch: replies sampled together by one process.
        prompt, reply: tokens of each, at most.
        step_replies: replies for one update, of one process, on average.
        elsewhere: bytes that another engine in the same process takes for itself (vLLM), as a share of the device; 0 without one.
    """

    batch: int
    prompt: int
    reply: int
    step_replies: float
    elsewhere: float = 0.0


@dataclass(frozen=True, slots=True)
class Images:
    """What the images of a stage's rows ask of the vision tower.

    Attributes:
        pass_patches, step_patches: of the largest pass, and of an update, on average, in one process.
        trained: the tower has gradients.
    """

    tower: Tower
    pass_patches: float
    step_patches: float
    trained: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """What one process of a stage computes, as far as memory and time depend on it. Counts of weights are numbers, not bytes.

    Attributes:
        folder: of the model; shape: its sizes.
        held: weights in memory; trained: those with a gradient and moments, adapters included (0: nothing is trained).
        layers: that a token passes; backward: the top ones among them that gradients pass.
        own_gradient: share of the backward layers' weights that have a gradient of their own: 1, or about 0 with adapters.
        rows: of a forward pass; length: tokens of the longest one.
        pass_tokens, head_tokens: of the largest pass, through the layers and through the head.
        head: where logits exist; head_on_card: the same on a GPU, where that differs.
        step_tokens, step_head_tokens: of an update, on average, in one process.
        passes: forward and backward passes of an update.
        extra_forwards: further forward passes over an update's tokens, such as those of a reference model.
        steps: updates of the run.
        bf16: multiply in bfloat16; None: where the device does.
        weight_bytes: of a weight in memory; None: by the device, 2 where it multiplies in bfloat16 and 4 elsewhere.
        loads_parts: with fsdp, no process but the first reads the whole model; else each of them does before it keeps its part.
        checkpointing: activations are recomputed in the backward pass; None: the stage has no such setting.
        lora: adapters are trained; None: the stage has no such setting.
        other_weights: of models that are held besides, judges and references, in float32 (``other_half``: in ``weight_bytes`` of None).
        others_divided: FSDP divides the ``other_weights`` too, which come into its processes in parts.
        images: None where no row has one.
    """

    folder: Path
    shape: ModelShape
    held: int
    trained: int
    layers: int
    backward: int
    rows: int
    length: int
    pass_tokens: float
    head: Head
    head_tokens: float
    head_on_card: Head | None = None
    step_tokens: float = 0.0
    step_head_tokens: float = 0.0
    own_gradient: float = 1.0
    passes: int = 1
    extra_forwards: float = 0.0
    steps: int = 0
    bf16: bool | None = None
    weight_bytes: int | None = 4
    loads_parts: bool = False
    checkpointing: bool | None = None
    lora: bool | None = None
    other_weights: int = 0
    other_half: int = 0
    others_divided: bool = False
    sampling: Sampling | None = None
    images: Images | None = None


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes that a forward pass keeps for the backward pass, measured on shallow copies: linear in the number of layers.

    Attributes:
        base: without any layer, and without logits; layer: of each layer.
    """

    base: float
    layer: float


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one process, by what holds them. They are not all there at the same time: ``peak`` is the most at any time, and
    ``first_peak`` that of the first update, during whose passes the optimiser has no moments yet."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    cache: int
    other: int
    libraries: int
    peak: int
    first_peak: int

    @property
    def parts(self) -> dict[str, int]:
        """By name, those that are there."""
        names = {"optimizer": "optimiser", "cache": "KV cache", "other": "other models"}
        every = {names.get(name, name): size for name, size in asdict(self).items() if not name.endswith("peak")}
        return {name: size for name, size in every.items() if size}

    @property
    def uncertain(self) -> int:
        """The part that is estimated and not counted."""
        return self.activations + self.logits


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run needs, as planned.

    Attributes:
        device: its name; card_hours: whether its hours are GPU hours.
        capacity: bytes that one process may take; None where unknown.
        memory: of one process.
        host: bytes of a node's own memory, beyond the cards.
        step_seconds: of an update; 0 where nothing is trained or the device's speed is unknown.
        step_flops: operations of an update in one process; the part of it that products take.
        measured: activations are from the memory tracker; None where nothing is trained.
    """

    device: str
    card_hours: bool
    capacity: int | None
    memory: Memory
    host: int
    step_seconds: float
    step_flops: float
    steps: int
    world: int
    measured: bool | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float | None:
        """Of all updates; None where unknown."""
        return self.step_seconds * self.steps if self.step_seconds and self.steps else None

    def to_json(self) -> dict[str, Any]:
        """As plain values, with the hours of all cards."""
        hours = self.seconds * self.world / 3600 if self.seconds is not None and self.card_hours else None
        return asdict(self) | {"seconds": self.seconds, "gpu_hours": hours}

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> Estimate:
        """What ``to_json`` gave."""
        own = {name: value for name, value in written.items() if name not in ("seconds", "gpu_hours")}
        return cls(**own | {"memory": Memory(**written["memory"])})
