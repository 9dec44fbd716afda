"""The advantage of GRPO without a division: the reward less the group's mean."""

from safework_rl.objectives import M3Objective


class Plain(M3Objective):
    """Rewards and measures of M3, other advantages."""

    def advantages(self, reward_NG, length_NG, correct_NG):
        return reward_NG - reward_NG.mean(1, keepdim=True)


def plain(config, rewards):
    """Called by ``rl m3`` with its settings and the rewards of its routes."""
    return Plain(rewards, "equal", filter_groups=False)
