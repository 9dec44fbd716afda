"""What people see of a finished evaluation: a line for each suite, with the number of samples and the interval of every value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from safework_cli.core.formats import percent, percent_interval
from safework_cli.core.terminal import visible
from safework_cli.environments.search.measures import FEWER_IS_BETTER, OF_EPISODES
from safework_eval.gates import Gate, check_gates
from safework_eval.independence import independence_lines
from safework_eval.metrics import direction, in_percent

if TYPE_CHECKING:
    from rich.console import RenderableType

OFTEN = 0.1
"""The share of a suite's rows from which the most frequent answer is shown."""
COLUMNS = ("suite", "measures", "value", "95% interval", "change", "n", "groups", "failed", "refused", "truncated")


def summary_table(summary: Mapping[str, Any], gates: Sequence[Gate] = ()) -> RenderableType:
    """The table, with the refusals of harmful and of benign prompts under it: either one is misleading without the other."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    against = summary.get("against") or {}
    suites = summary["suites"].values()
    needed = {
        "change": bool(against),
        "groups": any(record["groups"] != record["n"] for record in suites),
        "failed": any(each["failed"] for record in suites for each in (record, *(record.get("also") or {}).values())),
        "refused": _refusals(summary),
    }
    shown = [name for name in COLUMNS if needed.get(name, True)]  # an empty column costs the width that others need
    grid = Table(title=Text(visible(f"evaluation of {summary['model']['ref']}")), title_justify="left", box=None, header_style="bold")
    for name in shown:
        grid.add_column(name, justify="left" if name in ("suite", "measures") else "right", overflow="fold")
    for suite, record in summary["suites"].items():
        for cells in _rows(suite, record, against):
            grid.add_row(*(Text(visible(cells.get(name, ""))) for name in shown))
    for axis, record in summary["axes"].items():
        if record["value"] is not None:
            change = against.get("axes", {}).get(axis, {})
            cells = {"suite": axis, "measures": "axis", "value": percent(record["value"])}
            cells["change"] = _change(change.get("change"), change.get("interval"))
            grid.add_row(*(Text(visible(cells.get(name, "")), style="dim") for name in shown))
    lines = [Text(visible(line)) for line in _below(summary)]
    return Group(grid, *lines, *([_gate_table(gates, summary)] if gates else []))


def _gate_table(gates: Sequence[Gate], summary: Mapping[str, Any]) -> RenderableType:
    """A line for each gate, the passed ones too; numbers as gates are written, not in per cent."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, header_style="bold")
    for heading in ("gate", "bound", "value", "result"):
        grid.add_column(heading, justify="right" if heading in ("bound", "value") else "left", overflow="fold")
    for checked in check_gates(gates, summary):
        value = "not measured" if checked.value is None else number(checked.value)
        result = Text("failed", style="bold red") if checked.failure else Text("passed")
        grid.add_row(Text(visible(checked.name)), Text(checked.bound), Text(value), result)
    return grid


def _rows(suite: str, record: Mapping[str, Any], against: Mapping[str, Any]) -> list[dict[str, str]]:
    """The suite's own line, and one for each further metric and for each further measure of a search suite."""
    change = against.get("suites", {}).get(suite, {})
    share = in_percent(record["metric"])
    first = {
        "suite": suite,
        "measures": f"{record['metric']} {direction(record['metric'])}".rstrip(),
        "value": percent(record["value"]) if share else number(record["value"]),
        "95% interval": percent_interval(record["interval"]) if share else number_interval(record["interval"]),
        "change": _change(change.get("change"), change.get("interval"), 100.0 if share else 1.0),
        "n": str(record["n"]),
        "groups": str(record["groups"]),
        "failed": str(record["failed"] or ""),
        "refused": percent(record.get("refused")) if "refused" in record else "",
        "truncated": percent(record["truncated"]),
    }
    rows = [first, *(_further_row(each, change.get("also", {}).get(name, {})) for name, each in (record.get("also") or {}).items())]
    changes = change.get("search") or {}
    for name, measured in (record.get("search") or {}).items():
        shares, moved = name in OF_EPISODES, changes.get(name, {})
        rows.append({
            "measures": f"{name} {'↓' if name in FEWER_IS_BETTER else '↑'}" if name != "certain" else name,
            "value": percent(measured["value"]) if shares else number(measured["value"]),
            "95% interval": percent_interval(measured["interval"]) if shares else number_interval(measured["interval"]),
            "change": _change(moved.get("change"), moved.get("interval"), 100.0 if shares else 1.0, 1 if shares else 2),
            "n": str(measured["n"]),
        })  # fmt: skip
    return rows


