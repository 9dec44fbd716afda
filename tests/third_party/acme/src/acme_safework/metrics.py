"""How long replies are."""

from safework_eval.metrics import Metric

CHARACTERS = Metric("characters", "characters of the reply", lambda judged: len(judged.reply), better="lower", bounds=(0, 1e6), rule=None)
