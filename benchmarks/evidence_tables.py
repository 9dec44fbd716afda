"""The tables of ``docs/results.md``, from the records. Pure: the same records give the same text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from evidence_bar import Runs, judged
from evidence_bars import BARS
from evidence_pooled import judged_unsafe, pooled_axes, pooled_change, pooled_value, suites_of
from evidence_records import CAPABILITY, SAFETY, Evaluation, EvidenceError, Record, machines
from evidence_runs import Definition
from evidence_summary import summary
from evidence_text import flat, lines, points_between, share, table

BEGIN, END = "<!-- evidence: {} -->", "<!-- end of evidence -->"
_BLOCK = re.compile(r"<!-- evidence: ([a-z0-9-]+) -->\n.*?<!-- end of evidence -->", re.DOTALL)


def filled(page: str, runs: Runs, known: Mapping[str, Definition]) -> str:
    """A page with every block between the markers written anew from the records.

    Raises:
        EvidenceError: a block is named like no run, or the page has no block.
    """
    if not _BLOCK.search(page):
        raise EvidenceError(f"the page has no {BEGIN.format('RUN')} … {END}")

    def block(match: re.Match[str]) -> str:
        name = match[1]
        whole = {"bars": lambda: bars_table(runs, known), "demo-times": lambda: times_line(runs.get("demo", ()))}
        for run in ("demo", "long"):
            command = f"`python benchmarks/evidence.py run {run} --seed 0`"
            whole[f"{run}-summary"] = lambda run=run, command=command: summary(runs.get(run, ()), known[run].final, command)
        if name not in whole and name not in known:
            raise EvidenceError(f"the page has a block for {name}, and there are {', '.join([*whole, *known])}")
        text = whole[name]() if name in whole else run_table(name, runs.get(name, ()), known[name])
        return f"{BEGIN.format(name)}\n\n{text}\n{END}"

    return _BLOCK.sub(block, page)


def bars_table(runs: Runs, known: Mapping[str, Definition]) -> str:
    rows = []
    for line in (judged(bar, runs, known[bar.run].seeds if bar.run else ()) for bar in BARS):
        interval = "" if line["interval"] is None else f" ({line['interval'][0]:.1f} to {line['interval'][1]:.1f})"
        value = "–" if line["value"] is None else f"{line['value']:.4g}{interval}"
        seeds = [f"{each:.4g}" for each in line["by_seed"].values() if each is not None]
        spread = " / ".join(seeds) if len(seeds) > 1 else ""
        rows.append([line["name"], line["bar"], value, spread, "yes" if line["holds"] else "**no**", line["note"]])
    return table(["what", "bar", "measured", "by seed", "holds", "note"], rows)


def run_table(name: str, records: Sequence[Record], definition: Definition) -> str:
    """A run's commands, its figures pooled over the seeds, its changes, and its times."""
    command = f"`python benchmarks/evidence.py run {name} --seed N`"
    if not records:
        seeds = ", ".join(map(str, definition.seeds))
        return lines(f"{_sentence(definition.about)} Not run yet: {command}, seeds {seeds}.")
    seeds = ", ".join(str(record.seed) for record in records)
    made_at = {commit[:12] for record in records for commit in (record.commit, *(step.commit for step in record.steps)) if commit}
    unclean = " (with uncommitted changes)" if any(record.uncommitted for record in records) else ""
    commits = ", ".join(sorted(made_at)) + unclean
    parts = [
        lines(
            f"{_sentence(definition.about)} {command}, seeds {seeds}; commit {commits}; {machines(records)}. "
            "Values are pooled over the seeds, with 95 % intervals in brackets, which are over prompts, for these trainings: another "
            "seed can differ by more. Rows of one group, and one row under several seeds, count as one cluster."
        )
    ]
    models = list(dict.fromkeys(key for record in records for key in record.evaluations))
    if models:
        parts.append(_values(records, models))
    if contradicted := _contradicted(records, models):
        parts.append(lines("Replies that the judge calls unsafe, and how many of them refuse by the phrases:") + "\n" + contradicted)
    if changes := _changes(records, models, definition.compare):
        parts.append(lines("Changes, in points, paired by row:") + "\n" + changes)
        parts.append(lines("By seed: change in safety / in capability, in points:") + "\n" + _by_seed(records, models))
    if measures := _measures(records):
        parts.append(measures)
    for name in dict.fromkeys(name for record in records for name in record.curves):
        parts.append(lines(f"Learning curve of {name} on held-out prompts of the dev part, by step (0: the starting model):"))
        parts.append(_curve(records, name))
    if judges := dict.fromkeys(_judge(each) for record in records for each in record.evaluations.values() if each.independence):
        parts.append(lines(f"The judge of safety next to the phrases: {'; '.join(judges)}."))
    parts.append(_times(records))
    return "\n".join(parts)


def _values(records: Sequence[Record], models: Sequence[str]) -> str:
    rows = []
    for suite, metric in _measured(records, models):
        asked = [model for model in models if pooled_value(records, model, suite, metric).n]
        found = {model: pooled_value(records, model, suite, metric, asked) for model in asked}
        cells = [share(found[model]) if model in found else "–" for model in models]
        rows.append([suite, metric, str(next(iter(found.values())).n), *cells])
    tokens = []
    for model in models:
        values = [record.evaluations[model].tokens.value for record in records if model in record.evaluations]
        known = [value for value in values if value is not None]
        tokens.append(f"{sum(known) / len(known):.0f}" if known else "–")
    rows.append(["mean length of all replies, tokens", "", "", *tokens])
    return table(["suite", "metric", "n", *models], rows)


