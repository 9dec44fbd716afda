"""``safework verifier train`` on a tiny real model: it learns, it reports, it resumes to the same weights, it refuses."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from safework_cli.core.artifacts.external import path_artifact
from safework_cli.core.artifacts.payload import check_payload
from safework_cli.core.errors import RunAgain
from safework_cli.core.progress import Progress, QuietDisplay
from safework_cli.core.signals import StopRequest
from safework_cli.core.stage import Inputs, WorkDir
from safework_cli.data.row import Row, write_rows
from safework_cli.verifiers import Exchange
from safework_cli.verifiers.load import load_verifier
from safework_verifier.train.config import VerifierTrainConfig
from safework_verifier.train.stage import stage

REPLIES = {"Safe with refusal": "no no no", "Safe without risk": "yes yes", "Unsafe": "zzzz zzzz"}


SOURCES = ("s0", "s|<img src=x onerror=alert(1)>\x1b[31m")
"""The second is text from outside that would do something in a card."""


def toy_rows(count: int = 150) -> list[Row]:
    """Three labels that any model can distinguish by the reply's letters; lengths differ."""
    rows = []
    for i in range(count):
        label = list(REPLIES)[i % 3]
        reply = f"<think>t</think>{REPLIES[label]}{' ' * (i % 2)}{REPLIES[label][: i % 5]}"
        messages = [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": reply}]
        rows.append(Row(str(i), "safety", messages, harmful=label != "Safe without risk", source=SOURCES[i % 2], meta={"label": label}))
    return rows


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, tiny_model) -> Inputs:
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "data.parquet", toy_rows())
    return Inputs({
        "model": path_artifact(tiny_model, str(tiny_model), ("model",)),
        "data": path_artifact(folder, str(folder), ("dataset",)),
    })  # fmt: skip


def config(**changes) -> VerifierTrainConfig:
    return VerifierTrainConfig(
        **{
            "instruction": "short", "max_length": 256, "learning_rate": 3e-3, "max_steps": 60, "eval_fraction": 0.4,
            "lr_scheduler_type": "constant", "per_device_train_batch_size": 8, "dtype": "float32",
        } | changes
    )  # fmt: skip


def make_work(folder: Path, display=None) -> WorkDir:
    folder.mkdir(exist_ok=True)
    return WorkDir(folder, "0" * 64, Progress(folder, display or QuietDisplay()), StopRequest())


def weights(work: WorkDir) -> dict[str, torch.Tensor]:
    return load_file(work.output / "model.safetensors")


def test_the_docstring_is_the_summary_and_the_module_needs_no_torch():
    import subprocess
    import sys

    import safework_verifier.train.stage as module

    assert (module.__doc__ or "").splitlines()[0] == stage.summary
    code = "import sys, safework_verifier.train.stage; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'peft')))"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": os.pathsep.join(sys.path)}).returncode == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory, inputs):
    work = make_work(tmp_path_factory.mktemp("trained"))
    return work, stage.run(config(), inputs, work)


def test_it_learns_a_separable_toy_and_reports_it(trained):
    work, outcome = trained
    metrics = outcome.metrics
    assert metrics["accuracy"]["value"] >= 0.95
    assert metrics["macro_f1"]["value"] >= 0.95
    assert metrics["rows"]["train"] + metrics["rows"]["calibration"] + metrics["rows"]["report"] == 150
    assert set(metrics["by_source"]) == set(SOURCES)
    assert sum(entry["n"] for entry in metrics["by_source"].values()) == metrics["rows"]["report"]
    assert metrics["baselines"]["most_frequent_label"]["accuracy"]["value"] < 0.5
    # "no no no" is not a refusal phrase, and the phrases take all harmful replies for unsafe ones
    assert metrics["baselines"]["refusal_phrases_given_harmful"]["accuracy"]["value"] == pytest.approx(2 / 3, abs=0.1)
    check_payload(work.output, "verifier")
    counts = json.loads((work.output / "confusion.json").read_text())["gold_by_predicted"]
    assert sum(map(sum, counts)) == metrics["rows"]["report"]
    card = (work.output / "verifier_card.md").read_text()
    assert f"| accuracy | {metrics['accuracy']['value']:.3f} |" in card
    assert "accuracy on source s0" in card and "<img" not in card and "\x1b" not in card
    assert all(line.count("|") == 5 for line in card.splitlines() if line.startswith("| accuracy on source"))


def test_what_is_saved_is_what_was_measured(trained):
    work, outcome = trained
    verifier = load_verifier(work.output, dtype="float32")
    assert verifier.spec.temperature == outcome.metrics["temperature"] != 1.0
    found = verifier.judge([Exchange([{"role": "user", "content": "new"}], REPLIES[label]) for label in REPLIES])
    assert [v.label for v in found] == list(REPLIES)
    assert [v.score for v in found] == [0.1, 1.0, 0.0]


