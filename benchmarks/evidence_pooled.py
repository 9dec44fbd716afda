"""What is computed from the records of several seeds: values, changes paired by row, axes, and their intervals.

Rows of one group (and one row under several seeds) are not independent, and count as one cluster.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from evidence_records import CAPABILITY, JUDGED, SAFETY, EvidenceError, Figure, Record, numbers

from safework_cli.statistics.intervals import Estimate, estimate, numbered, t_interval
from safework_cli.statistics.paired import Paired, Term, compare_paired, weighted_sum


def _by_row(records: Sequence[Record], model: str, suite: str, metric: str) -> dict[str, float]:
    """``seed/row`` → outcome, of every record that measured it."""
    found: dict[str, float] = {}
    for record in records:
        outcomes = record.evaluations[model].outcomes.get(suite, {}).get(metric, "") if model in record.evaluations else ""
        found |= {f"{record.seed}/{row}": value for row, value in enumerate(numbers(outcomes)) if value is not None}
    return found


def groups_of(records: Sequence[Record], suite: str) -> dict[str, Hashable]:
    """``seed/row`` → group, of the whole record; the same row has the same group under every seed.

    Raises:
        EvidenceError: the records have other rows, or other groups, in this suite.
    """
    known = [(record, record.suites[suite]) for record in records if suite in record.suites]
    if len({(rows.digest, rows.n, tuple(rows.groups)) for _, rows in known}) > 1:
        raise EvidenceError(f"{known[0][0].run}: suite {suite} has other rows under other seeds: run them again with the same data")
    return {f"{record.seed}/{row}": rows.groups[row] if rows.groups else (suite, row) for record, rows in known for row in range(rows.n)}


def pooled_value(records: Sequence[Record], model: str, suite: str, metric: str, beside: Iterable[str] = ()) -> Estimate:
    """The mean over rows and seeds, with its interval.

    Args:
        beside: models that the value is shown next to: only rows that each of them was asked too.
    """
    outcomes, groups = _by_row(records, model, suite, metric), groups_of(records, suite)
    for other in beside:
        asked = _by_row(records, other, suite, metric)
        outcomes = {key: value for key, value in outcomes.items() if key in asked}
    return estimate(list(outcomes.values()), [str(groups[key]) for key in outcomes], (0.0, 1.0))


def pooled_change(records: Sequence[Record], model: str, base: str, suite: str, metric: str) -> Paired:
    """The change from ``base`` to ``model``, paired by row and seed.

    Raises:
        EvidenceError: a record has them judged by different judges.
    """
    for record in records:
        sides = [record.evaluations[key].judges.get(f"{suite}.{metric}") for key in (model, base) if key in record.evaluations]
        if len({digest for digest in sides if digest}) > 1:
            raise EvidenceError(f"{record.run}, seed {record.seed}: {suite}.{metric} of {model} and of {base} is by different judges")
    return compare_paired(_by_row(records, model, suite, metric), _by_row(records, base, suite, metric), groups_of(records, suite))


def term_of(records: Sequence[Record], model: str, base: str, suite: str, metric: str, weight: float) -> tuple[Term, int] | None:
    """A pooled change as a part of a weighted sum, with its pairs; None where it, or its interval, is not there."""
    paired = pooled_change(records, model, base, suite, metric)
    if paired.difference is None or paired.low is None or paired.high is None:
        return None
    groups = groups_of(records, suite)
    sides = [_by_row(records, key, suite, metric).keys() for key in (model, base)]
    members = frozenset(groups[key] for key in sides[0] & sides[1])
    return Term(weight, paired.difference, (paired.low, paired.high), members), paired.n


def pooled_fall(records: Sequence[Record], model: str, base: str) -> tuple[float, float, float] | None:
    """With its 95 % interval, 1 − (mean length of ``model``'s replies) / (that of ``base``'s), paired by row and seed; None where a record
    does not hold the lengths.

    Linearised: with r the ratio, the mean over rows of (after − r · before) / mean(before) has the ratio's variance (W. G. Cochran 1977,
    Sampling Techniques, section 6.3), here between groups.
    """
    after, before, groups = [], [], []
    for record in records:
        sides = [record.evaluations[key].lengths if key in record.evaluations else {} for key in (model, base)]
        if not sides[0] or sides[0].keys() != sides[1].keys():
            return None
        for suite, lengths in sides[0].items():
            rows = groups_of([record], suite)
            pairs = list(zip(lengths, sides[1][suite], strict=False))
            after += [float(length) for length, _ in pairs]
            before += [float(length) for _, length in pairs]
            groups += [rows[f"{record.seed}/{row}"] for row in range(len(pairs))]
    mean = math.fsum(before) / len(before)
    ratio = math.fsum(after) / math.fsum(before)
    left_N = np.array([(a - ratio * b) / mean for a, b in zip(after, before, strict=True)])
    between = t_interval(left_N, numbered(groups, len(groups)), (-math.inf, math.inf))  # about 0, which is the mean of what is left
    return None if between is None else (1 - ratio, 1 - ratio + between[0], 1 - ratio + between[1])


def judged_unsafe(records: Sequence[Record], model: str, suite: str) -> tuple[int, int]:
    """How many replies to harmful prompts the judge calls unsafe, and how many of these refuse by the phrases."""
    refused, unsafe = (_by_row(records, model, suite, metric) for metric in ("safety", "unsafe"))
    called = [key for key, outcome in unsafe.items() if outcome]
    return len(called), sum(refused.get(key) == 1 for key in called)


def suites_of(records: Sequence[Record], model: str, metrics: Iterable[str] | None = None) -> list[tuple[str, str, int]]:
    """(suite, metric, sign) of what a model was measured on; the sign is −1 where lower is better."""
    wanted = None if metrics is None else set(metrics)
    found: dict[str, tuple[str, str, int]] = {}
    for record in records:
        for suite in record.evaluations[model].values if model in record.evaluations else ():
            rows = record.suites[suite]
            if wanted is None or rows.metric in wanted:
                found[suite] = (suite, rows.metric, -1 if rows.better == "lower" else 1)
    return list(found.values())


def pooled_axes(records: Sequence[Record], model: str, base: str, axes: Sequence[Sequence[str]] = (SAFETY, CAPABILITY)) -> Figure:
    """The mean change of axes, each the mean of its metrics, each the mean of its suites."""
    terms: list[Term] = []
    count = 0
    for axis in axes:
        measured = suites_of(records, model, axis)
        metrics = {metric for _, metric, _ in measured}
        for suite, metric, sign in measured:
            alike = sum(other == metric for _, other, _ in measured)
            found = term_of(records, model, base, suite, metric, sign / alike / len(metrics) / len(axes))
            if found is None:
                return Figure(value=None, n=count)
            terms.append(found[0])
            count += found[1]
        if not measured:
            return Figure(value=None, n=count)
    value, interval = weighted_sum(terms)
    return Figure(value=value, n=count, interval=None if interval is None else list(interval))


def lowest_change(
    records: Sequence[Record], model: str, base: str, metrics: Iterable[str] | None = None
) -> tuple[str, Paired, float] | None:
    """The suite that lost most, by its own metric or by the judge: its name, its change, and the change with the sign of better; None
    where one of them was not compared.
    """
    found = []
    for suite, metric, sign in suites_of(records, model, metrics):
        judged = f"{metric}{JUDGED}"
        with_judge = any(judged in record.evaluations[model].outcomes.get(suite, {}) for record in records if model in record.evaluations)
        for name in (metric, judged) if with_judge else (metric,):
            paired = pooled_change(records, model, base, suite, name)
            if paired.difference is None:
                return None
            found.append((f"{suite}, by the judge" if name == judged else suite, paired, sign * paired.difference))
    return min(found, key=lambda one: one[2]) if found else None
