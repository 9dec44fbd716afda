"""A rule as an input of a stage, in a slot that takes ``rule:NAME``."""

from __future__ import annotations

from pathlib import Path

from safework_cli.core.artifacts.external import RULE_PREFIX, external_manifest
from safework_cli.core.artifacts.manifest import Artifact
from safework_cli.verifiers.rules.registry import parse_rule, rule_digest


def rule_artifact(reference: str) -> Artifact | None:
    """The artifact of ``rule:NAME`` or ``rule:NAME{parameter: value}``, whose digest is the rule's; None for other references.

    Raises:
        ConfigError: the rule is unknown, or a parameter is wrong.
    """
    if not reference.startswith(RULE_PREFIX):
        return None
    rule = parse_rule(reference)
    return Artifact(Path(), external_manifest("verifier", rule.name, [], rule_digest(reference)), external=f"{RULE_PREFIX}{rule}")
