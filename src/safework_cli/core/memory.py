"""A training stage that ran out of memory is run once more with half as many rows in a pass. Imports no torch."""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from safework_cli.core.stage import Inputs, Outcome, WorkDir
from safework_cli.core.system_errors import TrainingOutOfMemory, chain


def run_in_memory(run: Callable[[Any, Inputs, WorkDir], Outcome], config: Any, inputs: Inputs, work: WorkDir) -> Outcome:
    """Runs a stage. Where a training pass finds no memory, the stage is run a second time from the last checkpoint, with half as many rows
    in a pass and twice as many passes in a step: the same rows make a step. Only in one process, since several must stay in step.

    Raises:
        whatever the stage raises, and for memory what the second run raises.
    """
    try:
        return run(config, inputs, work)
    except Exception as error:
        smaller = half_passes(config) if any(isinstance(link, TrainingOutOfMemory) for link in chain(error)) else None
        if smaller is None:
            raise
        note = (
            f"out of memory with per_device_train_batch_size={config.per_device_train_batch_size}: trained with "
            f"per_device_train_batch_size={smaller.per_device_train_batch_size} "
            f"gradient_accumulation_steps={smaller.gradient_accumulation_steps} from there on"
        )
        work.progress.warn(f"{note} ({error})")
        for link in chain(error):
            traceback.clear_frames(link.__traceback__)  # they hold the model, its gradients and the failed pass
    gc.collect()
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is not None and cuda.is_initialized():
        cuda.empty_cache()
    outcome = run(smaller, inputs, work)
    outcome.notes.append(note)
    return outcome


def half_passes(config: Any) -> Any | None:
    """The settings of a training stage with half as many rows in a pass and the same rows in a step; None where that cannot be."""
    rows, passes = (getattr(config, name, None) for name in ("per_device_train_batch_size", "gradient_accumulation_steps"))
    if not isinstance(rows, int) or not isinstance(passes, int) or rows % 2 or config.launch.world > 1:
        return None
    changes = {"per_device_train_batch_size": rows // 2, "gradient_accumulation_steps": 2 * passes}
    if (sampled := getattr(config, "steps_per_generation", None)) is not None:
        changes["steps_per_generation"] = 2 * sampled
    if (together := getattr(config, "generation_batch_size", None)) is not None:
        changes["generation_batch_size"] = max(1, together // 2)
    try:
        return type(config).model_validate(config.model_dump(exclude_unset=True) | changes, strict=False)
    except ValidationError:
        return None
