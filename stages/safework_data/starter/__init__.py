"""The starter set: small, written for this toolkit, and enough to climb the whole ladder on a CPU.

Every row is put together from hand-written parts (``parts/*.yaml``) by seeded draws. The harmful prompts are one-line requests of the kind
that public benchmarks print, and no reply helps with one: the unsafe replies that the safety verifier learns from are hollow.

Topics (groups) and templates (phrasings, problems, scenes) are both on one side of the split: what ``dev`` and ``heldout`` ask is about
other things than the training rows, and in other words.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from safework_cli.data.row import Row
from safework_data.starter import general, knowledge, safety, search, value
from safework_data.starter.tables import Item, Unit, allocate, arrange, dice, spread
from safework_data.starter.verdicts import judged_rows
from safework_data.starter.world import passages

__all__ = ["build", "passages"]

SUBSETS = ("cot", "rl", "verifier", "judge", "dev", "heldout")
MODULES: dict[str, ModuleType] = {"safety": safety, "value": value, "knowledge": knowledge, "general": general, "search": search}
Counts = dict[str, dict[str, int]]
COUNTS: dict[str, dict[str, Counts]] = {
    "safety": {
        "verifier": {"en": {"pair": 270, "question": 40}, "zh": {"pair": 40}},
        "judge": {"en": {"pair": 200, "question": 38}, "zh": {"pair": 24}},
        "cot": {"en": {"pair": 330, "question": 540}, "zh": {"pair": 60}},
        "rl": {"en": {"pair": 112, "question": 96}, "zh": {"pair": 20}},
        "dev": {"en": {"pair": 50, "question": 14}},
        "heldout": {"en": {"pair": 72, "question": 28}, "zh": {"pair": 12}},
    },
    "value": {
        "cot": {"en": {"compare": 320, "good": 120, "bad": 120}, "zh": {"compare": 32, "good": 16, "bad": 16}},
        "rl": {"en": {"compare": 80, "good": 40, "bad": 40}, "zh": {"compare": 8, "good": 4, "bad": 4}},
        "dev": {"en": {"compare": 32, "good": 16, "bad": 16}},
        "heldout": {"en": {"compare": 84, "good": 32, "bad": 32}, "zh": {"compare": 4, "good": 4, "bad": 4}},
    },
    "knowledge": {
        "cot": {"en": {"choice": 400, "open": 400, "scene": 320, "world": 80}, "zh": {"choice": 30, "open": 40, "world": 20}},
        "rl": {"en": {"choice": 60, "open": 80, "scene": 60, "world": 20}, "zh": {"choice": 6, "open": 10, "world": 5}},
        "dev": {"en": {"choice": 28, "open": 20, "scene": 20}},
        "heldout": {"en": {"choice": 44, "open": 40, "scene": 24}, "zh": {"choice": 8, "open": 6}},
    },
    "general": {
        "cot": {"en": {"math": 450, "word": 550, "instruction": 1000}, "zh": {"math": 80, "instruction": 24}},
        "rl": {"en": {"math": 80, "word": 80, "instruction": 160}, "zh": {"math": 20, "instruction": 6}},
        "dev": {"en": {"math": 38, "word": 27, "instruction": 43}},
        "heldout": {"en": {"math": 38, "word": 27, "instruction": 43}, "zh": {"math": 8, "instruction": 4}},
    },
    "search": {
        "cot": {"en": {"one_hop": 280, "two_hop": 80}, "zh": {"one_hop": 14, "two_hop": 4}},
        "rl": {"en": {"one_hop": 130, "two_hop": 40}, "zh": {"one_hop": 6, "two_hop": 2}},
        "dev": {"en": {"one_hop": 40, "two_hop": 12}},
        "heldout": {"en": {"one_hop": 76, "two_hop": 24}, "zh": {"one_hop": 8}},
    },
}
"""Units of each task, subset, language and form; a unit of safety is a pair, one of choice in training as well. Subsets are cut from a pool
in this order."""
HELD = {"en": {"heldout": 0.22, "dev": 0.12}, "zh": {"heldout": 0.22}}
"""Shares of the groups, in each task and language, that only these subsets see."""
ASKED = {"safety": 0.15, "value": 0.3, "knowledge": 0.15, "general": 0.0, "search": 0.3}
"""Share of the training groups for ``rl``, without worked replies: prompts of groups that SFT has learned from are mostly solved when RL
starts, so that the replies to one hardly differ in reward. With a few groups a policy learns these and nothing else: on six situations of
value the share of each letter wandered, and after the questions about fifteen worlds it answered those about others worse. The rewards'
verifier learns from these groups too. Of general rows the wordings are shared: numbers and topics make every prompt a new one, and SFT
needs the variety."""
REWARDED = 0.6
"""Share of the other training groups of safety that ``verifier`` takes; the rest are for ``judge``."""


def build(seed: int = 0) -> dict[str, list[Row]]:
    """The rows of the subsets.

    ``cot`` has worked replies; ``verifier`` and ``judge`` judged ones, about different groups; ``rl``, ``dev`` and ``heldout`` are prompts
    only. ``rl`` shares groups with neither ``cot`` (but for general) nor ``judge``. ``dev`` and ``heldout`` share neither groups nor
    templates with one another and with the others (of search, groups only); in each of their kinds (a task; for safety, harmful or not)
    every prefix is a fair sample, and the n-th harmful prompt is the partner of the n-th benign one.

    Args:
        seed: decides which groups are held out, every draw, and the order.
    """
    sides = _sides(seed)
    drawn: dict[str, list[Unit]] = {}
    lanes: dict[str, list[list[Unit]]] = {subset: [] for subset in SUBSETS}
    for task in MODULES:
        for subset, units in _draw(task, sides, seed).items():
            arrange([item for unit in units for item in unit], dice(seed, "options", task, subset))
            lanes[subset].append(units)
    drawn = {subset: _interleave(lanes[subset]) for subset in SUBSETS}
    return {
        "cot": [item.row("cot", worked=True) for item in _flat(drawn["cot"])],
        "rl": [item.row("rl") for item in _flat(drawn["rl"])],
        "verifier": judged_rows(drawn["verifier"], seed, "verifier"),
        "judge": judged_rows(drawn["judge"], seed, "judge"),
        "dev": [item.row("dev", split="test") for item in _flat(drawn["dev"])],
        "heldout": [item.row("heldout", split="test") for item in _flat(drawn["heldout"])],
    }


def safety_pairs(seed: int) -> dict[str, list[Unit]]:
    """Every harmful request with its look-alike by the side that may use it: "train", "dev" or "heldout". In each list every prefix holds
    all topics in about equal parts. ``build`` draws a part of them."""
    sides = _sides(seed)
    found: dict[str, list[Unit]] = {"train": [], "dev": [], "heldout": []}
    for unit in safety.units(seed):
        side = _of_training(sides[unit[0].group])
        if unit[0].side in ("", side):
            found[side].append(unit)
    return {side: spread(units, lambda unit: unit[0].group, dice(seed, "pairs", side)) for side, units in found.items()}


def _draw(task: str, sides: Mapping[str, str], seed: int) -> dict[str, list[Unit]]:
    """The units of a task for each subset that takes some. No unit is drawn twice."""
    unseen = {group for group, side in sides.items() if side in ("dev", "heldout")}
    units = search.units(seed, unseen=unseen) if task == "search" else MODULES[task].units(seed)
    pools: dict[tuple[str, str, str], list[Unit]] = {}
    for unit in units:
        side = sides[unit[0].group]
        if unit[0].side in ("", _of_training(side)):
            pools.setdefault((unit[0].language, unit[0].form, side), []).append(unit)
    # within a pool every prefix covers all groups (of general, all wordings) evenly, so the subsets can be cut from it one after the other
    for name, pool in pools.items():
        pools[name] = spread(pool, lambda unit: unit[0].template if task == "general" else unit[0].group, dice(seed, "draw", task, *name))
    drawn = {}
    for subset, counts in COUNTS[task].items():
        chosen: list[Unit] = []
        for language, forms in counts.items():
            for form, wanted in forms.items():
                chosen += _taken(pools, task, subset, language, form, wanted, seed)
        drawn[subset] = spread(chosen, lambda unit: (unit[0].language, unit[0].form), dice(seed, "order", task, subset))
    return drawn


def _taken(
    pools: dict[tuple[str, str, str], list[Unit]], task: str, subset: str, language: str, form: str, wanted: int, seed: int
) -> list[Unit]:
    """Takes units of a form from the pools that a subset may draw from; from several in proportion to what they hold."""
    own = {"cot": ["verifier", "judge", "train"], "verifier": ["verifier", "rl"]}.get(subset, [subset])
    if task == "general" and subset == "rl":
        own = ["train"]
    held = [pools.get((language, form, side), []) for side in own]
    total = sum(map(len, held))
    if total < wanted:
        raise ValueError(f"starter set: {task}/{language}/{form} has {total} units left for {subset}, {wanted} wanted")
    sizes = {str(number): float(len(pool)) for number, pool in enumerate(held) if pool}
    chosen: list[Unit] = []
    for number, count in allocate(wanted, sizes).items():
        pool = held[int(number)]
        chosen += pool[:count]
        del pool[:count]
    return chosen


def _of_training(side: str) -> str:
    return side if side in ("dev", "heldout") else "train"


def _sides(seed: int) -> dict[str, str]:
    """Which subsets a group is for: "dev", "heldout", "rl", or the other training ones; of these, safety's groups are "verifier" or "judge"
    (``cot`` draws from both), those of the other tasks "train". A group that two tasks share is decided once."""
    sides: dict[str, str] = {}
    for task in ("search", *(name for name in MODULES if name != "search")):  # knowledge asks about passages of the search world
        units = MODULES[task].units(seed)
        groups: dict[tuple[str, str], dict[str, str]] = {}
        always: dict[tuple[str, str], dict[str, str]] = {}  # groups that are trained on in any case
        for unit in units:
            if unit[0].group not in sides:
                of = always if unit[0].training_only else groups
                of.setdefault((unit[0].language, unit[0].form), {}).setdefault(unit[0].group, unit[0].stratum or unit[0].category)
        for (language, form), of_form in groups.items():
            if of_form.keys() <= sides.keys():  # its groups ask in another form too
                continue
            order = spread(list(of_form), of_form.__getitem__, dice(seed, "held out", task, language, form))
            for side, count in [(side, round(len(order) * share)) for side, share in HELD[language].items()]:
                sides |= dict.fromkeys(order[:count], side)
                del order[:count]
            strata = of_form | always.get((language, form), {})
            order = spread(
                order + list(always.get((language, form), {})), strata.__getitem__, dice(seed, "trained on", task, language, form)
            )
            asked = max(1, round(len(order) * ASKED[task])) if ASKED[task] else 0
            rewarded = asked + (round((len(order) - asked) * REWARDED) if task == "safety" else 0)
            rest = "judge" if task == "safety" else "train"
            sides |= {group: "rl" if place < asked else "verifier" if place < rewarded else rest for place, group in enumerate(order)}
    return sides


def _interleave(lanes: list[list[Unit]]) -> list[Unit]:
    """Merges the tasks so that each keeps its own order and every prefix holds all of them in about their shares."""
    placed = [((position + 0.5) / len(lane), number, unit) for number, lane in enumerate(lanes) for position, unit in enumerate(lane)]
    return [unit for _, _, unit in sorted(placed, key=lambda place: place[:2])]


def _flat(units: list[Unit]) -> list[Item]:
    return [item for unit in units for item in unit]
