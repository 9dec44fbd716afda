"""From samples to ``summary.json``: what an evaluation says, and under which conditions it says it. Pure.
The axes are defined in ``metrics``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from safework_cli.data.row import Row
from safework_cli.statistics.intervals import Estimate, estimate, mean_of_classes
from safework_cli.verifiers.rules.ifeval import IFEVAL, published
from safework_eval.metrics import AXES, Metric, is_refusal, metric_named, on_axis
from safework_eval.samples import ScoredSample
from safework_eval.scoring import Panel, agreement
from safework_eval.search_measures import judged_episodes, search_measures
from safework_eval.selection import PlannedSuite

NONSENSE = "nonsense"
"""The further metric that a suite's record repeats, for gates."""
SUMMARY_VERSION = 4  # further metrics of a suite (`also`), and whether the judge is independent


@dataclass(frozen=True, slots=True)
class Conditions:
    """What two evaluations must share to be compared, in addition to each suite's rows and judge.

    Attributes:
        max_tokens, temperature, top_p, seed: of sampling; the seed only where the temperature is not 0.
        template_hash: of the chat template.
        engine: "transformers/float32", …
        index: digest of what search suites search; None where there is none.
        episode: how they are answered.
    """

    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    template_hash: str | None
    engine: str
    index: str | None = None
    episode: dict[str, int] | None = None


def summarise(
    model: Mapping[str, Any],
    data: str | None,
    conditions: Conditions,
    suites: Sequence[PlannedSuite],
    panels: Mapping[str, Panel],
    samples: Sequence[ScoredSample],
) -> dict[str, Any]:
    """The record of one model.

    Args:
        model: ``ref``, ``digest``, ``stage`` and ``name`` of what was evaluated.
        samples: of every suite, judged.
    """
    by_suite = {suite.name: [s for s in samples if s.suite == suite.name] for suite in suites}
    certain = (conditions.episode or {}).get("certain", 0)
    records = {suite.name: _suite_record(suite, panels[suite.name], by_suite[suite.name], certain) for suite in suites}
    return {
        "summary_version": SUMMARY_VERSION,
        "model": dict(model),
        "data": data,
        "conditions": asdict(conditions),
        "suites": records,
        "refusal": refusal_shares(records),
        "length": _length(samples),
        "axes": {axis: axis_value(axis, records) for axis in AXES},
    }


def _suite_record(suite: PlannedSuite, panel: Panel, samples: Sequence[ScoredSample], certain: int) -> dict[str, Any]:
    scored = [s.outcome for s in samples if s.outcome is not None]
    replied = [s for s in samples if not s.reply.error]
    metric = metric_named(suite.metric)
    of_metric, classes = _metric_value([(s.row, s.outcome) for s in samples], suite, metric)
    record: dict[str, Any] = {
        "metric": suite.metric,
        "better": metric.better,
        "in_percent": metric.bounds == (0.0, 1.0),  # for a report where the metric is not installed
        "source": suite.source,
        "digest": suite.digest,
        "row_digests": suite.row_digests,
        "rows": len(suite.rows),
        "majority": majority(suite.rows) if metric.needs_gold else None,
        **of_metric.to_json(),
        "failed": len(samples) - len(scored),
        "errors": _count([s.reply.error or s.errors.get(s.judge) for s in samples]),
        "incomplete": sum(s.outcome is None or bool(missing_scores(s, panel)) for s in samples),
        "further_errors": _count([error for s in samples for error in missing_scores(s, panel)]),
        "judge": {"id": panel.first.id, "digest": panel.first.digest, "ref": panel.first.ref},
        "length": _length(replied),
    }
    formats = [s.format for s in replied]
    shares = {
        "stop": [s.reply.finish_reason == "stop" for s in replied],
        "truncated": [s.reply.finish_reason == "length" for s in replied],
        "format": [f == "ok" for f in formats],
        "unparsable": [s.unparsed for s in replied],
    }
    record |= {name: sum(values) / len(values) if values else None for name, values in shares.items()}
    if metric.refusals:
        refusals = [is_refusal(s.verdicts.get(panel.first.id), panel.first.is_rule) for s in samples]
        known = [float(value) for value in refusals if value is not None]
        record["refused"] = sum(known) / len(known) if known else None
    if metric.episodes:
        record["search"] = search_measures(list(judged_episodes(samples).values()), certain)
    if numbers := ifeval_numbers(samples):
        record["ifeval"] = numbers
    if classes:
        record["classes"] = classes
    record["judges"] = {judge.id: _judge_record(judge.id, judge.ref, samples, metric.bounds) for judge in panel.judges}
    first = [s.outcomes.get(panel.first.id) for s in samples]
    record["also"] = {name: _further_record(name, panel, samples) for name in panel.also}
    if NONSENSE in record["also"]:
        record[NONSENSE] = record["also"][NONSENSE]["value"]
    record["agreement"] = {other.id: agreement(first, [s.outcomes.get(other.id) for s in samples]) for other in panel.others}
    return record


def cut_lines(summary: Mapping[str, Any]) -> list[str]:
    """A sentence for each judge that read replies without their middle."""
    return [
        f"{judge} read {counts['truncated']} of {counts['judged']} replies without a part: with the prompt they exceed its max_length"
        for judge, counts in (summary.get("cut_for_judges") or {}).items()
    ]


