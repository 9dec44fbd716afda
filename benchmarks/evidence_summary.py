"""A run in a few lines, for readers who are new to it: the first metric of each suite by stage, and the change from base to end."""

from __future__ import annotations

from collections.abc import Sequence

from evidence_pooled import judged_unsafe, pooled_change, pooled_value
from evidence_records import Record, machines
from evidence_text import lines, points_between, share, table

LABELS = {
    ("harmful", "safety"): "harmful prompts refused",
    ("harmful", "unsafe"): "harmful prompts answered unsafely, by a judge that is not a reward",
    ("over-refusal", "over_refusal"): "harmless look-alikes refused",
    ("value", "value"): "values: the better choice",
    ("knowledge", "knowledge"): "knowledge: right answers",
    ("general", "general"): "arithmetic, edits and instructions",
    ("harmbench-test", "safety"): "HarmBench: refused",
    ("harmbench-test", "unsafe"): "HarmBench: answered unsafely, by a judge that is not a reward",
    ("xstest-unsafe", "safety"): "XSTest, unsafe prompts: refused",
    ("xstest-safe", "over_refusal"): "XSTest, safe prompts: refused",
    ("ifeval", "instruction"): "IFEval: instructions kept",
    ("xquad-en-given", "general"): "XQuAD: answers found in a passage",
    ("gsm8k-test", "general"): "GSM8K: right answers",
    ("mmlu-test", "knowledge"): "MMLU: right answers",
    ("arithmetic", "general"): "the starter set's arithmetic",
}
LOWER = ("unsafe", "over_refusal")


def summary(records: Sequence[Record], final: str, command: str) -> str:
    """A line for each suite; the change is that of the final model against the model that it is compared with, in points."""
    if not records:
        return lines(f"Not measured yet: {command}.")
    models = list(dict.fromkeys(model for record in records for model in record.evaluations))
    against = records[0].evaluations[final].against
    assert against is not None, "a final model is compared with the base"
    rows = []
    for suite, metric in _first_metrics(records, final):
        estimates = [pooled_value(records, model, suite, metric, models) for model in models]
        change = pooled_change(records, final, against, suite, metric)
        label = LABELS.get((suite, metric), f"{suite}: {metric}") + (" ↓" if metric in LOWER else " ↑")
        cells = [share(each, interval=False) for each in estimates]
        rows.append([label, str(estimates[0].n), *cells, str(change.n), points_between(change.difference, change.low, change.high)])
    header = ["held-out prompts", "n", *models, "n", f"{final} against {against}, points"]
    more = any(row[1] != row[-2] for row in rows)
    if not more:  # one number of prompts is enough
        header, rows = [*header[:-2], header[-1]], [[*row[:-2], row[-1]] for row in rows]
    seeds = ", ".join(str(record.seed) for record in records)
    minutes = sorted({round(sum(step.seconds for step in record.steps) / 60) for record in records})
    took = str(minutes[0]) if len(minutes) == 1 else f"{minutes[0]} to {minutes[-1]}"
    said = (
        f"Greedy replies to held-out prompts; seeds: {seeds}, {took} minutes each ({machines(records)}); in brackets 95 % intervals, "
        "paired by prompt, for these trainings: another seed can differ by more."
    )
    if more:
        said += (
            f" Values are over the prompts that all of these models were asked; the change is over all prompts of {final} and {against}."
        )
    for suite in (suite for suite, metric in _first_metrics(records, final) if metric == "unsafe"):
        unsafe, refused = judged_unsafe(records, final, suite)
        if refused:
            said += (
                f" The judge calls {unsafe} replies of `{final}` to the prompts of {suite} unsafe; by the phrases, {refused} of them are "
                "refusals: there the two measures contradict each other."
            )
    return table(header, rows) + "\n" + lines(said)


def _first_metrics(records: Sequence[Record], final: str) -> list[tuple[str, str]]:
    """The metrics with a label, in the order of the suites; of a suite without one its own."""
    found = []
    for suite, described in records[0].suites.items():
        kept = records[0].evaluations[final].outcomes.get(suite, {})
        labelled = [metric for of, metric in LABELS if of == suite and metric in kept]
        found += [(suite, metric) for metric in labelled or [described.metric]]
    return found
