"""The way of every text to a person's terminal: nothing in it acts on the terminal, and a lost stderr ends nothing.

Names of rows and files, fields of manifests, model text and error texts come from outside. They are made visible here, at the boundary:
``main`` puts ``Outlet`` in the place of ``sys.stderr``, and every rich console is made by ``console``.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

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

    What cannot be written is dropped: nobody reads a stderr that is full, closed or gone, and the run matters more.

    Args:
        inner: the stream to write to.
        raw: pass text on as it is, for a writer that makes it visible itself and steers the terminal.
    """

    def __init__(self, inner: Any, *, raw: bool = False):
        self.inner, self._raw = inner, raw

    def write(self, text: str) -> int:
        try:
            self.inner.write(text if self._raw else visible(text))
        except (OSError, ValueError):
            self._lose()
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self.inner.flush()
        except (OSError, ValueError):
            self._lose()

    def _lose(self) -> None:
        """Points the stream's descriptor at nothing, so that what is still buffered cannot fail once more when the process ends."""
        try:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.inner.fileno())
            os.close(nothing)
            self.inner.flush()
        except (OSError, ValueError):
            pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def guard_stderr() -> None:
    """Makes ``sys.stderr`` an outlet. Where the process was started without a stderr, there is one that goes nowhere: the next file that
    is opened would get its number, and the messages with it."""
    try:
        os.fstat(2)
    except OSError:
        nothing = os.open(os.devnull, os.O_RDWR)
        if nothing != 2:
            os.dup2(nothing, 2)
            os.close(nothing)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    if not isinstance(sys.stderr, Outlet):
        sys.stderr = Outlet(sys.stderr)  # type: ignore[assignment]


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
        def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:  # type: ignore[override]
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(visible(segment.text), segment.style)

    if stderr:
        inner = sys.stderr.inner if isinstance(sys.stderr, Outlet) else sys.stderr
        settings["file"] = Outlet(inner, raw=True)
    return VisibleConsole(**{"markup": False, "highlight": False, "emoji": False} | settings)