def missing_scores(sample: ScoredSample, panel: Panel) -> list[str]:
    """What failed on a reply in addition to the suite's own judge: the other judges and the further metrics, each with its reason.

    A rule in addition to a trained verifier does not fail on a row that has nothing to compare with: the verifier judges such rows.
    """
    if sample.reply.error:
        return []  # one reason for all, and counted by it
    comparable = bool(sample.row.meta.get("constraints")) or (sample.row.answer is not None and bool(sample.row.meta.get("answer_type")))
    errors = {judge.id: sample.errors.get(judge.id) for judge in panel.others if comparable or not judge.is_rule}
    said = set(sample.errors.values())  # a metric that only repeats its judge's error is no second reason
    for name, judge in panel.also.items():
        error = value.error if (value := sample.also.get(name)) is not None else None
        if error not in said and (comparable or not (judge.is_rule and metric_named(name).needs_gold)):
            errors[name] = error
    return [f"{name}: {error}" for name, error in errors.items() if error is not None]


def majority(rows: Sequence[Row]) -> dict[str, Any] | None:
    """The most frequent gold answer of a suite and the share of its rows that have it: what a model that always says it would get. None
    where rows have no answer."""
    counts = _count([row.answer for row in rows])
    if not counts or sum(counts.values()) < len(rows):
        return None
    answer = next(iter(counts))
    return {"answer": answer, "share": counts[answer] / len(rows)}


def _metric_value(
    outcomes: Sequence[tuple[Row, float | None]], suite: PlannedSuite, metric: Metric
) -> tuple[Estimate, dict[str, dict[str, object]]]:
    """A suite's value, and the value of each class where the metric has classes."""
    known = [(row, value) for row, value in outcomes if value is not None]
    values, groups = [value for _, value in known], [row.group for row, _ in known]
    if metric.classes is None:
        return estimate(values, groups, metric.bounds), {}
    names = [metric.classes(row) for row, _ in known]
    expected = sorted({metric.classes(row) for row in suite.rows})
    each = {
        name: estimate(
            [value for value, own in zip(values, names, strict=True) if own == name],
            [group for group, own in zip(groups, names, strict=True) if own == name],
            metric.bounds,
        ).to_json()
        for name in expected
    }
    return mean_of_classes(values, names, expected, groups, metric.bounds), each


def _further_record(name: str, panel: Panel, samples: Sequence[ScoredSample]) -> dict[str, Any]:
    """The value of a further metric on a suite's replies."""
    metric, judge = metric_named(name), panel.identity(name)
    scored = [(value.value, s.row.group) for s in samples if (value := s.also.get(name)) is not None and value.value is not None]
    result = estimate([value for value, _ in scored], [group for _, group in scored], metric.bounds)
    return {
        "metric": name,
        "better": metric.better,
        "in_percent": metric.bounds == (0.0, 1.0),
        **result.to_json(),
        "failed": len(samples) - len(scored),
        "judge": {"id": judge.id, "digest": judge.digest, "ref": judge.ref},
    }


def ifeval_numbers(samples: Sequence[ScoredSample]) -> dict[str, float]:
    """IFEval's four published numbers, where every row of a suite carries its instructions; empty elsewhere.

    A sample without a reply keeps nothing, as an empty response does there.
    """
    constraints = [s.row.meta.get("constraints") or [] for s in samples]
    if not all(row and all(c.get("id") in IFEVAL for c in row) for row in constraints):
        return {}
    return published([("" if s.reply.error else s.answer, c) for s, c in zip(samples, constraints, strict=True)])


def _judge_record(judge: str, ref: str, samples: Sequence[ScoredSample], bounds: tuple[float, float]) -> dict[str, Any]:
    outcomes = [s.outcomes.get(judge) for s in samples]
    scored = [(value, s.row.group) for value, s in zip(outcomes, samples, strict=True) if value is not None]
    result = estimate([value for value, _ in scored], [group for _, group in scored], bounds)
    labels = _count([s.verdicts[judge].label for s in samples if judge in s.verdicts])
    return {**result.to_json(), "failed": len(outcomes) - len(scored), "labels": labels, "ref": ref}


def _length(samples: Sequence[ScoredSample]) -> dict[str, Any]:
    """The mean tokens of a reply; not measured (None) where a server leaves some out, so that no gate passes."""
    replied = [s for s in samples if not s.reply.error]
    known = [(float(s.reply.tokens), s.row.group) for s in replied if s.reply.tokens is not None]
    unknown = len(replied) - len(known)
    used = [] if unknown else known
    record = estimate([tokens for tokens, _ in used], [group for _, group in used], bounds=(0.0, math.inf)).to_json()
    return {**record, **({"unknown": unknown} if unknown else {})}


def _count(values: Sequence[str | None]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        if value is not None:
            counts[value] = counts.get(value, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def metric_means(suites: Mapping[str, Mapping[str, Any]], field: str = "value") -> dict[str, float]:
    """Metric → mean over its suites; a metric with an unmeasured suite is left out."""
    groups: dict[str, list[float | None]] = {}
    for record in suites.values():
        groups.setdefault(record["metric"], []).append(record[field])
    return {metric: sum(v for v in values if v is not None) / len(values) for metric, values in groups.items() if None not in values}


def refusal_shares(suites: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """Shares of refused replies to harmful and to benign prompts, always reported together: a model that refuses everything looks safe
    in the first one. None for the side without prompts."""
    shares = {}
    for side in ("harmful", "benign"):
        values = [record["refused"] for record in suites.values() if metric_named(record["metric"]).refusals == side]
        known = [value for value in values if value is not None]
        shares[side] = sum(known) / len(known) if known and len(known) == len(values) else None
    return shares


def axis_value(axis: str, suites: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """An axis' value in [0, 1] and the metrics that it rests on; the value is None where there is none."""
    means = metric_means(suites)
    parts = on_axis(axis, means)
    values = [means[metric.name] if metric.better == "higher" else 1 - means[metric.name] for metric in parts]
    return {"value": sum(values) / len(values) if values else None, "metrics": sorted(metric.name for metric in parts)}
