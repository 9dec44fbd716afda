"""Deliberative-search RL: think, search, read, state confidence, answer; reliability is a constraint.

Takes a policy, an index and questions with gold answers; makes a model. Reliability (certain when right, uncertain when wrong) is
held above a threshold by a Lagrange multiplier. Refuses: questions without gold answers, limits that leave no room for a turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from safework_cli.core.errors import ConfigError, InputError, SafeworkError, nearest
from safework_cli.core.registry import load_registered
from safework_cli.core.stage import Inputs, Outcome, Plan, Slot, WorkDir
from safework_cli.data.row import Row
from safework_cli.environments.search.index import lost_answers
from safework_cli.training.heldout import EVAL_SLOTS, MEAN, deciding_metric, held_out_rows
from safework_rl.closing import PolicyStage
from safework_rl.config import MODEL_SLOT
from safework_rl.plan import plan_rl, rows_of
from safework_rl.reference import REFERENCE_SLOT, plan_reference
from safework_rl.registry import LOSSES, OBJECTIVES, package_digests
from safework_rl.search.config import OF_EVALUATION, SearchConfig


class SearchRlStage(PolicyStage):
    name = "rl search"
    version = 9
    """9: the tags in an error are whole; 8: held-out prompts by task; 7: a seed an episode; 6: bf16; 5: the search instruction where it
    lacks; 4, 3, 2: draws."""
    summary = "Deliberative-search RL: think, search, read, state confidence, answer; reliability is a constraint."
    Config = SearchConfig
    inputs = {
        "model": MODEL_SLOT,
        "index": Slot(("index",), "what is searched"),
        "data": Slot(("dataset",), "questions of the task search with gold answers, such as starter:rl"),
        "reference": REFERENCE_SLOT,
        **EVAL_SLOTS,
    }
    output = "model"

    def plan(self, config: SearchConfig, inputs: Inputs) -> Plan:
        plan = plan_rl(config, inputs, f"{inputs.one('model').name.removesuffix('-efficient')}-search", {"correctness"}, {"search"})
        plan.lines += [
            f"episodes over {inputs.one('index').ref}: {config.limits.turns} turns of {config.limits.turn_tokens} tokens, "
            f"{config.limits.results} results",
            f"reliability ≥ {config.reliability.threshold:g}, λ from {config.reliability.multiplier:g}",
        ]
        plan_reference(plan, config, inputs, {"search"})
        data, index = inputs.one("data"), inputs.one("index")
        rows = rows_of(data, {"search"})
        problems = (
            lost_answers(index.path, rows, data.ref, index.ref),
            weights_problem(config.category_weights, rows),
            *evaluation_problems(config, inputs),
        )
        plan.refusals += [problem for problem in problems if problem is not None]
        if config.limits.turn_tokens > config.max_completion_length:
            plan.refuse(
                f"limits.turn_tokens={config.limits.turn_tokens} exceeds max_completion_length={config.max_completion_length}",
                "no episode could take a single turn",
                "raise max_completion_length",
            )
        return plan

    def external_digests(self, config: SearchConfig) -> dict[str, str]:
        """What the rule that compares answers rests on, and the package of the loss."""
        from safework_cli.verifiers.rules import rule_digests

        return rule_digests(["correctness"]) | package_digests([(LOSSES, config.algorithm)])

    def run(self, config: SearchConfig, inputs: Inputs, work: WorkDir) -> Outcome:
        from safework_cli.environments.search.index import SearchIndex
        from safework_cli.environments.search.runner import EpisodeLimits
        from safework_rl.run import train
        from safework_rl.step import Episodes

        objective = load_registered(OBJECTIVES, "search", "objective")(config, work.world)
        limits = EpisodeLimits(config.limits.turns, config.limits.results, config.limits.turn_tokens, config.max_completion_length)
        index = SearchIndex.load(inputs.one("index").path)
        episodes = Episodes(index, limits, objective.measure)
        return train(
            config, objective, inputs, work, phases=[(["search"], 1.0)], task_weights={}, category_weights=config.category_weights,
            search=episodes,
        )  # fmt: skip


def weights_problem(weights: Mapping[str, float], rows: Sequence[Row]) -> ConfigError | None:
    """The error where weights of categories name one that no question has, or leave none; None where no row is known."""
    known = {row.category or "" for row in rows}
    for name in weights if rows else ():
        if name not in known:
            shown = ", ".join(sorted(filter(None, known))[:8]) or "none"
            return ConfigError(f"category_weights.{name} weighs no question{nearest(name, known)}", f"their categories are {shown}")
    if rows and not any(weights.get(name, 1.0) for name in known):
        return ConfigError("category_weights is 0 for every category", "no question could be drawn", "leave one of them above 0")
    return None


def evaluation_problems(config: SearchConfig, inputs: Inputs) -> list[SafeworkError | None]:
    """Held-out questions whose passages the index lacks, or without gold answers where what they show decides."""
    if config.eval_steps is None:
        return []
    try:
        metric, _ = deciding_metric(config, inputs.many("eval_verifiers"))
        rows = held_out_rows(config, inputs)
    except SafeworkError:
        return []  # refused already
    index, source = inputs.one("index"), inputs.maybe("eval_data") or inputs.one("data")
    problems: list[SafeworkError | None] = [lost_answers(index.path, rows, f"the held-out rows of {source.ref}", index.ref)]
    if metric in (*OF_EVALUATION, MEAN) and not any(row.answer is not None and row.meta.get("answer_type") for row in rows):
        what = f"metric_for_best_model={metric} needs gold answers, and no held-out row of {source.ref} has one with meta.answer_type"
        problems.append(
            InputError(what, "an episode is reliable where it is certain of a right answer", "give other eval_data, or another metric")
        )
    return problems


stage = SearchRlStage()
