"""Evaluation during training, without torch: held-out prompts, what the plan says and refuses, and which step was best.

The curve of a run is in its trainer state (``log_history``), which every checkpoint holds. The best step and early stopping are functions
of the curve, so that a resumed run decides as an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from safework_cli.core.artifacts.external import RULE_PREFIX
from safework_cli.core.artifacts.payload import parameter_count
from safework_cli.core.errors import ConfigError, InputError, SafeworkError, nearest
from safework_cli.core.stage import Inputs, Plan, Slot
from safework_cli.data.dataset import read_dataset, refuse_missing_tasks
from safework_cli.data.row import Row
from safework_cli.training.config import EvaluationConfig
from safework_cli.training.work import checkpoint_bytes, hold_others
from safework_cli.verifiers.rules.inputs import rule_artifact

EVAL_SLOTS = {
    "eval_data": Slot(
        ("dataset",), "held-out prompts for eval_steps, such as starter:heldout (default: rows of data with split test)", optional=True
    ),
    "eval_verifiers": Slot(
        ("verifier",),
        "judges for eval_steps by name, such as eval_verifiers.safety=NAME or eval_verifiers.refusal=rule:refusal",
        optional=True,
        many=True,
        external=rule_artifact,
    ),
}
MEAN = "mean"
"""The mean of all judges' numbers and of ``EvaluationConfig.in_mean``, where there are several: "safety and capability" in one number."""
BY_GOLD = ("choice", "correctness", "math")
"""Rules that compare with gold answers. They may judge a run that they reward: the gold answers of held-out prompts cannot be learnt."""
MOST_FAILED = 0.1
"""Share of an evaluation's replies that a verifier may fail to score; with more, as when its server is out, the step is not a candidate
for the best one: its value is that of a few replies. (Rules fail on rows that they cannot compare, the same ones at each step.)"""
LOGGED = "eval_"
"""The prefix of an evaluation's numbers in the trainer's log, as transformers has it; ``metrics.jsonl`` and trackers show ``eval/NAME``."""

Curve = list[tuple[int, dict[str, float]]]


def curve_of(history: Iterable[Mapping[str, Any]]) -> Curve:
    """(step, numbers) of every evaluation in a trainer's ``log_history``; the first one is that of the starting model."""
    found = []
    for entry in history:
        numbers = {key.removeprefix(LOGGED): value for key, value in entry.items() if key.startswith(LOGGED)}
        if numbers:
            found.append((int(entry["step"]), numbers))
    return found


def unreliable_steps(curve: Curve, metric: str) -> list[int]:
    """The steps at which more replies than ``MOST_FAILED`` could not be scored by what decides."""
    return [step for step, numbers in curve[1:] if numbers.get(f"{metric}/failed_share", 0.0) > MOST_FAILED]


def _candidates(curve: Curve, metric: str) -> Curve:
    """The evaluations after the first that can decide; all of them where none can, so that a run has a best step in any case."""
    unreliable = set(unreliable_steps(curve, metric))
    return [each for each in curve[1:] if each[0] not in unreliable] or curve[1:]


def best_step(curve: Curve, metric: str, greater: bool) -> tuple[int, float] | None:
    """The first step with the best value, and the value; the starting model is not a candidate, nor is a step at which too many replies
    could not be scored. None before the first evaluation."""
    best: tuple[int, float] | None = None
    for step, numbers in _candidates(curve, metric):
        value = numbers[metric]
        if best is None or (value > best[1] if greater else value < best[1]):
            best = step, value
    return best


def evaluations_without_gain(curve: Curve, metric: str, greater: bool, threshold: float) -> int:
    """How many of the last evaluations in a row did not exceed the best value before them by more than the threshold (transformers'
    ``EarlyStoppingCallback`` counts alike)."""
    count, best = 0, None
    for _, numbers in _candidates(curve, metric):
        value = numbers[metric] if greater else -numbers[metric]
        if best is None or value > best + threshold:
            count = 0
        else:
            count += 1
        best = value if best is None else max(best, value)
    return count


