"""Trackers: their files, the lineage in them, and what is refused; with the real packages where they are installed."""

from __future__ import annotations

import json
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from pydantic import ValidationError

from conftest import ROOT
from safework_cli.core.artifacts import Store
from safework_cli.core.config import resolve
from safework_cli.core.errors import ConfigError, InputError, RunAgain
from safework_cli.core.prepare import prepare
from safework_cli.core.runtime import execute
from safework_cli.training import tracking
from safework_sft.config import SftConfig
from safework_sft.stage import stage

WORDS = ["model=tiny", "data=toy:cot", "max_steps=3", "sample_prompts=0"]
VARIABLES = (
    "TENSORBOARD_LOGGING_DIR",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_ALLOW_FILE_STORE",
    "WANDB_MODE",
    "WANDB_DIR",
    "WANDB_PROJECT",
    "TRACKIO_DIR",
    "GRADIO_ANALYTICS_ENABLED",
)


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    monkeypatch.setattr(tracking, "_set_here", {})
    for variable in VARIABLES:
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)


def run(store, *words):
    return execute(prepare(stage, resolve(stage, (), [*WORDS, *words], {}), store), store, quiet=True).artifact


def test_a_run_in_tensorboard_has_its_numbers_and_lineage(tiny_artifact, toy_data, store):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = run(store, "tracking=[tensorboard]")
    (folder,) = (tracking.tracking_folder(store.root) / "tensorboard").iterdir()
    assert folder.name == f"tiny-sft-{made.manifest.fingerprint[:8]}"
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]
    (text,) = events.Tensors("safework/text_summary")
    shown = text.tensor_proto.string_val[0].decode()
    for value in ("model/tiny-sft", made.manifest.fingerprint, "model/tiny@v1", tiny_artifact.digest, "dataset/toy@v1:cot"):
        assert value in shown


def test_a_run_in_mlflow_has_its_numbers_and_lineage(tiny_artifact, toy_data, store):
    pytest.importorskip("mlflow")
    import mlflow

    store.root.rename(store.root.with_name("artifacts"))  # the usual name, which mlflow does not read below
    store = Store(store.root.with_name("artifacts"))
    made = run(store, "tracking=[mlflow]")
    (tracked,) = mlflow.MlflowClient(mlflow.get_tracking_uri()).search_runs([mlflow.get_experiment_by_name("safework").experiment_id])
    assert str(tracking.tracking_folder(store.root)) in mlflow.get_tracking_uri()
    assert tracked.info.status == "FINISHED" and tracked.data.metrics["loss"] > 0
    tags = tracked.data.tags
    assert tags["safework.artifact"] == "model/tiny-sft" and tags["safework.fingerprint"] == made.manifest.fingerprint
    assert tags["safework.stage"] == "sft" and tags["safework.input.model"] == "model/tiny@v1"
    assert tags["safework.input.data.digest"] == toy_data.with_subset("cot").digest


def test_the_extra_installs_every_tracker_that_it_is_named_for():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["tracking"]
    assert {Requirement(text).name for text in extra} == {tracking.PACKAGES[name] for name in tracking.IN_EXTRA}
    assert set(tracking.PACKAGES) == {"tensorboard", "trackio", "mlflow", "wandb"}


def test_a_run_in_wandb_is_offline_and_has_its_lineage(tiny_artifact, toy_data, store):
    pytest.importorskip("wandb")
    made = run(store, "tracking=[wandb]")
    (record,) = (store.root.with_name(store.root.name + tracking.SUFFIX) / "wandb").glob("offline-run-*/run-*.wandb")
    for value in ("model/tiny-sft", made.manifest.fingerprint, "model/tiny@v1", tiny_artifact.digest, "dataset/toy@v1:cot"):
        assert value.encode() in record.read_bytes()


