"""REINFORCE with the advantage as its weight (Williams, 1992)."""

from pydantic import Field

from safework_cli.core.settings import Settings
from safework_rl.losses.contract import Loss, LossInput, LossValue


class ReinforceSettings(Settings):
    """The block ``loss:`` of ``algorithm: reinforce``."""

    scale: float = Field(1.0, ge=0, le=100)
    """Factor on the advantages."""


class Reinforce(Loss):
    """-scale · A · log π, summed over the reply's tokens."""

    Settings = ReinforceSettings

    def __call__(self, batch: LossInput) -> LossValue:
        gain_BT = batch.logp_BT * self.settings.scale * batch.advantage_B[:, None]
        loss = -(gain_BT * batch.mask_BT / batch.denominator_B[:, None]).sum()
        return LossValue(loss, {"reinforce/gain": gain_BT.detach().mean()})