def test_shuffled_labels_cannot_be_learned_and_the_report_says_so(tmp_path, inputs):
    import random

    rows = toy_rows()
    labels = [row.meta["label"] for row in rows]
    random.Random(0).shuffle(labels)
    for row, label in zip(rows, labels, strict=True):
        row.meta["label"] = label
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "data.parquet", rows)
    data = path_artifact(tmp_path / "data", "data", ("dataset",))
    outcome = stage.run(
        config(max_steps=20, min_accuracy=0.9), Inputs({"model": inputs.one("model"), "data": data}), make_work(tmp_path / "w")
    )
    assert outcome.metrics["accuracy"]["value"] < 0.7
    assert "below min_accuracy=0.9" in outcome.failed_gates[0]


class StopAt(QuietDisplay):
    """Does something once at a step, as a signal or a kill would."""

    def __init__(self, step: int, act):
        self.step, self.act = step, act

    def advanced(self, name, done, total):
        if name == "train" and done == self.step:
            self.act()


class Killed(BaseException):
    """Nothing may catch it: stands for a process that vanishes."""


def killed():
    raise Killed


def test_a_kill_and_a_second_run_give_the_weights_of_an_uninterrupted_one(tmp_path, inputs):
    settings = config(max_steps=24, save_steps=5)  # 90 training rows in batches of 8: the kill falls into the second epoch
    whole = make_work(tmp_path / "whole")
    stage.run(settings, inputs, whole)
    with pytest.raises(Killed):
        stage.run(settings, inputs, make_work(tmp_path / "cut", StopAt(17, killed)))
    again = make_work(tmp_path / "cut")
    stage.run(settings, inputs, again)
    assert "resumed at step 15 of 24" in (again.path / "events.jsonl").read_text()
    a, b = weights(whole), weights(again)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_sigterm_checkpoints_and_the_next_run_carries_on(tmp_path, inputs):
    settings = config(max_steps=12, save_steps=100)
    whole = make_work(tmp_path / "whole")
    stage.run(settings, inputs, whole)
    first = make_work(tmp_path / "cut", StopAt(7, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(RunAgain), first.stop.installed():
        stage.run(settings, inputs, first)
    assert not list(first.output.iterdir())
    again = make_work(tmp_path / "cut")
    stage.run(settings, inputs, again)
    assert "resumed at step 7 of 12" in (again.path / "events.jsonl").read_text()
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(again).values(), strict=True))


def test_top_layers_train_and_the_rest_stays(tmp_path, inputs, tiny_model):
    work = make_work(tmp_path / "w")
    stage.run(config(max_steps=3, train_layers=1), inputs, work)
    before, after = load_file(tiny_model / "model.safetensors"), weights(work)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith(("model.layers.1.", "model.norm")) for name in changed)


def test_a_shallower_backbone_is_saved_and_loads(tmp_path, inputs):
    work = make_work(tmp_path / "w")
    stage.run(config(max_steps=2, keep_layers=1), inputs, work)
    assert json.loads((work.output / "config.json").read_text())["num_hidden_layers"] == 1
    assert not any("layers.1." in name for name in weights(work))
    assert load_verifier(work.output).judge([Exchange([{"role": "user", "content": "q"}], "yes")])[0].error is None


def test_adapters_are_merged_into_a_whole_model(tmp_path, inputs, tiny_model):
    work = make_work(tmp_path / "w")
    stage.run(config(max_steps=3, lora={"r": 4, "alpha": 8}), inputs, work)
    before, after = load_file(tiny_model / "model.safetensors"), weights(work)
    assert before.keys() == after.keys()
    assert not torch.equal(before["model.layers.0.self_attn.q_proj.weight"], after["model.layers.0.self_attn.q_proj.weight"])
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])


def test_a_probe_alone_learns_the_toy_in_one_pass_and_reading_is_unchanged(tmp_path, inputs, tiny_model):
    work = make_work(tmp_path / "w")
    outcome = stage.run(config(head="probe", train_layers=0, keep_layers=1), inputs, work)
    assert outcome.metrics["accuracy"]["value"] >= 0.95
    assert outcome.metrics["steps"] == 0
    before, after = load_file(tiny_model / "model.safetensors"), weights(work)
    assert set(after) - set(before) == {"lm_head.weight"}
    assert all(torch.equal(before[name], after[name]) for name in after if name in before)
    changed = (after["lm_head.weight"] != before["model.embed_tokens.weight"]).any(1).nonzero()[:, 0]
    verifier = load_verifier(work.output, dtype="float32")
    assert changed.tolist() == sorted(verifier.code_ids)
    found = verifier.judge([Exchange([{"role": "user", "content": "new"}], REPLIES[label]) for label in REPLIES])
    assert [v.label for v in found] == list(REPLIES)


