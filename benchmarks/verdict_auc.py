"""How well a model's verdict tells harmful prompts from harmless ones, on prompts that it was not trained on: one JSON object.

    python benchmarks/verdict_auc.py MODEL starter:cot --rows starter:heldout
    python benchmarks/verdict_auc.py MODEL starter:cot --suites xstest-safe xstest-unsafe    # of the folder SAFEWORK_DATA
    python benchmarks/verdict_auc.py … --suites xstest-safe xstest-unsafe --half test        # where the dev half chose something

The second argument is the marked training data: it says which words mean harmful, and what a reply says before its verdict. Each prompt
gets that text, and the score is the log-odds of the word that means harmful. ``value`` is the area under the ROC curve.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

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
        figures = decision.figures(decision.log_odds(load_model(folder), WorkDir(Path(temporary), "0" * 64, progress, StopRequest())))
        progress.close()
    print(json.dumps({**figures.pop("auc"), **figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
