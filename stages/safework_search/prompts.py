"""The rows that ``safework search`` answers, for its plan and its run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safework_cli.data.dataset import read_dataset
from safework_search.config import GuidedConfig

if TYPE_CHECKING:
    from safework_cli.core.artifacts import Artifact
    from safework_cli.data.row import Row


def prompts_of(config: GuidedConfig, prompts: Artifact) -> list[Row]:
    """Those of the tasks asked for, up to the limit."""
    return [row for row in read_dataset(prompts) if not config.tasks or row.task in config.tasks][: config.limit]
