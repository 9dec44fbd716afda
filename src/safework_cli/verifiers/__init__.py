"""The verifier contract. The same object is the reward in RL, the judge in eval, the filter in data and the guide in search.

Imports no torch; model-backed verifiers live in ``verifiers.labels`` and import it when loaded.
"""

from safework_cli.verifiers.contract import Exchange, Verdict, Verifier, judged, summarise

__all__ = ["Exchange", "Verdict", "Verifier", "judged", "summarise"]
