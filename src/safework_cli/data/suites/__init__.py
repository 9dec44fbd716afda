"""Public sets by name, read as their authors published them, as rows: suites to evaluate on, and sets to train on."""

from safework_cli.data.suites.readers import render_choices, stem, xquad_passages
from safework_cli.data.suites.registry import SUITES, load_suite, suite_named
from safework_cli.data.suites.suite import Suite
from safework_cli.data.suites.training import TRAINING_SETS, training_set

__all__ = [
    "SUITES", "TRAINING_SETS", "Suite", "load_suite", "render_choices", "stem", "suite_named", "training_set", "xquad_passages",
]  # fmt: skip
