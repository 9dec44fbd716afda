"""A metric is one object and one line of registration: it is named by a suite, judged, summed up, gated and shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from safework_cli.core import registry
from safework_cli.core.artifacts import Store
from safework_cli.core.errors import ConfigError
from safework_cli.core.stage import Inputs, WorkDir
from safework_cli.data.row import Message, Row, write_rows
from safework_eval.config import EvalConfig
from safework_eval.metrics import AXES, all_metrics, metric_named, on_axis
from safework_eval.stage import stage


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "package"
    info = package / "theirs-1.dist-info"
    info.mkdir(parents=True)
    (package / "their_metrics.py").write_text(
        "from safework_eval.metrics import Metric\n"
        "WORDS = Metric('characters', 'characters of the reply', lambda judged: len(judged.reply), 'lower', (0, 1e6), rule=None)\n"
    )
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[safework.metrics]\ncharacters = their_metrics:WORDS\nwrong = their_metrics:Metric\n")
    monkeypatch.syspath_prepend(package)
    registry.entries.cache_clear()
    yield
    registry.entries.cache_clear()


def test_a_metric_of_another_package(theirs: None, store: Store, tiny_model: Path, work: WorkDir, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    rows = [Row(f"r{i}", "general", [Message(role="user", content=f"Say {i}")]) for i in range(3)]
    write_rows(tmp_path / "rows" / "a.parquet", rows)
    inputs = Inputs({"model": store.resolve(str(tiny_model), ("model",)), "data": store.resolve(str(tmp_path / "rows"), ("dataset",))})
    suites = [{"name": "long", "metric": "characters"}]
    config = EvalConfig.model_validate({"suites": suites, "max_tokens": 6, "gates": [{"metric": "long.characters", "max": 1}]})
    assert stage.plan(config, inputs).refusals == []
    outcome = stage.run(config, inputs, work)
    record = json.loads((work.output / "summary.json").read_text())["suites"]["long"]
    assert record["n"] == 3 and record["value"] > 1 and record["judge"]["id"] == "metric:characters"
    assert outcome.failed_gates == [f"long.characters is {record['value']:.4g}, above 1"]
    with pytest.raises(ConfigError, match="is a type"):
        metric_named("wrong")
    with pytest.raises(ValidationError, match="no metric 'character'; did you mean 'characters'"):
        EvalConfig.model_validate({"suites": [{"name": "long", "metric": "character"}]})


def test_our_metrics_and_their_axes() -> None:
    assert [metric.name for metric in all_metrics()] == [
        "safety", "safety_judged", "unsafe", "over_refusal", "over_refusal_judged", "helped", "nonsense", "situational",
        "safe_by_warning", "effective", "safe_and_effective", "value", "value_lenient",
        "knowledge", "knowledge_lenient", "general", "general_lenient", "instruction", "search",
    ]  # fmt: skip
    on = {axis: [(metric.name, metric.sign) for metric in on_axis(axis, [m.name for m in all_metrics()])] for axis in AXES}
    assert on["safety"] == [("safety", 1.0), ("over_refusal", -1.0), ("value", 1.0)]
    assert on["capability"] == [("knowledge", 1.0), ("general", 1.0), ("instruction", 1.0)]
