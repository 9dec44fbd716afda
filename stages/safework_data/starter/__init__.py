"""The starter set: small, written for this toolkit, and enough to climb the whole ladder on a CPU.

Every row is put together from hand-written parts (``parts/*.yaml``) by seeded draws. The harmful prompts are one-line requests of the kind
that public benchmarks print, and no reply helps with one: the unsafe replies that the safety verifier learns from are hollow.
"""

from __future__ import annotations

from collections.abc import Set
from types import ModuleType

from safework_cli.data.row import Row
from safework_data.starter import general, knowledge, safety, search, value
from safework_data.starter.tables import Item, Unit, allocate, dice, spread
from safework_data.starter.verdicts import judged_rows
from safework_data.starter.world import passages

__all__ = ["build", "passages"]

SUBSETS = ("cot", "rl", "verifier", "heldout")
MODULES: dict[str, ModuleType] = {"safety": safety, "value": value, "knowledge": knowledge, "general": general, "search": search}
COUNTS = {
    "safety": {"cot": 300, "rl": 80, "verifier": 330, "heldout": 60},
    "value": {"cot": 150, "rl": 70, "heldout": 60},
    "knowledge": {"cot": 230, "rl": 90, "heldout": 60},
    "general": {"cot": 200, "rl": 75, "heldout": 60},
    "search": {"cot": 90, "rl": 40, "heldout": 40},
}
"""Units of each task and subset; a unit of safety is a pair of prompts."""
LANGUAGES = {"en": 0.8, "zh": 0.2}
HELD_OUT = 0.22
"""Share of the groups, in each task and language, that only ``heldout`` sees."""


def build(seed: int = 0) -> dict[str, list[Row]]:
    """The rows of the four subsets.

    ``cot`` has worked replies, ``verifier`` judged ones, ``rl`` and ``heldout`` are prompts only. ``heldout`` shares no group with the
    others; in each of its kinds (a task; for safety, harmful or not) every prefix is a fair sample, and the n-th harmful prompt is the
    partner of the n-th benign one.

    Args:
        seed: decides which groups are held out, every draw, and the order.
    """
    held = _held_out_groups(seed)
    lanes: dict[str, list[list[Unit]]] = {subset: [] for subset in SUBSETS}
    for task in MODULES:
        for subset, units in _draw(task, held, seed).items():
            lanes[subset].append(units)
    drawn = {subset: _interleave(lanes[subset]) for subset in SUBSETS}
    return {
        "cot": [item.row("cot", worked=True) for item in _flat(drawn["cot"])],
        "rl": [item.row("rl") for item in _flat(drawn["rl"])],
        "verifier": judged_rows(drawn["verifier"], seed),
        "heldout": [item.row("heldout", split="test") for item in _flat(drawn["heldout"])],
    }


def _draw(task: str, held: Set[str], seed: int) -> dict[str, list[Unit]]:
    """The units of a task for each subset that takes some. No unit is drawn twice."""
    module = MODULES[task]
    units = search.units(seed, unseen=held) if task == "search" else module.units(seed)
    counts = COUNTS[task]
    pools: dict[tuple[str, str, bool], list[Unit]] = {}
    for unit in units:
        pools.setdefault((unit[0].language, unit[0].form, unit[0].group in held), []).append(unit)
    # within a pool every prefix covers all groups evenly, so the subsets can be cut from it one after the other
    for name, pool in pools.items():
        pools[name] = spread(pool, lambda unit: unit[0].group, dice(seed, "draw", task, *name))
    drawn = {}
    for subset, count in counts.items():
        chosen: list[Unit] = []
        shares: dict[str, float] = getattr(module, "FORMS_OF_SUBSET", {}).get(subset, module.FORMS)
        for language, of_language in allocate(count, LANGUAGES).items():
            forms = {form: share for form, share in shares.items() if (language, form, False) in pools}
            for form, wanted in allocate(of_language, forms).items():
                pool = pools[language, form, subset == "heldout"]
                if len(pool) < wanted:
                    raise ValueError(f"starter set: {task}/{language}/{form} has {len(pool)} units left for {subset}, {wanted} wanted")
                chosen += pool[:wanted]
                del pool[:wanted]
        drawn[subset] = spread(chosen, lambda unit: (unit[0].language, unit[0].form), dice(seed, "order", task, subset))
    return drawn


def _held_out_groups(seed: int) -> Set[str]:
    """A share of the groups of each task and language, spread over the categories. A group that two tasks share is decided once."""
    held: set[str] = set()
    decided: set[str] = set()
    for task in ("search", *MODULES):  # knowledge asks about passages of the search world
        units = MODULES[task].units(seed)
        for language in LANGUAGES:
            groups: dict[str, str] = {}
            for unit in units:
                if unit[0].language == language and unit[0].group not in decided:
                    groups.setdefault(unit[0].group, unit[0].category)
            order = spread(list(groups), groups.__getitem__, dice(seed, "held out", task, language))
            held.update(order[: round(len(order) * HELD_OUT)])
            decided.update(groups)
    return held


def _interleave(lanes: list[list[Unit]]) -> list[Unit]:
    """Merges the tasks so that each keeps its own order and every prefix holds all of them in about their shares."""
    placed = [((position + 0.5) / len(lane), number, unit) for number, lane in enumerate(lanes) for position, unit in enumerate(lane)]
    return [unit for _, _, unit in sorted(placed, key=lambda place: place[:2])]


def _flat(units: list[Unit]) -> list[Item]:
    return [item for unit in units for item in unit]
