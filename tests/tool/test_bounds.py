"""Every number in every setting of every stage has bounds, and what lies outside them is refused by the schema."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError

from safework_cli.core.config import resolve
from safework_cli.core.config_errors import known_keys
from safework_cli.core.errors import ConfigError
from safework_cli.core.registry import load_stage, stage_entries
from safework_cli.core.settings import StageConfig


class Number:
    """A number in a configuration.

    Attributes:
        model, field: where it stands.
        kind: int or float.
        wrap: from a number to a value of the field, which may hold it in a list or a mapping.
        low, high: the bounds, with whether they are allowed themselves; None where there is none.
    """

    def __init__(self, model: type[BaseModel], field: str, kind: type, wrap: Any, metadata: list[Any]):
        self.model, self.field, self.kind, self.wrap = model, field, kind, wrap
        self.low = self.high = None
        for item in metadata:
            for name in ("ge", "gt"):
                if (value := getattr(item, name, None)) is not None:
                    self.low = (value, name == "ge")
            for name in ("le", "lt"):
                if (value := getattr(item, name, None)) is not None:
                    self.high = (value, name == "le")

    def __repr__(self) -> str:
        return f"{self.model.__name__}.{self.field}"

    def takes(self, value: Any) -> bool:
        """Whether the field takes a value, whatever the others are."""
        blank = self.model.model_construct()
        try:
            self.model.__pydantic_validator__.validate_assignment(blank, self.field, self.wrap(value))
        except ValidationError as error:
            return all(detail["loc"][:1] != (self.field,) for detail in error.errors())
        except (AttributeError, TypeError):  # a check of the whole block met a field that the blank one lacks: the value had passed
            return True
        return True


def numbers(model: type[BaseModel], seen: set[type]) -> Iterator[Number]:
    if model in seen:
        return
    seen.add(model)
    for name, field in model.model_fields.items():
        yield from _inside(model, name, field.annotation, list(field.metadata), lambda value: value, seen)


def _inside(model: type[BaseModel], name: str, kind: Any, metadata: list[Any], wrap: Any, seen: set[type]) -> Iterator[Number]:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        flat = [inner for item in arguments[1:] for inner in (item, *getattr(item, "metadata", []))]
        yield from _inside(model, name, arguments[0], [*metadata, *flat], wrap, seen)
    elif kind in (int, float):
        yield Number(model, name, kind, wrap, metadata)
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        yield from numbers(kind, seen)
    elif origin is list:
        yield from _inside(model, name, arguments[0], [], lambda value: wrap([value]), seen)
    elif origin is dict:
        key = "safety" if "task" in str(arguments[0]) else "key"
        if model.__name__ in ("FileSource", "HubSource"):
            key = "answer"
        others = {"refusal": 1.0} if name == "rewards" and arguments[1] is not dict else {}  # of one task, not all weights may be 0
        inner = (lambda value: wrap({key: value})) if get_origin(arguments[1]) is dict else (lambda value: wrap({key: value, **others}))
        yield from _inside(model, name, arguments[1], [], inner, seen)
    elif origin is not Literal:
        for argument in arguments:
            yield from _inside(model, name, argument, metadata, wrap, seen)


def every_number() -> list[Number]:
    seen: set[type] = set()
    return [number for stage in stage_entries() for number in numbers(load_stage(stage).Config, seen)]


NUMBERS = every_number()


def test_the_walk_meets_settings_of_every_depth():
    met = {repr(number) for number in NUMBERS}
    assert {"M3Config.rewards", "M3Config.task_weights", "Phase.share", "CpgdSettings.epsilon", "Lora.r", "Gate.min"} <= met
    assert {"CotConfig.min_scores", "FileSource.constants", "GuidedConfig.guide_weights", "EngineSettings.timeout_s"} <= met
    assert all(issubclass(load_stage(stage).Config, StageConfig) for stage in stage_entries())
    assert all("seed" in set(known_keys(load_stage(stage).Config)) for stage in stage_entries())


@pytest.mark.parametrize("number", NUMBERS, ids=repr)
def test_every_number_has_bounds_and_keeps_to_them(number):
    assert number.low is not None, "no lower bound"
    assert number.high is not None, "no upper bound"
    (low, low_is_in), (high, high_is_in) = number.low, number.high
    assert math.isfinite(low) and math.isfinite(high) and low < high
    senseless: list[Any] = [float("nan"), float("inf"), -float("inf"), 10**400, -(10**400)]
    if number.kind is int:
        senseless += [1.5, high + 1, low - 1, 10**30, -(10**30)]
    else:
        senseless += [high * 1.01 + 1 if high < 1e300 else 1e308, low - abs(low) * 0.01 - 1 if low > -1e300 else -1e308]
        senseless += [10**30, 1e30, -1e30] if high < 1e30 else []
    senseless += [] if low_is_in else [low]
    senseless += [] if high_is_in else [high]
    either = number.model.__name__ in ("FileSource", "HubSource") and number.field == "constants"  # a whole number, or another
    for value in senseless:
        if either and abs(value) < 1e300:
            continue
        assert not number.takes(value), f"takes {value!r}"
    inside = [bound for bound, is_in in (number.low, number.high) if is_in]
    assert all(number.takes(number.kind(bound)) for bound in inside), "refuses its own bounds"


def test_seeds_are_what_numpy_takes():
    seeds = [number for number in NUMBERS if number.field == "seed"]
    assert len(seeds) == len(list(stage_entries()))
    for seed in seeds:
        assert seed.takes(0) and seed.takes(2**32 - 1) and not seed.takes(-1) and not seed.takes(2**32)


@pytest.mark.parametrize(
    ("stage", "words", "what"),
    [
        ("sft", ["learning_rate=.inf"], "learning_rate must be a finite number, not inf"),
        ("sft", ["learning_rate=1e30"], "learning_rate must be at most 1, not 1e\\+30"),
        ("sft", ["max_steps=0"], "a run of 0 steps trains nothing"),
        ("sft", ["task_weights={safety: -1}"], "task_weights.safety must be at least 0"),
        ("sft", ["task_weights={safety: 0, value: 0, knowledge: 0, general: 0, search: 0}"], "every task has the weight 0"),
        ("rl m3", ["rewards={safety: {safety: -1}}"], "rewards.safety.safety must be at least 0"),
        ("rl m3", ["rewards={safety: {safety: 0}}"], "every verifier of the task 'safety' has the weight 0"),
        ("rl m3", ["rewards={saftey: {safety: 1}}"], "did you mean 'safety'"),
        ("rl m3", ["phases=[{tasks: [safety], share: 1}]", "task_weights={safety: 0}"], "task_weights is 0 for every task"),
        ("rl search", ["reliability={low: 2, high: 1}"], "is not between low=2"),
        ("search", ["guide_weights={safety: -1}"], "guide_weights.safety must be at least 0"),
        ("search", ["candidates=1000000"], "candidates must be at most 4,096"),
        ("eval", ["temperature=1e-30"], "at least 0.01"),
        ("data build", ["seed=" + "9" * 4000], "seed must be at most 4,294,967,295, not 9+…"),
        ("data cot", ["min_scores={safety: .nan}"], "min_scores.safety must be"),
    ],
)
def test_messages_name_the_bound(stage, words, what):
    with pytest.raises(ConfigError, match=what):
        resolve(load_stage(stage), (), words, {})
