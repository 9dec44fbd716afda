"""Which verifiers judge which task. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator

from safework_cli.core.errors import ConfigError, nearest
from safework_cli.core.registry import entries
from safework_cli.core.settings import Weight
from safework_cli.core.stage import Inputs, Plan
from safework_cli.data.tasks import TaskName
from safework_cli.verifiers.rules import bare_name, names_rule, parse_rule, rule_digests, rule_names
from safework_rl.registry import REWARDS, package_digests

ROUTES: dict[str, dict[str, float]] = {
    "safety": {"safety": 1.0},
    "value": {"correctness": 1.0},
    "knowledge": {"correctness": 1.0, "refusal": 0.5},
    "general": {"correctness": 1.0},
}
"""The official recipe by label (`docs/safeladder.md` 3.2); a rule against the gold answer in place of a trained
knowledge or value verifier; "refusal" on a harmless prompt is the helpfulness term, with the official weight."""


JUDGE_ALL = frozenset({"format", "language"})
"""What judges every reply, whatever its task."""


def _with_usual(routes: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    for task, route in routes.items():
        if route and not any(route.values()):
            raise ValueError(f"every verifier of the task '{task}' has the weight 0: all its replies would earn the same")
    return ROUTES | routes


Routes = Annotated[dict[TaskName, dict[str, Weight]], AfterValidator(_with_usual)]
"""The setting: a route that the user gives replaces the task's usual one; the other tasks keep theirs. An empty one: no reward."""


def unread_routes(given: Mapping[str, Mapping[str, float]], tasks: set[str]) -> list[str]:
    """A sentence for each route that the user gave and that no drawn task takes."""
    return [
        f"rewards.{task} routes a task that is not drawn"
        for task, route in given.items()
        if task not in tasks and route != ROUTES.get(task)
    ]


def check_routes(plan: Plan, routes: Mapping[str, Mapping[str, float]], tasks: set[str], inputs: Inputs) -> None:
    """Adds a refusal to the plan for every task without a verifier, every unknown verifier, and every given one that judges no task."""
    used = {bare_name(name) for task in tasks for name in routes.get(task, {})} | JUDGE_ALL
    for name in inputs.many("verifiers"):
        if name not in used:
            routed = "; ".join(f"{task}: {', '.join(routes[task])}" for task in sorted(tasks) if routes.get(task))
            plan.refuse(
                f"verifiers.{name} judges no task that is drawn",
                f"the rewards are {routed or 'empty'}",
                f"leave it out, or set rewards.TASK={{{name}: 1}} for its task",
            )
    known = [*inputs.many("verifiers"), *rule_names(), *entries(REWARDS)]
    for task in sorted(tasks):
        if task not in routes:
            plan.refuse(
                f"rewards has no verifier for the task '{task}'",
                "its replies would all earn 0",
                f"set rewards.{task}={{correctness: 1}}, or rewards.{task}={{}} where only the KL to the reference is to train on them",
            )
        for name in routes.get(task, {}):
            if name not in inputs.many("verifiers") and names_rule(name):
                try:
                    parse_rule(name)
                except ConfigError as error:  # a parameter that the rule does not have, or out of its bounds
                    plan.refusals.append(error)
            elif name not in known:
                plan.refuse(
                    f"rewards.{task} names the verifier '{name}'{nearest(name, known)}",
                    "it was not given, and it is neither a rule nor a registered reward",
                    f"add verifiers.{name}=…, or set rewards.{task} (rules: {', '.join(rule_names())})",
                )


def rewarded_by(routes: Mapping[str, Mapping[str, float]], tasks: set[str]) -> set[str]:
    """Names of the verifiers and rules that reward the replies to these tasks, without a rule's parameters."""
    return {bare_name(name) for task in tasks for name in routes.get(task, {})} | JUDGE_ALL


def digests_of_rules(routes: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """What identifies the rules of the routes, those that judge every reply, and registered rewards: with another version they differ."""
    named = {name for route in routes.values() for name in route}
    rules = {"format", "language", "refusal"} | {name for name in named if names_rule(name)}
    return rule_digests(sorted(rules)) | package_digests((REWARDS, name) for name in sorted(named))
