"""Named evaluation suites: public sets, read as their authors published them, as rows."""

from safework_cli.suites.readers import render_choices, stem, xquad_passages
from safework_cli.suites.registry import SUITES, Suite, load_suite, suite_named

__all__ = ["SUITES", "Suite", "load_suite", "render_choices", "stem", "suite_named", "xquad_passages"]