def is_due(step: int, every: int, last: int) -> bool:
    """Whether a run evaluates after this step: every so many steps, and after the last one."""
    return step % every == 0 or step == last


def deciding_metric(config: EvaluationConfig, judges: Collection[str]) -> tuple[str, bool]:
    """The metric that decides which step is best, and whether a larger value is better.

    Raises:
        ConfigError: the metric is unknown, or several judges are given and none is named.
    """
    metric = config.metric_for_best_model
    known = [*judges, *([MEAN] if len(judges) + len(config.in_mean) > 1 else []), *config.measured]
    if metric is None:
        if len(judges) != 1:
            raise ConfigError(
                "eval_steps is given, and which metric decides is not clear",
                f"eval_verifiers has {len(judges)} judges" if judges else "there is no eval_verifiers.NAME=…",
                f"metric_for_best_model={MEAN}, or {known[0]}" if judges else "give eval_verifiers.NAME=… (a verifier, or rule:NAME)",
            )
        metric = next(iter(judges))
    metric = metric if metric in known else metric.removeprefix(LOGGED).removeprefix("eval/")
    if metric not in known:
        raise ConfigError(
            f"metric_for_best_model={config.metric_for_best_model} is unknown{nearest(metric, known)}",
            f"an evaluation measures {', '.join(known)}",
            f"metric_for_best_model={known[0]}",
        )
    return metric, config.measured.get(metric, True) if config.greater_is_better is None else config.greater_is_better


def held_out_rows(config: EvaluationConfig, inputs: Inputs) -> list[Row]:
    """The rows whose prompts an evaluation may use, of the tasks asked for.

    Raises:
        InputError: there are none, or none of one of the tasks.
        ConfigError: there are more tasks than prompts of an evaluation.
    """
    given = inputs.maybe("eval_data")
    source = given or inputs.one("data")
    rows = read_dataset(source)
    held_out = [row for row in rows if row.split == "test"]
    if given is not None and not held_out:
        held_out = rows  # a data set of its own, without splits
    if not held_out:
        raise InputError(f"{source.ref} holds no held-out rows", "no row's split is test", "give eval_data=NAME:heldout")
    refuse_missing_tasks("eval_tasks", config.eval_tasks, held_out, f"what {source.ref} holds out")
    chosen = [row for row in held_out if not config.eval_tasks or row.task in config.eval_tasks]
    tasks = sorted({row.task for row in chosen})
    if config.eval_samples < len(tasks):
        raise ConfigError(
            f"eval_samples={config.eval_samples} is less than the number of tasks of the held-out prompts, {len(tasks)}",
            f"they are of {', '.join(tasks)}, and some of these would not be measured",
            f"eval_samples={len(tasks)} or more, or name those to be measured: eval_tasks=[{tasks[0]}]",
        )
    return chosen