def test_a_probe_before_fine_tuning_starts_from_a_lower_loss(tmp_path, inputs):
    from safework_cli.core.progress import read_metrics

    losses = {}
    for head in ("keep", "probe"):
        work = make_work(tmp_path / head)
        stage.run(config(head=head, max_steps=1, learning_rate=1e-6), inputs, work)
        losses[head] = next(m["loss"] for m in read_metrics(work.progress.metrics_path) if "loss" in m)
    assert losses["probe"] < 0.5 * losses["keep"]


def test_features_survive_a_kill(tmp_path, inputs, monkeypatch):
    import safework_verifier.train.run as run

    settings = config(head="probe", train_layers=0)
    with monkeypatch.context() as patch:
        patch.setattr(run, "fit_probe", lambda *_: killed())
        with pytest.raises(Killed):
            stage.run(settings, inputs, make_work(tmp_path / "w"))
    again = make_work(tmp_path / "w")
    stage.run(settings, inputs, again)
    events = [json.loads(line) for line in (again.path / "events.jsonl").read_text().splitlines()]
    assert sum(e.get("name") == "features" and e["event"] == "phase" for e in events) == 1


def test_the_plan_says_what_will_be_done_and_refuses_bad_data(tmp_path, inputs):
    assert not any("calibrate_on" in line for line in stage.plan(config(), inputs).lines)
    assert any("calibrate_on=train does not act" in line for line in stage.plan(config(calibrate_on="train"), inputs).lines)
    plan = stage.plan(config(), inputs)
    assert not plan.refusals
    assert (plan.optimizer_steps, plan.name.endswith("-safety")) == (60, True)
    assert plan.work is not None and plan.work.trained and plan.disk_bytes
    assert any("split by prompt" in line for line in plan.lines)
    bad = toy_rows(10)
    bad[3].meta["label"] = "Unsave"
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "data.parquet", bad)
    data = path_artifact(tmp_path / "data", "data", ("dataset",))
    refusal = stage.plan(config(), Inputs({"model": inputs.one("model"), "data": data})).refusals[0]
    assert "did you mean 'Unsafe'" in str(refusal)
    assert "keep_layers=9" in str(stage.plan(config(keep_layers=9), inputs).refusals[0])
    for number, row in enumerate(rows := toy_rows(40)):
        row.meta["label"] = ("good", "bad")[number % 2]
    write_rows(tmp_path / "data" / "data.parquet", rows)
    of_value = Inputs({"model": inputs.one("model"), "data": path_artifact(tmp_path / "data", "data", ("dataset",))})
    assert not stage.plan(config(task="value"), of_value).refusals
    assert "no label for refusals" in str(stage.plan(config(task="value", cut_short_share=0.5), of_value).refusals[0])


@pytest.mark.parametrize(
    "wrong",
    [
        {"lora": {}, "train_layers": 1},
        {"learning_rate": "1e-5"},
        {"task": "poetry"},
        {"learnin_rate": 1e-5},
        {"eval_fraction": 1.0},
        {"train_layers": 0},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        VerifierTrainConfig(**wrong)


def test_a_verifier_that_cannot_be_measured_is_kept_and_its_command_says_so(tmp_path, inputs, monkeypatch):
    import safework_verifier.train.run as module
    from safework_cli.core.artifacts.payload import check_payload

    def broken(*_):
        raise ValueError("no such rows")

    monkeypatch.setattr(module, "measure", broken)
    work = make_work(tmp_path / "run")
    outcome = stage.run(config(max_steps=1), inputs, work)
    check_payload(work.output, "verifier")
    assert (outcome.failed_items, outcome.tolerated_items) == (1, 0)
    assert outcome.notes[0].startswith("measuring failed after training: ValueError: no such rows; it is neither calibrated nor measured")
    monkeypatch.undo()

    monkeypatch.setattr(module, "write_reports", broken)
    work = make_work(tmp_path / "card")
    outcome = stage.run(config(max_steps=1, attack_rows=0), inputs, work)
    assert outcome.failed_items == 1 and outcome.metrics["accuracy"]["n"] and "the card failed after training" in outcome.notes[-1]


def test_trackers_get_the_numbers_and_a_missing_one_is_refused(tmp_path, inputs, monkeypatch):
    from safework_cli.training import tracking

    pytest.importorskip("tensorboard")
    store = tmp_path / "store"
    (store / "runs").mkdir(parents=True)
    stage.run(config(max_steps=2, attack_rows=0, tracking=["tensorboard"]), inputs, make_work(store / "runs" / "w"))
    assert list((tracking.tracking_folder(store) / "tensorboard").rglob("events.out.tfevents.*"))
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    (refusal,) = stage.plan(config(tracking=["wandb"]), inputs).refusals
    assert refusal.what == "tracking names wandb, which is not installed"
