"""What a policy loss is. Torch-free, as every module of a loss is when it is imported: its settings are read while planning.

Another package adds one by an entry point of the group ``safework.losses``, and ``algorithm: NAME`` then selects it:

    [project.entry-points."safework.losses"]
    reinforce = "my_package.losses:Reinforce"

Shapes: B completions of one forward pass, T completion tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, NamedTuple, TypeVar

from safework_cli.core.settings import Settings

if TYPE_CHECKING:
    import torch

Weighting = Literal["equal", "std", "clip_filter"]
Block = TypeVar("Block", bound=Settings)


@dataclass(frozen=True, slots=True)
class LossInput:
    """One forward pass of the policy over completions of a rollout.

    Attributes:
        logp_BT: log-probabilities of the completion tokens under the policy that is trained, with gradient.
        old_logp_BT: under the policy that sampled them.
        entropy_BT: of the policy's distribution at each token, in nats.
        mask_BT: 1 on the tokens that the policy sampled, 0 on padding and on retrieved text.
        advantage_B: group-relative advantages, weighted.
        engine_ratio_BT: what each token's loss is multiplied by where another engine sampled (π_old/π_sampled, truncated); None where the
            policy itself did.
        denominator_B: tokens of the completion's whole group times the groups of an update. A sum of token losses over it is the mean
            over groups of the token mean in a group, whichever passes the completions of a group are in.
    """

    logp_BT: torch.Tensor
    old_logp_BT: torch.Tensor
    entropy_BT: torch.Tensor
    mask_BT: torch.Tensor
    advantage_B: torch.Tensor
    denominator_B: torch.Tensor
    engine_ratio_BT: torch.Tensor | None = None


class LossValue(NamedTuple):
    """A loss to be minimised, and numbers to log, by name (scalars; the logged number is the mean over the passes of an update)."""

    loss: torch.Tensor
    numbers: Mapping[str, torch.Tensor]


class Loss(Generic[Block]):
    """Base of the losses.

    Attributes:
        Settings: what the recipe's block ``loss:`` holds for this loss.
        on_policy: what has no effect with one update per rollout, for the warning; empty where everything has.
        settings: of this run.
    """

    Settings: ClassVar[type[Settings]] = Settings
    on_policy: ClassVar[str] = ""

    def __init__(self, settings: Block):
        self.settings = settings

    @property
    def weighting(self) -> Weighting:
        """Weight of a group's advantages (``objectives.group_mean``)."""
        return "std"

    def unused(self) -> list[str]:
        """Settings of the block that were given and have no effect, each with the reason."""
        return []

    def __call__(self, batch: LossInput) -> LossValue:
        """The loss of one pass. The KL to the reference model (``beta``) and a router's auxiliary loss are added by the trainer."""
        raise NotImplementedError


def reference_kl(
    logp_BT: torch.Tensor,
    reference_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    denominator_B: torch.Tensor,
    estimator: Literal["k3", "k2"] = "k3",
) -> torch.Tensor:
    """An estimate of KL(policy ‖ reference), weighted as ``LossInput.denominator_B`` says, scalar. With r = π_ref/π_θ of a sampled token:

        k3 = r − 1 − ln r     expected gradient on the policy's own samples: that of KL(reference ‖ policy)
        k2 = (ln r)² / 2      that of KL(policy ‖ reference), as a per-token reward −ln(π_θ/π_ref) gives

    k3 is what the official scripts add to the CPG clip (LightRFT, ``--use_kl_loss --kl_estimator k3``), without a ratio before it.
    (They average it over each reply first; here it is averaged over the tokens of a group, as the rest of the loss is.) The value of k3
    is an unbiased estimate of KL(policy ‖ reference); its gradient is not one (arXiv 2510.01555).
    """
    log_ratio_BT = reference_BT - logp_BT
    estimate_BT = log_ratio_BT.square() / 2 if estimator == "k2" else log_ratio_BT.exp() - 1 - log_ratio_BT
    return (estimate_BT * mask_BT / denominator_B[:, None]).sum()
