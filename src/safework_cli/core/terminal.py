"""The way of every text to a person's terminal: nothing in it acts on the terminal, and a lost stderr ends nothing.

Names of rows and files, fields of manifests, model text and error texts come from outside. They are made visible here, at the boundary:
``main`` puts ``Outlet`` in the place of ``sys.stderr``, and every rich console is made by ``console``.
"""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from safework_cli.core.errors import SafeworkError

if TYPE_CHECKING:
    from rich.console import Console

# Controls (line feed and tab excepted), marks that turn or hide text, line separators, tags, lone surrogates.
# The joiners U+200C and U+200D stay: Persian and emoji need them.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """Shows every control and direction mark as a sign: a reply must not hide or reorder what is around it."""
    return _UNSAFE.sub(_sign, text)


def _sign(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class Outlet:
    """A text stream in which control characters, escape sequences and marks that turn or hide text are shown as signs.

    Args:
        inner: the stream to write to.
        raw: pass text on as it is, for a writer that makes it visible itself and steers the terminal.
        required: raise SafeworkError for what cannot be written. Otherwise it is dropped: a stderr that is full or closed must not
            end the run.
    """

    def __init__(self, inner: Any, *, raw: bool = False, required: bool = False):
        self.inner, self._raw, self._required = inner, raw, required

    def write(self, text: str) -> int:
        try:
            self.inner.write(text if self._raw else visible(text))
        except (OSError, ValueError) as error:
            self._lost(error)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self.inner.flush()
        except (OSError, ValueError) as error:
            self._lost(error)

    def _lost(self, error: Exception) -> None:
        """Points the stream's descriptor at nothing, so that what is still buffered cannot fail once more when the process ends."""
        try:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.inner.fileno())
            os.close(nothing)
            self.inner.flush()
        except (OSError, ValueError):
            pass
        if isinstance(error, BrokenPipeError) and self._required:
            raise error  # the reader has closed the pipe
        if self._required:
            raise SafeworkError(
                f"stdout cannot be written ({getattr(error, 'strerror', None) or error})",
                "what the command was asked for is made, but not printed",
                "give it a stdout and run the same command again",
            ) from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class _Closed(io.TextIOBase):
    """A stdout that the process was started without."""

    def write(self, _: str) -> int:
        raise OSError(errno.EBADF, "it is closed")


def guard() -> None:
    """Makes ``sys.stderr`` and ``sys.stdout`` outlets, of which stdout is required.

    Where the process was started without one of them, its number is taken by a file that goes nowhere: the next file that is opened would
    get it otherwise, and what libraries print with it.
    """
    for number in (1, 2):
        try:
            os.fstat(number)
        except OSError:
            nothing = os.open(os.devnull, os.O_RDWR)
            if nothing != number:
                os.dup2(nothing, number)
                os.close(nothing)
    if not isinstance(sys.stderr, Outlet):
        sys.stderr = Outlet(sys.stderr or open(2, "w", closefd=False, encoding="utf-8"))  # noqa: SIM115
    if not isinstance(sys.stdout, Outlet):
        sys.stdout = Outlet(sys.stdout or _Closed(), raw=True, required=True)


def say(text: str) -> None:
    """A line for people, on stderr."""
    stream = sys.stderr if isinstance(sys.stderr, Outlet) else Outlet(sys.stderr)
    stream.write(text + "\n")
    stream.flush()


def console(*, stderr: bool = False, **settings: Any) -> Console:
    """A rich console that takes no markup and shows what would act on the terminal."""
    from rich.console import Console, ConsoleOptions
    from rich.segment import Segment

    class VisibleConsole(Console):
        def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(visible(segment.text), segment.style)

    if stderr:
        inner = sys.stderr.inner if isinstance(sys.stderr, Outlet) else sys.stderr
        settings["file"] = Outlet(inner, raw=True)
    return VisibleConsole(**{"markup": False, "highlight": False, "emoji": False} | settings)
