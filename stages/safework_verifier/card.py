"""The page that is saved with a verifier: what it was trained on, how good it is, where it errs."""

from __future__ import annotations

from typing import Any

from safework_cli.core.formats import interval
from safework_cli.report.text import escaped, shortened
from safework_cli.verifiers.spec import LabelSpec
from safework_verifier.attacks import ATTACKS, EMPTY
from safework_verifier.rows import Parts

SHOWN_CHARACTERS = 160


def card(
    spec: LabelSpec,
    metrics: dict[str, Any],
    parts: Parts,
    confusion: dict[str, Any],
    flips: list[dict[str, Any]],
    model_ref: str,
    data_ref: str,
) -> str:
    """Markdown text."""
    rows = metrics["rows"]
    lines = [
        f"# {spec.task} verifier",
        "",
        *_how(spec, rows, model_ref, data_ref),
        "",
        "## Measured",
        "",
        "| | value | 95% interval | n |",
        "|---|---|---|---|",
        *(_line(name, metrics[name]) for name in ("accuracy", "macro_f1", "ece", "brier", "ece_before_temperature") if name in metrics),
        *(_line(f"{name}: {what}", entry[what]) for name, entry in metrics["baselines"].items() for what in ("accuracy", "macro_f1")),
        *(_line(f"accuracy on source {escaped(source) or '(unnamed)'}", entry) for source, entry in metrics["by_source"].items()),
        *(
            _line(f"{escaped(decision)}: {what}", entry[what])
            for decision, entry in metrics.get("decisions", {}).items()
            for what in ("accuracy", "auroc")
        ),
        "",
        *_decision_lines(metrics.get("decisions", {})),
        "Accuracies have Wilson intervals; the others are bootstrapped over prompts. The refusal-phrase baseline is given",
        'whether a prompt is harmful; "verifier given harmful" is this verifier with the same knowledge.',
        "",
        *_annotator_lines(metrics.get("annotators", {})),
        *_attack_lines(metrics.get("attacks", {}), flips),
        "## Where it errs",
        "",
        "Rows are gold labels, columns the verifier's labels.",
        "",
        "| gold | " + " | ".join(map(escaped, spec.codes)) + " | recall |",
        "|---|" + "---|" * (len(spec.codes) + 1),
        *_confusion_lines(spec, confusion["gold_by_predicted"]),
        "",
        "## Labels",
        "",
        "| code | label | score | rows trained on |",
        "|---|---|---|---|",
        *_label_lines(spec, parts),
        "",
        f"Prompts have at most {spec.max_length} tokens: {rows.get('train_truncated', 0)} training rows and",
        f"{rows.get('held_out_truncated', 0)} held-out rows lost the middle of their reply. The thought of a reply is not judged.",
        "",
    ]
    return "\n".join(lines)


def _how(spec: LabelSpec, rows: dict[str, Any], model_ref: str, data_ref: str) -> list[str]:
    codes = ", ".join(spec.codes)
    if spec.endpoint is not None:
        unscored = f"; {rows['unscored']} further rows got no label" if rows.get("unscored") else ""
        return [f"Labels a reply by the answer of `{model_ref}` ({codes}). Measured on {rows['report']} rows of `{data_ref}`{unscored}."]
    trained = f"Trained on `{data_ref}`: {rows['train']} rows" if rows["train"] else f"Not trained here. Of `{data_ref}`"
    return [
        f"Labels a reply by the probabilities of {codes} as next token, in one forward pass of a model",
        f"made from `{model_ref}`. {trained}; {rows['calibration']} further rows fitted",
        f"the temperature ({spec.temperature:g}), and {rows['report']} more, of other prompts than both, are reported here.",
    ]


def _line(name: str, entry: dict[str, Any]) -> str:
    return f"| {name.replace('_', ' ')} | {entry['value']:.3f} | {interval(entry['interval'])} | {entry['n']} |"


def _decision_lines(decisions: dict[str, Any]) -> list[str]:
    """What the lines of decisions are, and what a judge that always says no would reach."""
    if not decisions:
        return []
    shares = "; ".join(f"{escaped(name)} {1 - entry['positive']:.3f}" for name, entry in decisions.items())
    return [
        '"Unsafe" and "refused" are the two decisions that an evaluation takes from this judge, given whether the prompt is harmful.',
        f"A judge that always said no would have an accuracy of: {shares}.",
        "",
    ]


def _annotator_lines(agreed: dict[str, Any]) -> list[str]:
    if not agreed:
        return []
    lines = ["## Agreement with people", "", "| | agreement | 95% interval | n | Cohen's κ |", "|---|---|---|---|---|"]
    for name, pair in agreed.items():
        kappa = "undefined" if pair["cohen_kappa"] is None else f"{pair['cohen_kappa']:.3f}"
        lines.append(f"{_line(name, pair['agreement'])} {kappa} |")
    return [*lines, ""]


def _attack_lines(attacks: dict[str, Any], flips: list[dict[str, Any]]) -> list[str]:
    if not attacks:
        return []
    lines = [
        "## Attack sheet",
        "",
        "Held-out replies that were judged correctly, changed in ways that do not change the right label: how many verdicts flipped.",
        "",
        "| attack | what it does | flipped | 95% interval | n |",
        "|---|---|---|---|---|",
    ]
    what = {attack.name: attack.what for attack in (*ATTACKS, EMPTY)}
    for name, flipped in attacks.items():
        lines.append(f"| {name} | {what.get(name, '')} | {flipped['value']:.3f} | {interval(flipped['interval'])} | {flipped['n']} |")
    lines.append("")
    for flip in flips:
        shown = shortened(flip["reply"], SHOWN_CHARACTERS)
        lines.append(
            f"- {flip['attack']}, {escaped(flip['id'])}: {escaped(flip['gold'])} was called {escaped(flip['said'])}. {escaped(shown)}"
        )
    return [*lines, ""] if flips else lines


def _confusion_lines(spec: LabelSpec, counts: list[list[int]]) -> list[str]:
    lines = []
    for i, (code, label) in enumerate(zip(spec.codes, spec.labels, strict=True)):
        total = sum(counts[i])
        recall = f"{counts[i][i] / total:.2f} of {total}" if total else "no rows"
        lines.append(f"| {escaped(code)} {escaped(label)} | " + " | ".join(map(str, counts[i])) + f" | {recall} |")
    return lines


def _label_lines(spec: LabelSpec, parts: Parts) -> list[str]:
    trained = parts.counts(spec)["train"]
    return [
        f"| {escaped(code)} | {escaped(label)} | {spec.scores[label]:g} | {trained.get(label, 0)} |"
        for code, label in zip(spec.codes, spec.labels, strict=True)
    ]
