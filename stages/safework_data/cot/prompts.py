"""The prompts that ``safework data cot`` sends to the teacher."""

from __future__ import annotations

from collections.abc import Callable

from safework_cli.core.artifacts import Artifact
from safework_cli.core.errors import InputError
from safework_cli.data.dataset import prompts_of
from safework_cli.data.row import Row
from safework_data.cot.config import CotConfig


def asked_rows(config: CotConfig, data: Artifact, say: Callable[[str], None] = lambda _: None) -> list[Row]:
    """The rows whose prompts the teacher answers.

    Raises:
        InputError: there are none.
    """
    rows = prompts_of(data, tasks=config.tasks, sources=config.sources, limit=config.limit, say=say)
    if config.thought == "teacher":
        return rows
    with_answer = [row for row in rows if row.answer]
    if not with_answer:
        raise InputError(f"no prompt of {data.ref} has a gold answer", "thought=answer ends each reply with it", "choose other tasks")
    if left_out := len(rows) - len(with_answer):
        say(f"{left_out} prompts without a gold answer are left out")
    return with_answer
