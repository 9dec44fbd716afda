"""TRL's own losses by their names: TRL computes them, from our advantages and our loss mask. Torch-free."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from safework_cli.core.settings import Settings
from safework_rl.losses.contract import Loss, Weighting


class ClipSettings(Settings):
    """Settings of TRL's losses that clip the ratio."""

    epsilon: float = Field(0.2, gt=0, lt=1)
    """Lower clip width."""
    epsilon_high: float | None = Field(None, gt=0, le=1000)
    """Upper clip width (0.28 in DAPO's paper); the lower one where null."""


class CispoSettings(Settings):
    """Settings of CISPO."""

    epsilon_high: float = Field(5.0, ge=1, le=1000)
    """The largest ratio (5 in ScaleRL, arXiv 2510.13786): a cap, not a width around 1. TRL's own default would scale every ratio to 0.2."""


class TrlLoss(Loss[Settings]):
    """A loss that TRL computes.

    Attributes:
        name: TRL's ``loss_type``.
        level: over what a ratio is taken, ``importance_sampling_level``.
    """

    name: ClassVar[str]
    level: ClassVar[str] = "token"

    def arguments(self) -> dict[str, Any]:
        """TRL's settings of the loss."""
        return {"loss_type": self.name, "importance_sampling_level": self.level, **self.settings.model_dump()}


class _Clipped(TrlLoss):
    Settings = ClipSettings
    on_policy = "every ratio is 1, so no clip acts"


class Grpo(_Clipped):
    name = "grpo"


class DrGrpo(_Clipped):
    """Takes advantages as they are, not divided by the deviation of their group."""

    name = "dr_grpo"

    @property
    def weighting(self) -> Weighting:
        return "equal"


class Gspo(_Clipped):
    """GRPO's loss with one ratio for each reply."""

    name = "grpo"
    level = "sequence"


class Dapo(_Clipped):
    name = "dapo"


class Bnpo(_Clipped):
    name = "bnpo"


class Luspo(_Clipped):
    name = "luspo"
    level = "sequence"


class Cispo(TrlLoss):
    name = "cispo"
    Settings = CispoSettings
    on_policy = "every ratio is 1, so no cap acts"


class Sapo(TrlLoss):
    name = "sapo"
    on_policy = "every ratio is 1"


class Vespo(TrlLoss):
    name = "vespo"
    on_policy = "every ratio is 1"
