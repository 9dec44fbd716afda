"""The page that is saved with a value model."""

from __future__ import annotations

from typing import Any

from safework_cli.core.formats import interval
from safework_cli.verifiers.values import ValueSpec

MEASURES = ("squared_error", "skill", "ranking", "calibration_error")


def card(spec: ValueSpec, metrics: dict[str, Any], model: str, data: str) -> str:
    """Markdown text."""
    rows = metrics["rows"]
    lines = [
        "# Principled value model",
        "",
        f"Scores a prefix of a reply for {', '.join(spec.principles)}, and weights them by the prompt. Made from `{model}`; trained on "
        f"{rows['train']} prefixes of `{data}`, temperatures fitted on {rows['calibration']}, measured on {rows['report']} of other "
        "prompts than both.",
        "",
        "| principle | mean value | squared error | skill over the mean | right order of pairs | calibration error | n |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, measured in metrics["principles"].items():
        cells = [_with_interval(measured[key]) for key in MEASURES]
        lines.append(f"| {name} | {measured['mean_value']:.3f} | {' | '.join(cells)} | {measured['skill']['n']} |")
    lines += [
        "",
        f"The principle that decides most for a prompt gets the largest weight for {_with_interval(metrics['routing'])} of the prefixes.",
        "Intervals are bootstrapped over prompts, 95%. The values estimate Monte-Carlo means, which are noisy themselves.",
        "",
    ]
    return "\n".join(lines)


def _with_interval(measured: dict[str, Any]) -> str:
    return "not measured" if measured["value"] is None else f"{measured['value']:.3f} ({interval(measured['interval'])})"
