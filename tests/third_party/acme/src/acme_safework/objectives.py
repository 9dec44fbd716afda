"""The advantage of GRPO without a division: the reward less the group's mean."""

from pydantic import Field

from safework_cli.core.settings import Settings
from safework_rl.objectives import M3Objective


class PlainSettings(Settings):
    """The block ``objective_settings:`` of ``objective: plain``."""

    scale: float = Field(1.0, ge=0, le=100)
    """Factor on the advantages."""


class Plain(M3Objective):
    """Rewards and measures of M3, other advantages."""

    scale = 1.0

    def advantages(self, reward_NG, length_NG, correct_NG):
        return self.scale * (reward_NG - reward_NG.mean(1, keepdim=True))


def plain(config, rewards):
    """Called by ``rl m3`` with its settings and the rewards of its routes."""
    objective = Plain(rewards, "equal", filter_groups=False)
    objective.scale = config.objective_settings.scale
    return objective


plain.Settings = PlainSettings
