"""The errors of safework: what happened, why, and what to type next.

One root, one exit code per family. A command that fails prints ``str(error)`` on stderr without a traceback;
anything that is not a ``SafeworkError`` is an internal error, a bug (exit 1 too), and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

EXIT_DONE = 0
EXIT_ERROR = 1
EXIT_CONFIG = 2
EXIT_INPUT = 3
EXIT_GATE = 4
EXIT_TOO_MANY_FAILED = 5
EXIT_AGAIN = 75
EXIT_INTERRUPTED = 130


class SafeworkError(Exception):
    """Root of every error that a user can act on.

    Args:
        what: what happened, one sentence that names the thing (key, file, row).
        why: the cause or the rule that was broken; may be empty when ``what`` already says it.
        do: what to type or change next.
    """

    exit_code = EXIT_ERROR

    def __init__(self, what: str, why: str = "", do: str = ""):
        super().__init__(what, why, do)  # all three, so that the error survives pickling between processes
        self.what, self.why, self.do = what, why, do

    def __str__(self) -> str:
        text = self.what
        if self.why:
            text += f"\n  why: {self.why}"
        if self.do:
            text += f"\n  do:  {self.do}"
        return text


class ConfigError(SafeworkError, ValueError):
    """The request itself is wrong: an unknown key, a wrong type, an impossible combination."""

    exit_code = EXIT_CONFIG


class OutOfMemory(ConfigError):
    """What was asked for takes more memory than there is."""


class InputError(SafeworkError):
    """An input is missing, ambiguous, of the wrong kind, damaged, or holds nothing usable."""

    exit_code = EXIT_INPUT


class GateFailed(SafeworkError):
    """A gate of what is to be used did not hold, or a limit that the settings give a run (such as ``max_idle_steps``) was passed."""

    exit_code = EXIT_GATE


class TooManyFailed(SafeworkError):
    """More items failed than the configuration tolerates."""

    exit_code = EXIT_TOO_MANY_FAILED


class RunAgain(SafeworkError):
    """Nothing is lost and the same command continues: after SIGTERM, a full disk, or a run held by another process."""

    exit_code = EXIT_AGAIN


class Held(RunAgain):
    """Another process holds what is needed: it will let go of it."""


class Interrupted(SafeworkError):
    """The user pressed Ctrl-C."""

    exit_code = EXIT_INTERRUPTED


def nearest(name: str, valid: Iterable[str]) -> str:
    """Returns ``"; did you mean 'x'?"`` for the closest valid name, or an empty string."""
    valid = list(valid)
    close = get_close_matches(name, valid, n=1, cutoff=0.6)
    if not close:  # `lr` is far from `learning_rate` by spelling, near by leaf: compare the last part too
        leaves = {item.rsplit(".", 1)[-1]: item for item in valid}
        found = get_close_matches(name.rsplit(".", 1)[-1], list(leaves), n=1, cutoff=0.6)
        close = [leaves[found[0]]] if found else []
    return f"; did you mean '{close[0]}'?" if close else ""