def test_tracking_is_cosmetic_and_a_missing_package_is_refused(tiny_artifact, toy_data, store, monkeypatch):
    plain = prepare(stage, resolve(stage, (), WORDS, {}), store)
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    prepared = prepare(stage, resolve(stage, (), [*WORDS, "tracking=[wandb]"], {}), store)
    assert prepared.fingerprint == plain.fingerprint
    (refusal,) = prepared.plan.refusals
    assert refusal.what == "tracking names wandb, which is not installed"
    assert refusal.do == "pip install wandb; or pip install 'safework[tracking]' for tensorboard, mlflow and wandb"
    both = prepare(stage, resolve(stage, (), [*WORDS, "tracking=[mlflow, trackio]"], {}), store).plan.refusals
    assert both[0].do.startswith("pip install mlflow-skinny; or ") and both[1].do == "pip install trackio"
    with pytest.raises(ValidationError, match="a tracker is named twice"):
        SftConfig(tracking=["wandb", "wandb"])


def test_the_users_own_environment_is_kept_and_wandb_is_offline_otherwise(work, monkeypatch):
    import os

    monkeypatch.setenv("WANDB_MODE", "online")
    tracking.tracking_arguments(["wandb"], work)
    assert os.environ["WANDB_MODE"] == "online" and os.environ["WANDB_PROJECT"] == "safework"
    monkeypatch.delenv("WANDB_MODE")
    arguments = tracking.tracking_arguments(["wandb"], work)
    assert os.environ["WANDB_MODE"] == "offline" and arguments["report_to"] == ["wandb"]
    assert tracking.tracking_arguments([], work) == {"report_to": "none"}


def test_a_tracker_that_is_broken_at_import_is_named(tiny_artifact, toy_data, store, tmp_path, monkeypatch):
    (tmp_path / "broken" / "trackio").mkdir(parents=True)
    (tmp_path / "broken" / "trackio" / "__init__.py").write_text('raise ImportError("libfoo.so: cannot open")\n')
    monkeypatch.syspath_prepend(tmp_path / "broken")
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    with pytest.raises(ConfigError, match=r"trackio, which cannot be imported(.|\n)*libfoo(.|\n)*leave trackio out"):
        run(store, "tracking=[trackio]")


def test_a_tracking_folder_that_cannot_be_written_is_named(tiny_artifact, toy_data, store):
    pytest.importorskip("tensorboard")
    root = tracking.tracking_folder(store.root)
    root.write_text("a file")
    with pytest.raises(InputError, match="tensorboard cannot write to .*-tracking"):
        run(store, "tracking=[tensorboard]")
    root.unlink()
    root.mkdir()
    (root / "tensorboard").write_text("a file")
    with pytest.raises(InputError, match="tensorboard cannot write to .*-tracking"):
        run(store, "tracking=[tensorboard]")


def test_numbers_that_mlflow_did_not_record_are_warned_of(tiny_artifact, toy_data, store, monkeypatch):
    """Its threads log their errors, and raise none."""
    pytest.importorskip("mlflow")
    from mlflow.utils.async_logging.async_logging_queue import AsyncLoggingQueue

    original = AsyncLoggingQueue.__init__

    def failing(self, logging_func):
        def log(*, metrics, **more):
            if metrics:
                raise OSError("the disk is gone")
            logging_func(metrics=metrics, **more)

        original(self, log)

    monkeypatch.setattr(AsyncLoggingQueue, "__init__", failing)
    made = run(store, "tracking=[mlflow]")
    events = [json.loads(line) for line in (made.path / "safework" / "events.jsonl").read_text().splitlines()]
    (warning,) = [event for event in events if "mlflow did not record" in str(event)]
    assert "the disk is gone" in str(warning) and warning["event"] == "warning"


def test_a_tracker_that_fails_leaves_a_run_that_resumes_without_it(tiny_artifact, toy_data, store, monkeypatch):
    pytest.importorskip("mlflow")
    import mlflow
    from mlflow.exceptions import MlflowException

    def fail(*_, step, **__):
        if step == 2:
            raise MlflowException("the server is gone")

    monkeypatch.setattr(mlflow, "log_metrics", fail)
    with pytest.raises(RunAgain, match=r"mlflow failed(.|\n)*the server is gone(.|\n)*without mlflow in tracking"):
        run(store, "tracking=[mlflow]", "save_steps=1")
    made = run(store, "save_steps=1")
    assert "resumed at step 1 of 3" in (made.path / "safework" / "events.jsonl").read_text()
