"""Figures of the rules on maths."""

from __future__ import annotations

import argparse

from judges_common import Bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this subject."""


def bars(args: argparse.Namespace) -> list[Bar]:
    return []
