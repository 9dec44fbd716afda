"""Rule verifiers: what can be decided without a model. Torch-free; found by name (``registry``)."""

from __future__ import annotations

from safework_cli.verifiers.rules.correctness import CorrectnessRule, check_golds, rule_for
from safework_cli.verifiers.rules.refusal import RefusalRule, refusal_label
from safework_cli.verifiers.rules.registry import (
    RuleText,
    bare_name,
    names_rule,
    parse_rule,
    rule_digest,
    rule_digests,
    rule_names,
    rule_verifier,
)

__all__ = [
    "CorrectnessRule",
    "RefusalRule",
    "RuleText",
    "bare_name",
    "check_golds",
    "names_rule",
    "parse_rule",
    "refusal_label",
    "rule_digest",
    "rule_digests",
    "rule_for",
    "rule_names",
    "rule_verifier",
]
