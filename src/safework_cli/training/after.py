"""What runs after training, and must not lose the trained model."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TypeVar

from safework_cli.core.errors import Interrupted, RunAgain, SafeworkError
from safework_cli.core.stage import WorkDir
from safework_cli.core.system_errors import explain

Measured = TypeVar("Measured")


def after_training(what: str, work: WorkDir, measure: Callable[[], Measured]) -> tuple[Measured | None, str]:
    """Measures what has been trained, and lets no error of it lose what was trained.

    Args:
        what: what is done, for people ("sampling").

    Returns:
        The result and an empty text, or None and what failed (for ``Outcome.not_measured``). What asks for the same command again (a
        signal, a full disk) is raised as ever.
    """
    try:
        return measure(), ""
    except (Interrupted, RunAgain):
        raise
    except Exception as error:
        if isinstance(explain(error), RunAgain):  # a full disk, in whatever words a library has for it
            raise
        said = (str(error).splitlines() or [""])[0] if isinstance(error, SafeworkError) else f"{type(error).__name__}: {error}"
        why = f"{what} failed after training: {said[:500]}"
        work.progress.warn(f"{why}; what was trained is kept")
        work.progress.event("failed_after_training", what=what, trace=traceback.format_exc())
        return None, why