def _contradicted(records: Sequence[Record], models: Sequence[str]) -> str:
    """Where the two measures of safety contradict each other: a line for each suite with both."""
    rows = []
    for suite in (suite for suite, metric in _measured(records, models) if metric == "unsafe"):
        cells = []
        for model in models:
            unsafe, refused = judged_unsafe(records, model, suite)
            cells.append(f"{unsafe}, {refused} of them refuse" if pooled_value(records, model, suite, "unsafe").n else "–")
        rows.append([suite, *cells])
    return table(["suite", *models], rows) if rows else ""


def _changes(records: Sequence[Record], models: Sequence[str], further: Mapping[str, Sequence[str]]) -> str:
    kept = {model: evaluation.against for record in records for model, evaluation in record.evaluations.items() if evaluation.against}
    compared = [*kept.items(), *((model, other) for model, others in further.items() for other in others)]
    if not compared:
        return ""
    rows = []
    for suite, metric in _measured(records, list(kept)):
        cells = []
        for model, base in compared:
            paired = pooled_change(records, model, base, suite, metric)
            cells.append(points_between(paired.difference, paired.low, paired.high))
        rows.append([suite, metric, *cells])
    for title, axes in (("safety", (SAFETY,)), ("capability", (CAPABILITY,))):
        cells = []
        for model, base in compared:
            figure = pooled_axes(records, model, base, axes)
            low, high = figure.interval or (None, None)
            cells.append(points_between(figure.value, low, high))
        rows.append([f"**{title}**", "axis", *cells])
    return table(["suite", "metric", *(f"{model} against {base}" for model, base in compared)], rows)


def _by_seed(records: Sequence[Record], models: Sequence[str]) -> str:
    """The spread over the seeds: the axes of each evaluation as its own summary has them."""
    compared = [model for model in models if any(r.evaluations[model].axes for r in records if model in r.evaluations)]
    rows = []
    for record in records:
        axes = [record.evaluations[model].axes if model in record.evaluations else {} for model in compared]
        changes = [[points_between(of[axis].value if axis in of else None, None, None) for axis in ("safety", "capability")] for of in axes]
        rows.append([str(record.seed), *(" / ".join(pair) for pair in changes)])
    return table(["seed", *compared], rows)


def _measured(records: Sequence[Record], models: Sequence[str]) -> list[tuple[str, str]]:
    found: dict[tuple[str, str], None] = {}
    for model in models:
        for suite, _, _ in suites_of(records, model):
            for record in records:
                for metric in record.evaluations[model].outcomes.get(suite, {}) if model in record.evaluations else ():
                    found[suite, metric] = None
    return list(found)


def _curve(records: Sequence[Record], name: str) -> str:
    """A training's numbers on held-out prompts: a line for each seed and number, a column for each step."""
    curves = {record.seed: {point.step: point.values for point in record.curves.get(name, ())} for record in records}
    steps = sorted({step for curve in curves.values() for step in curve})
    rows = []
    for seed, curve in curves.items():
        for number in dict.fromkeys(number for values in curve.values() for number in values):
            cells = [f"{curve[step][number]:.3g}" if number in curve.get(step, {}) else "–" for step in steps]
            rows.append([str(seed), number, *cells])
    return table(["seed", "measure", *map(str, steps)], rows)


def _measures(records: Sequence[Record]) -> str:
    """The further measures: a line for each number, a column for each seed."""
    found = {record.seed: {name: flat(value) for name, value in record.measures.items()} for record in records}
    keys = dict.fromkeys((name, key) for measures in found.values() for name, numbers in measures.items() for key in numbers)
    rows = [[name, key, *(measures.get(name, {}).get(key, "–") for measures in found.values())] for name, key in keys]
    return table(["measure", "number", *(f"seed {seed}" for seed in found)], rows) if rows else ""


def _judge(evaluation: Evaluation) -> str:
    state = evaluation.independence or {}
    known = {"True": "no stage was trained against it", "False": "a stage was trained against it"}
    said = known.get(str(state.get("independent")), "whether a stage was trained against it is not known")
    return f"{state.get('judge')} ({said})"


def times_line(records: Sequence[Record]) -> str:
    """Seconds of each command of the first seed, as a sentence."""
    if not records:
        return "Not measured yet: `python benchmarks/evidence.py run demo`.\n"
    steps = ", ".join(f"{step.name} {step.seconds:.0f}" for step in records[0].steps)
    total = sum(step.seconds for step in records[0].steps)
    return lines(f"Seconds of seed {records[0].seed} ({records[0].machine}): {steps}; {total // 60:.0f} min {total % 60:02.0f} s in all.")


def _times(records: Sequence[Record]) -> str:
    """Seconds of each step when it was run for the first time, by seed, with what the first seed made."""
    names = list(dict.fromkeys(step.name for record in records for step in record.steps))
    rows = []
    for name in names:
        seconds = [f"{step.seconds:.0f}" for record in records for step in record.steps if step.name == name]
        made = next(step.ref for record in records for step in record.steps if step.name == name)
        rows.append([name, made, " / ".join(seconds)])
    rows.append(["all", "", " / ".join(f"{sum(step.seconds for step in record.steps):.0f}" for record in records)])
    return "Seconds of each command, by seed:\n\n" + table(["step", "made", "seconds"], rows)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
