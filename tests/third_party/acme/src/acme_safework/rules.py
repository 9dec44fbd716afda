"""A rule that looks for politeness."""

from collections.abc import Sequence

from safework_cli.verifiers.contract import Exchange, Verdict


class PoliteRule:
    """1 where the reply says please or thank you."""

    name = "polite"
    version = 1

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        return [Verdict(1.0 if any(word in exchange.reply.lower() for word in ("please", "thank")) else 0.0) for exchange in exchanges]
