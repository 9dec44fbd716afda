"""Prefixes with Monte-Carlo values: which are trained on, and the targets of the routing. Torch-free and pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev

from safework_cli.core.errors import InputError
from safework_cli.data.row import Row
from safework_verifier.rows import hold_out

MIN_GROUPS = 8


@dataclass(slots=True)
class Prefixes:
    """The rows, split by prompt."""

    train: list[Row] = field(default_factory=list)
    calibration: list[Row] = field(default_factory=list)
    report: list[Row] = field(default_factory=list)


def valued_rows(rows: Sequence[Row], ref: str) -> tuple[list[Row], list[str]]:
    """The rows, and the names of their principles in order.

    Raises:
        InputError: a row has no values or wrong ones, or a principle has values for too few groups of prompts.
    """
    groups: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        values = row.meta.get("values")
        if not isinstance(values, dict) or not values or row.reply is None:
            what = f"row '{row.id}' of {ref} has no Monte-Carlo values"
            raise InputError(what, "", "safework verifier rollouts makes such rows")
        for name, value in values.items():
            if not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
                raise InputError(f"row '{row.id}' of {ref}: the value of '{name}' is {value!r}", "values are in [0, 1]")
            groups[name].add(row.group)
    if not groups:
        raise InputError(f"{ref} has no rows", "there is nothing to train on")
    for name, of_principle in sorted(groups.items()):
        if len(of_principle) < MIN_GROUPS:
            raise InputError(
                f"principle '{name}' has prompts of too few groups ({len(of_principle)})",
                f"{MIN_GROUPS} are needed: they are split by group, so that related prompts stay on one side",
                "roll out more prompts",
            )
    return list(rows), sorted(groups)


def split_by_prompt(rows: Sequence[Row], eval_fraction: float, seed: int) -> Prefixes:
    """Splits by prompt, so that each principle comes close to its share on every side."""
    kinds = {name: number for number, name in enumerate(sorted({"+".join(sorted(row.meta["values"])) for row in rows}))}

    def split(of: Sequence[Row], share: float, draw: int) -> list[bool]:
        labels = [kinds["+".join(sorted(row.meta["values"]))] for row in of]
        return hold_out(labels, [row.group for row in of], [row.source for row in of], share, draw)

    held = split(rows, eval_fraction, seed)
    parts = Prefixes([row for row, out in zip(rows, held, strict=True) if not out])
    outside = [row for row, out in zip(rows, held, strict=True) if out]
    reported = split(outside, 0.5, seed + 1)
    parts.report = [row for row, report in zip(outside, reported, strict=True) if report]
    parts.calibration = [row for row, report in zip(outside, reported, strict=True) if not report]
    if not parts.train or not parts.report or not parts.calibration:
        raise InputError(f"{len(rows)} prefixes cannot be split", "one side would be empty", "roll out more prompts")
    return parts


def routing_targets(rows: Sequence[Row], principles: Sequence[str]) -> dict[str, list[float]]:
    """Prompt group → target of its routing: each principle's share of what is still undecided in the prompt's prefixes.

    The weight of a principle is the standard deviation of its values over the prompt's prefixes: where no step changes the value, there is
    nothing to guide. Prompts whose prefixes all have equal values spread evenly over the principles that judge them. (Our definition: no
    source defines the routing.)
    """
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for name, value in row.meta["values"].items():
            values[row.group][name].append(value)
    targets = {}
    for group, of_group in values.items():
        spread = [pstdev(of_group[name]) if name in of_group else 0.0 for name in principles]
        if sum(spread) == 0.0:
            spread = [float(name in of_group) for name in principles]
        targets[group] = [weight / sum(spread) for weight in spread]
    return targets


def mean_values(rows: Sequence[Row], principles: Sequence[str]) -> list[float]:
    """Mean of each principle's values: the baseline that ignores the prefix."""
    return [
        fmean(values) if (values := [row.meta["values"][name] for row in rows if name in row.meta["values"]]) else 0.5
        for name in principles
    ]