def spread_over_tasks(rows: Sequence[Row], count: int) -> list[Row]:
    """``count`` rows at most, in their order: as many of each task as of the others, or all where a task has fewer, spread over its rows.

    Drawn from all rows alike, a task with many held-out rows would leave so few of the others that their measure is mostly chance.
    """
    by_task: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        by_task.setdefault(row.task, []).append(place)
    left, chosen = min(count, len(rows)), []
    for number, places in enumerate(sorted(by_task.values(), key=len)):
        own = min(len(places), left // (len(by_task) - number))
        chosen += [places[i * len(places) // own] for i in range(own)]
        left -= own
    return [rows[place] for place in sorted(chosen)]


def refuse_idle_judges(config: EvaluationConfig, rows: Sequence[Row]) -> None:
    """Raises InputError where a judge's tasks have none of the prompts."""
    found = {row.task for row in rows}
    for name, tasks in config.eval_judge_tasks.items():
        if not found.intersection(tasks):
            raise InputError(
                f"eval_verifiers.{name} would judge nothing: no held-out prompt is of {', '.join(tasks) or 'its tasks'}",
                f"they are of {', '.join(sorted(found))}",
                "change eval_judge_tasks, or eval_data",
            )


def refuse_overlap(held_out: Sequence[Row], trained_on: Iterable[Row]) -> None:
    """Raises InputError where a held-out prompt is in the training rows, or shares their group."""
    trained = list(trained_on)
    prompts, groups = {prompt_key(row) for row in trained}, {row.group for row in trained}
    found = [row for row in held_out if prompt_key(row) in prompts or row.group in groups]
    if found:
        raise InputError(
            f"{len(found)} of {len(held_out)} prompts for evaluation are in the training rows, such as row '{found[0].id}'",
            "the model would be judged on what it was trained on, or on another form of it (meta.group)",
            "give other eval_data, or leave these rows out of the training data",
        )


def prompt_key(row: Row) -> tuple[Any, ...]:
    """What two rows with the same prompt have in common, whatever the spaces and capitals."""
    texts = tuple((message["role"], " ".join(message["content"].split()).casefold()) for message in row.prompt)
    return texts, tuple(image["bytes"] or image["path"] for image in row.images)


def plan_evaluation(
    plan: Plan, config: EvaluationConfig, inputs: Inputs, trained_on: Callable[[], Iterable[Row]], rewards: Collection[str] = ()
) -> None:
    """Adds to a plan what its evaluations cost, and what is refused.

    Args:
        trained_on: reads the rows that the stage trains on.
        rewards: names of the rules and digests of the verifiers that the run is rewarded by.
    """
    judges = inputs.many("eval_verifiers")
    for key in config.eval_judge_tasks:
        if key not in judges:
            plan.refuse(
                f"eval_judge_tasks names '{key}', which no eval_verifiers.KEY is{nearest(key, judges)}", "", "name a judge that is given"
            )
    if config.eval_steps is None:
        for slot in EVAL_SLOTS:
            if inputs.many(slot) if slot == "eval_verifiers" else inputs.maybe(slot):
                plan.refuse(f"{slot} is given without eval_steps", "nothing is evaluated during training", "set eval_steps=50")
        return
    for key, judge in judges.items():
        if key in (*config.measured, MEAN):
            plan.refuse(f"eval_verifiers.{key} has the name of another number", f"{key} is measured without a judge", "choose another name")
        by_rule = is_rule(judge.external)
        if (judge.name if by_rule else judge.digest) in rewards and not (by_rule and judge.name in BY_GOLD):
            plan.refuse(
                f"eval_verifiers.{key} is {judge.ref}, which the run is rewarded by",
                "a reward that is learnt to be exploited still looks good to itself: the best step needs an independent judge",
                "give another verifier or rule, such as eval_verifiers.refusal=rule:refusal",
            )
    try:
        metric, greater = deciding_metric(config, judges)
        rows = held_out_rows(config, inputs)
        refuse_idle_judges(config, rows)
        refuse_overlap(rows, trained_on())
    except SafeworkError as refusal:
        plan.refusals.append(refusal)
        return
    prompts = min(config.eval_samples, len(rows))
    source = inputs.maybe("eval_data") or inputs.one("data")
    count = 1 + math.ceil((plan.optimizer_steps or 0) / config.eval_steps)
    own = ", ".join(name for name in config.measured if name not in EvaluationConfig.measured)
    by = ", ".join(f"{key} = {judge.ref}" for key, judge in judges.items()) or own or "nothing but the replies' length"
    plan.lines += [
        f"evaluation every {config.eval_steps} steps: {prompts} held-out prompts of {source.ref}, judged by {by}",
        f"that is {count} evaluations, {count * prompts:,} replies of {config.evaluation_tokens} tokens at most; the "
        f"{'highest' if greater else 'lowest'} {metric} decides"
        + (f"; {config.early_stopping_patience} evaluations without an improvement end the run" if config.early_stopping_patience else ""),
    ]
    local = [judge for judge in judges.values() if (judge.path / "config.json").exists()]
    hold_others(plan, half=sum(parameter_count(judge.path) for judge in local))
    if plan.work is not None:
        plan.disk_bytes = (plan.disk_bytes or 0) + checkpoint_bytes(plan.work)  # the best step's


def is_rule(external: str | None) -> bool:
    """Whether an input's reference names a rule."""
    return external is not None and external.startswith(RULE_PREFIX)