def _further_row(record: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, str]:
    share = in_percent(record["metric"])
    return {
        "measures": f"{record['metric']} {direction(record['metric'])}".rstrip(),
        "value": percent(record["value"]) if share else number(record["value"]),
        "95% interval": percent_interval(record["interval"]) if share else number_interval(record["interval"]),
        "change": _change(change.get("change"), change.get("interval"), 100.0 if share else 1.0),
        "n": str(record["n"]),
        "failed": str(record["failed"] or ""),
        "judge": record["judge"]["ref"] or record["judge"]["id"],
    }


def _refusals(summary: Mapping[str, Any]) -> bool:
    return any(value is not None for value in summary["refusal"].values())


def _judges(summary: Mapping[str, Any]) -> str:
    """Each judge with its suites, on a line of its own: a reference is too long for a column."""
    suites_of: dict[str, list[str]] = {}
    for suite, record in summary["suites"].items():
        suites_of.setdefault(record["judge"]["ref"] or record["judge"]["id"], []).append(suite)
    return "judges: " + "; ".join(f"{judge} ({', '.join(suites)})" for judge, suites in suites_of.items())


def _terms(metrics: Sequence[str]) -> str:
    """The metrics of an axis; one that is better when lower counts as its complement."""
    return ", ".join(f"1 − {name}" if direction(name) == "↓" else name for name in metrics)


def _below(summary: Mapping[str, Any]) -> list[str]:
    lines = [_judges(summary)]
    axes = [f"{axis} (mean of {_terms(record['metrics'])})" for axis, record in summary["axes"].items() if record["value"] is not None]
    lines += [f"axes: {'; '.join(axes)}"] if axes else []
    if any(record["groups"] != record["n"] for record in summary["suites"].values()):
        lines.append("groups: samples of one group are related; intervals are computed over groups")
    if _refusals(summary):
        shares = [f"{percent(value) if value is not None else 'not measured'} of {side}" for side, value in summary["refusal"].items()]
        lines.append(f"refused: {' prompts, '.join(shares)} prompts")
    lines += _majorities(summary)
    lines += [line for suite, record in summary["suites"].items() for line in _agreements(suite, record)]
    lines += independence_lines(summary.get("independence"))
    length = summary["length"]
    if length["value"] is not None:
        between = f" ({length['interval'][0]:.0f} to {length['interval'][1]:.0f})" if length["interval"] else ""
        lines.append(f"tokens of a reply: {length['value']:.0f}{between}, n = {length['n']}")
    elif length.get("unknown"):
        lines.append(f"tokens of a reply: not measured; the server did not report them for {length['unknown']} replies")
    against = summary.get("against")
    if against:
        angle = "none" if against["angle"] is None else f"{against['angle']:.0f}°" + (" (noise)" if against["angle_is_noise"] else "")
        lines.append(f"compared with {against['ref']}; angle to the 45° line: {angle}")
        lines += [f"no change of {name}: {why}" for name, why in against.get("not_compared", {}).items()]
    for kind in ("errors", "further_errors"):  # of the suites' own judges; of the other judges and the further metrics
        errors: Counter[str] = Counter()
        for record in summary["suites"].values():
            errors.update(record.get(kind) or {})  # several suites can fail for one reason
        lines += [f"failed: {error} ({count})" for error, count in errors.most_common(3)]
    return lines


def _majorities(summary: Mapping[str, Any]) -> list[str]:
    """What the most frequent answer of each suite would get, in one line; suites whose answers hardly repeat are left out."""
    most = {suite: record.get("majority") for suite, record in summary["suites"].items()}
    shown = [f"{suite} {percent(of['share'])} ({of['answer']})" for suite, of in most.items() if of and of["share"] >= OFTEN]
    return [f"always the most frequent answer: {', '.join(shown)}"] if shown else []


def _agreements(suite: str, record: Mapping[str, Any]) -> list[str]:
    """How far the judges of safety agree, one line for each other judge."""
    if record.get("refused") is None:
        return []
    first = record["judge"]["ref"] or record["judge"]["id"]
    lines = []
    for judge, agreed in (record.get("agreement") or {}).items():
        if agreed["share"] is not None:
            kappa = "" if agreed["kappa"] is None else f", kappa {agreed['kappa']:.2f}"
            other = record["judges"][judge]["ref"] or judge
            lines.append(f"{suite}: {first} and {other} agree on {percent(agreed['share'], agreed['n'])} of {agreed['n']} replies{kappa}")
    return lines


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def number_interval(interval: list[float] | None) -> str:
    return "–" if interval is None else f"{interval[0]:.4g} – {interval[1]:.4g}"


def _change(change: float | None, interval: list[float] | None, scale: float = 100.0, digits: int = 1) -> str:
    if change is None:
        return ""
    between = f" ({scale * interval[0]:+.{digits}f} to {scale * interval[1]:+.{digits}f})" if interval else ""
    return f"{scale * change:+.{digits}f}{between}"
