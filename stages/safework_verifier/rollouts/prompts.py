"""The rows whose prompts are rolled out, for the plan and the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from safework_cli.data.dataset import training_rows
from safework_verifier.rollouts.config import RolloutsConfig

if TYPE_CHECKING:
    from safework_cli.core.artifacts import Artifact
    from safework_cli.data.row import Row


def prompts_of(config: RolloutsConfig, data: Artifact, say: Callable[[str], object] | None = None) -> list[Row]:
    """Those of the tasks asked for, up to the limit.

    Args:
        say: as in ``training_rows``.
    """
    return [row for row in training_rows(data, say) if not config.tasks or row.task in config.tasks][: config.limit]
