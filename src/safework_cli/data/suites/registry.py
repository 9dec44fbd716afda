"""Suites by name: those of the entry points in the group ``safework.suites``, ours and a third party's alike.

[project.entry-points."safework.suites"]
my-suite = "my_package.suites:my_suite"      # a ``Suite`` whose name is my-suite
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from safework_cli.core.errors import InputError
from safework_cli.core.registry import entries, load_registered
from safework_cli.data.row import Row
from safework_cli.data.suites.suite import Suite

GROUP = "safework.suites"


class _Registered(Mapping[str, Suite]):
    """Name → suite. Names are listed without importing anything; a suite is imported when it is read."""

    def __getitem__(self, name: str) -> Suite:
        if name not in entries(GROUP):
            raise KeyError(name)
        return suite_named(name)

    def __iter__(self) -> Iterator[str]:
        return iter(entries(GROUP))

    def __len__(self) -> int:
        return len(entries(GROUP))


SUITES: Mapping[str, Suite] = _Registered()


def suite_named(name: str) -> Suite:
    """Returns the suite. Raises ConfigError with the nearest name if none is registered, or if what is registered is not a suite."""
    suite: Suite = load_registered(GROUP, name, "suite", Suite)
    return suite


def load_suite(name: str, folder: Path) -> list[Row]:
    """Reads a public set as its authors published it.

    Args:
        name: a key of ``SUITES``.
        folder: the folder of public sets, one folder for each set.

    Raises:
        ConfigError: no suite of that name is registered.
        InputError: the set is not below ``folder``, or is broken, or has no rows.
    """
    suite = suite_named(name)
    path = suite.path(folder)
    rows = list(suite.read(suite, path))
    if not rows:
        why = "an evaluation without rows has no result"
        raise InputError(f"suite {name}: {path} holds no rows", why, f"download it again from {suite.upstream}")
    return rows
