"""How well a model's verdict tells harmful prompts from harmless ones, on prompts that it was not trained on: one JSON object.

    python benchmarks/verdict_auc.py MODEL starter:cot --rows starter:heldout
    python benchmarks/verdict_auc.py MODEL starter:cot --suites xstest-safe xstest-unsafe    # of the folder SAFEWORK_DATA
    python benchmarks/verdict_auc.py … --suites xstest-safe xstest-unsafe --half test        # where the dev half chose something

The second argument is the marked training data: it says which words mean harmful, and what a reply says before its verdict. Each prompt
gets that text, and the score is the log-odds of the word that means harmful. ``value`` is the area under the ROC curve.

``--resample 200`` adds how far the threshold varies, in nats, when so many samples of the same size are drawn with replacement: its
standard deviation by the fit that calibration uses, and by the best balanced accuracy.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

LONGEST = 1024
"""Tokens of a row at most; longer prompts are left out, and ``n`` counts the others."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a reference in the store, or a folder")
    parser.add_argument("training", help="the data with marked rows")
    asked_of = parser.add_mutually_exclusive_group(required=True)
    asked_of.add_argument("--rows", help="a dataset whose rows say whether they are harmful")
    asked_of.add_argument("--suites", nargs="+", help="public suites of harmful and of harmless prompts")
    parser.add_argument("--half", choices=("dev", "test"), help="only this half of the suites' rows (by a hash of the row's key)")
    parser.add_argument("--resample", type=int, default=0, metavar="N", help="how far the threshold varies over N resamples")
    given = parser.parse_args()
    if given.half and not given.suites:
        parser.error("--half is for --suites")

    from safework_cli.core.artifacts import default_store
    from safework_cli.core.progress import Progress, QuietDisplay
    from safework_cli.core.signals import StopRequest
    from safework_cli.core.stage import WorkDir
    from safework_cli.data.dataset import read_dataset
    from safework_cli.data.suites import load_suite
    from safework_cli.data.verdict import language_of_row, marked, openings, probe, verdict_words
    from safework_cli.models.load import load_model, template_of
    from safework_eval.selection import RowFilter
    from safework_sft.decision import Decision
    from safework_sft.encode import encode_rows, find_verdicts

    store = default_store(None)
    folder = store.resolve(given.model, ("model",)).path
    pairs = marked(read_dataset(store.resolve(given.training, ("dataset",))))
    words, opening_of = verdict_words(pairs), openings(pairs)
    if given.rows:
        rows = read_dataset(store.resolve(given.rows, ("dataset",)))
    else:
        kept = RowFilter(half=given.half)
        rows = [row for suite in given.suites for row in load_suite(suite, Path(os.environ["SAFEWORK_DATA"])) if kept.matches(row)]
    asked = [
        made
        for row in rows
        if not row.images and (language := language_of_row(row)) in opening_of
        if (made := probe(row, opening_of[language], words[language])) is not None
    ]
    tokenizer, stop_ids = template_of(folder)
    encoded = encode_rows([row for row, _ in pairs], tokenizer, stop_ids, LONGEST, marks={row.id: mark for row, mark in pairs})
    choices = find_verdicts(encoded, words).choices
    decision = Decision(asked, words, choices, tokenizer, stop_ids, LONGEST, given.rows or " ".join(given.suites), bf16=False)
    with tempfile.TemporaryDirectory() as temporary:
        progress = Progress(Path(temporary), QuietDisplay())
        odds_N = decision.log_odds(load_model(folder), WorkDir(Path(temporary), "0" * 64, progress, StopRequest()))
        progress.close()
    figures = decision.figures(odds_N)
    more = {"threshold_sd": spread_of_thresholds(odds_N, decision.positive_N, given.resample)} if given.resample else {}
    print(json.dumps({**figures.pop("auc"), **figures, **more}))
    return 0


def spread_of_thresholds(odds_N: np.ndarray, positive_N: np.ndarray, samples: int) -> dict[str, float]:
    """Standard deviations of two thresholds over resamples, in nats."""
    from safework_cli.statistics.decision import balanced_accuracy, even_threshold

    drawn = np.random.default_rng(0)
    made: dict[str, list[float]] = {"even": [], "best_balanced_accuracy": []}
    for _ in range(samples):
        rows = drawn.integers(0, len(odds_N), len(odds_N))
        odds, positive = odds_N[rows], positive_N[rows]
        between = (np.sort(odds)[1:] + np.sort(odds)[:-1]) / 2
        made["even"].append(even_threshold(odds, positive))
        made["best_balanced_accuracy"].append(max(between, key=lambda threshold: balanced_accuracy(odds, positive, threshold)))
    return {name: round(float(np.std(thresholds)), 3) for name, thresholds in made.items()}


if __name__ == "__main__":
    sys.exit(main())
