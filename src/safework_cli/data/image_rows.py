"""Rows with images for a model that reads text only: refused while planning, before anything is loaded. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safework_cli.core.errors import InputError, SafeworkError
from safework_cli.data.row import Row

if TYPE_CHECKING:
    from safework_cli.core.artifacts import Artifact
    from safework_cli.core.stage import Plan


def reads_images(folder: Path) -> bool:
    """Whether the model in a folder has a vision tower; so is a folder whose config.json cannot be read, which loading refuses."""
    try:
        return json.loads((folder / "config.json").read_bytes()).get("vision_config") is not None
    except (OSError, ValueError, AttributeError):
        return True


def refuse_unread_images(rows: Sequence[Row], data: str, model: Artifact | None, max_dropped: float = 0.0) -> None:
    """Refuses rows with images where the model reads text only.

    Args:
        data: reference of the rows.
        model: None for one that is served.
        max_dropped: the share of the rows that the stage may leave out.

    Raises:
        InputError: more rows than that have images, and the model has no vision tower.
    """
    with_images = [row for row in rows if row.images]
    if model is None or len(with_images) <= max_dropped * len(rows) or reads_images(model.path):
        return
    tolerated = f"; max_dropped accepts {max_dropped:.0%} of the rows" if max_dropped else ""
    raise InputError(
        f"{len(with_images):,} of {len(rows):,} rows of {data} have images, and {model.ref} reads text only",
        f"its config.json has no vision_config{tolerated}",
        "take a vision-language model, or rows without images",
    )


def plan_images(plan: Plan, read: Callable[[], Sequence[Row]], data: str, model: Artifact | None, max_dropped: float = 0.0) -> None:
    """Adds to a plan what ``refuse_unread_images`` refuses. Rows that cannot be read are refused by the run, which says why."""
    try:
        rows = read()
    except SafeworkError:
        return
    try:
        refuse_unread_images(rows, data, model, max_dropped)
    except SafeworkError as refusal:
        plan.refusals.append(refusal)
