"""Base classes and field types of every configuration."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def cosmetic(default: Any = ..., **kwargs: Any) -> Any:
    """A setting that cannot change the result (display, launch, logging): it stays out of the fingerprint."""
    return Field(default, json_schema_extra={"cosmetic": True}, **kwargs)


def verdict(default: Any = ..., **kwargs: Any) -> Any:
    """A setting that only says what must hold of a finished result: it stays out of the fingerprint. A finished result is judged by another
    value of it without running again (``Stage.judge_again``)."""
    return Field(default, json_schema_extra={"cosmetic": True, "verdict": True}, **kwargs)


def verdict_settings(config: BaseModel) -> dict[str, Any]:
    """The settings made by ``verdict``, as JSON values."""
    extras = {name: field.json_schema_extra for name, field in type(config).model_fields.items()}
    marked = {name for name, extra in extras.items() if isinstance(extra, dict) and extra.get("verdict")}
    return config.model_dump(mode="json", include=marked)


Weight = Annotated[float, Field(ge=0, le=1e6)]
"""How much something counts relative to others; 0 leaves it out."""


def _temperature(value: float) -> float:
    if 0 < value < LOWEST_TEMPERATURE:
        raise ValueError(f"a temperature is 0 (greedy) or at least {LOWEST_TEMPERATURE}: logits divided by less overflow")
    return value


LOWEST_TEMPERATURE = 0.01

Temperature = Annotated[float, Field(ge=0, le=100), AfterValidator(_temperature)]
"""A sampling temperature; 0 is greedy."""

SamplingTemperature = Annotated[float, Field(ge=LOWEST_TEMPERATURE, le=100)]
"""A temperature where replies have to differ."""


def one_group(pattern: str) -> str:
    """The regular expression of a setting, which has exactly one group. Raises ValueError otherwise."""
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"'{pattern}' is not a regular expression: {error}") from None
    if groups != 1:
        raise ValueError(f"'{pattern}' has {groups} groups, it needs exactly one")
    return pattern


OneGroup = Annotated[str, AfterValidator(one_group)]
"""A regular expression with one group, which holds what is looked for."""


class Settings(BaseModel):
    """Base of every configuration block: unknown keys are refused, types are not bent, the bare string under a field is its help. Every
    number has a lower and an upper bound (a test walks through all settings of all stages); none may be NaN or infinite."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False)


class LaunchSettings(Settings):
    """How the stage's process starts."""

    strategy: Literal["single"] = "single"
    """One process, here. (Multi-process strategies go through accelerate and will be further values of this key.)"""


class StageConfig(Settings):
    """Settings that every stage has."""

    seed: int = Field(0, ge=0, le=2**32 - 1)
    """Seed of Python, NumPy and torch; the manifest records which parts it acts on."""
    launch: LaunchSettings = Field(default_factory=LaunchSettings)
    """How the process starts. The class of strategy is part of the result's identity: it decides how many rows make a step."""
