"""Arithmetic with worked steps, and instructions whose keeping a program can check."""

from __future__ import annotations

from safework_data.starter import arithmetic, instructions
from safework_data.starter.tables import Unit


def units(seed: int) -> list[Unit]:
    return [*arithmetic.units(seed), *instructions.units(seed)]
