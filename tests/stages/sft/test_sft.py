"""SFT: what it refuses, what it masks, and that a killed run continues to the same bits."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from collections import Counter

import pytest
import torch
from datasets import Dataset
from pydantic import ValidationError

from safework_cli.core.artifacts import Store
from safework_cli.core.artifacts.payload import weight_headers
from safework_cli.core.errors import InputError
from safework_cli.core.progress import read_metrics
from safework_cli.core.stage import Inputs
from safework_cli.data.dataset import read_dataset
from safework_cli.data.row import Row, write_rows
from safework_cli.engines.hf.engine import HFEngine
from safework_cli.engines.protocol import Sampling
from safework_cli.models.load import load_model, load_tokenizer, pick_dtype, save_model, stop_token_ids
from safework_sft.config import SftConfig
from safework_sft.encode import encode_rows, refuse_useless
from safework_sft.mixture import weighted_positions
from safework_sft.run import train
from safework_sft.stage import stage
from tiny_families import FAMILIES, tiny_of


def row(row_id: str, *texts: str, **more) -> Row:
    return Row(row_id, "general", [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(texts)], **more)


def test_rows_that_cannot_be_trained_on_are_dropped_by_name(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    rows = [
        row("ok", "q", "a"),
        row("no-reply", "q"),
        row("long", "q", "a" * 99),
        row("image", "q", "a", images=[{"bytes": b"", "path": None}]),
    ]
    encoded = encode_rows(rows, tokenizer, [tokenizer.eos_token_id], max_length=64)
    assert sorted(ids[0] for ids in encoded.dropped.values()) == ["image", "long", "no-reply"]
    assert len(encoded.input_ids) == 1
    with pytest.raises(InputError, match="3 of 4 rows cannot be trained on"):
        refuse_useless(encoded, 4, max_dropped=0.5)
    refuse_useless(encoded, 4, max_dropped=0.75)


def test_task_weights_say_how_often_rows_are_seen():
    rows = [Row(f"s{i}", "safety", []) for i in range(10)] + [Row(f"g{i}", "general", []) for i in range(10)]
    chosen = weighted_positions(rows, {"safety": 2.5, "general": 0.3}, seed=0)
    tasks = Counter(rows[position].task for position in chosen)
    assert tasks == {"safety": 25, "general": 3} and chosen == sorted(chosen)
    fewer, more = (set(weighted_positions(rows, {"general": share, "safety": 0}, 0)) for share in (0.3, 0.6))
    assert fewer < more and fewer != set(weighted_positions(rows, {"general": 0.3, "safety": 0}, seed=1))
    assert weighted_positions(rows, {}, 0) == list(range(20))
    with pytest.raises(InputError, match=r"task_weights names 'value'(.|\n)*it has general, safety"):
        weighted_positions(rows, {"value": 1.0}, 0)
    with pytest.raises(InputError, match="leave no row"):
        weighted_positions(rows, {"general": 0, "safety": 0}, 0)
    with pytest.raises(ValidationError, match="'genral' is not a task; did you mean 'general'"):
        SftConfig(task_weights={"genral": 1})


@pytest.mark.parametrize(("labels", "share"), [([[-100, -100]], "0%"), ([[1, 2]], "100%")])
def test_no_or_all_supervised_tokens_are_refused(labels, share):
    from safework_sft.encode import EncodedRows

    with pytest.raises(InputError, match=f"{share} of the tokens would be supervised"):
        refuse_useless(EncodedRows([[1, 2]], labels), 1, 0.0)


def test_the_head_on_supervised_positions_gives_trls_loss(tiny_artifact, toy_data, work):
    from trl import SFTTrainer

    from safework_sft.run import _arguments
    from safework_sft.trainer import SupervisedTrainer

    tokenizer = load_tokenizer(tiny_artifact.path)
    model = load_model(tiny_artifact.path, dtype="float32")
    encoded = encode_rows(read_dataset(toy_data.with_subset("cot")), tokenizer, stop_token_ids(tokenizer, model), 512)
    data = Dataset.from_dict({"input_ids": encoded.input_ids, "labels": encoded.labels})
    trainer = SupervisedTrainer(
        model=model,
        args=_arguments(SftConfig(max_steps=1, bf16=False), work, tokenizer, "device"),
        train_dataset=data,
        processing_class=tokenizer,
        lengths=[len(ids) for ids in encoded.input_ids],
    )
    batch = next(iter(trainer.get_train_dataloader()))
    gradients = []
    for compute in (SupervisedTrainer.compute_loss, SFTTrainer.compute_loss):
        model.zero_grad()
        loss = compute(trainer, model, dict(batch), num_items_in_batch=torch.tensor(37))
        loss.backward()
        gradients.append((loss.item(), {n: p.grad.clone() for n, p in model.named_parameters()}))
    (ours, ours_grad), (trls, trls_grad) = gradients
    assert ours == pytest.approx(trls, rel=1e-5)
    for name, grad in trls_grad.items():
        assert torch.allclose(ours_grad[name], grad, rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize("name", FAMILIES)
def test_the_loss_is_the_models_own(name, tiny_model, work):
    """Of families whose heads scale or cap their logits, have biases, or routers; values and gradients."""
    from safework_sft.run import _arguments
    from safework_sft.trainer import SupervisedTrainer

    tokenizer = load_tokenizer(tiny_model)
    model = tiny_of(name, tokenizer)
    drawn = random.Random(3)
    rows = [[drawn.randrange(10, 250) for _ in range(n)] for n in (9, 14, 30, 12)]
    labels = [[-100] * (len(row) // 2) + row[len(row) // 2 :] for row in rows]
    trainer = SupervisedTrainer(
        model=model,
        args=_arguments(SftConfig(max_steps=1, bf16=False), work, tokenizer, "device"),
        train_dataset=Dataset.from_dict({"input_ids": rows, "labels": labels}),
        processing_class=tokenizer,
        lengths=[len(row) for row in rows],
    )
    batch = next(iter(trainer.get_train_dataloader()))
    model.eval()  # no dropout
    found = []
    for own in (True, False):
        model.zero_grad()
        router = {"output_router_logits": True} if trainer.aux_loss_enabled else {}
        loss = model(**batch, use_cache=False, **router).loss if own else trainer.compute_loss(model, dict(batch))
        loss.backward()
        found.append((loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (expected, expected_grad), (loss, grad) = found
    assert loss == pytest.approx(expected, rel=1e-5) and grad.keys() == expected_grad.keys()
    for name_, gradient in expected_grad.items():
        assert torch.allclose(grad[name_], gradient, rtol=1e-3, atol=1e-5), name_


def test_it_learns_saves_and_reports(tiny_artifact, toy_data, work):
    config = SftConfig(learning_rate=3e-3, max_steps=20, per_device_train_batch_size=8, sample_prompts=2, sample_max_tokens=8)
    outcome = train(config, Inputs({"model": tiny_artifact, "data": toy_data.with_subset("cot")}), work)
    assert outcome.metrics["loss_last"] < outcome.metrics["loss_first"] - 0.5
    assert 0 < outcome.metrics["supervised_share"] < 1 and outcome.metrics["samples"]["n"] == 2
    before, after = (load_model(folder).state_dict() for folder in (tiny_artifact.path, work.output))
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_bf16_is_for_the_steps_only(tiny_artifact, toy_data, work):
    """The losses are nearly those of float32, and the samples after the last step come from the model as it is saved."""
    found = {}
    for bf16 in (False, True):
        for old in work.checkpoints.iterdir():
            old.rename(work.path / f"{bf16}-{old.name}")
        config = SftConfig(bf16=bf16, learning_rate=3e-3, max_steps=4, sample_prompts=2, sample_max_tokens=8)
        train(config, Inputs({"model": tiny_artifact, "data": toy_data.with_subset("cot")}), work)
        found[bf16] = [(step["loss"], step["grad_norm"]) for step in read_metrics(work.progress.metrics_path)[-4:]]
    assert [loss for loss, _ in found[True]] == pytest.approx([loss for loss, _ in found[False]], rel=1e-3)
    assert all(one != other for one, other in zip(found[True], found[False], strict=True))


@pytest.mark.parametrize(("stored", "choice", "expected"), [("bfloat16", {}, "BF16"), ("bfloat16", {"save_dtype": "float32"}, "F32"),
    ("float32", {}, "F32"), ("float32", {"save_dtype": "bfloat16"}, "BF16"), ("float16", {}, "F16")])  # fmt: skip
def test_a_model_is_saved_in_the_type_that_it_came_in(tiny_model, store, toy_data, work, tmp_path, stored, choice, expected):
    """And the samples after training come from what was saved."""
    tokenizer = load_tokenizer(tiny_model)
    save_model(load_model(tiny_model, dtype="float32"), tokenizer, tmp_path / "m", dtype=getattr(torch, stored))
    config = SftConfig(learning_rate=3e-3, max_steps=2, warmup_ratio=0.0, sample_prompts=2, sample_max_tokens=8, **choice)
    outcome = train(config, Inputs({"model": store.resolve(str(tmp_path / "m"), ("model",)), "data": toy_data.with_subset("cot")}), work)
    assert {entry["dtype"] for header in weight_headers(work.output).values() for entry in header.values()} == {expected}
    assert outcome.metrics["dtype"] == {"BF16": "bfloat16", "F32": "float32", "F16": "float16"}[expected]
    assert json.loads((work.output / "config.json").read_text())["dtype"] == outcome.metrics["dtype"]
    before, after = (load_model(folder, dtype="float32").state_dict() for folder in (tmp_path / "m", work.output))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    rows = {row.id: row for row in read_dataset(toy_data.with_subset("cot"))}
    fast = "bfloat16" if expected == "BF16" and pick_dtype("auto") == torch.bfloat16 else "float32"
    engine = HFEngine(load_model(work.output, dtype=fast), tokenizer)
    sampled = outcome.metrics["samples"]["replies"]
    groups = engine.generate([rows[one["row"]].prompt for one in sampled], Sampling(8))
    assert [group[0].text for group in groups] == [one["reply"] for one in sampled]


def test_what_an_architecture_keeps_in_float32_is_saved_so(tiny_model, tmp_path):
    tokenizer = load_tokenizer(tiny_model)
    save_model(tiny_of("deepseek_v3", tokenizer), tokenizer, tmp_path / "m", dtype=torch.bfloat16)
    types = {name: entry["dtype"] for header in weight_headers(tmp_path / "m").values() for name, entry in header.items()}
    assert {name for name, kind in types.items() if kind == "F32"} == {"model.layers.1.mlp.gate.e_score_correction_bias"}


def test_a_row_beyond_the_models_positions_is_dropped_by_name(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    rows = [row("long", "q" * 60, "<think>t</think>a"), row("short", "q", "<think>t</think>a")]
    encoded = encode_rows(rows, tokenizer, [tokenizer.eos_token_id], 4096, 80)
    assert encoded.dropped == {"longer than the model's 80 positions": ["long"]} and len(encoded.input_ids) == 1


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_learned_positions_end_and_nothing_is_a_traceback(name, tiny_model, store, toy_data, work, tmp_path):
    """Rows beyond them are dropped, prompts without room for a reply are not sampled from, and the model is kept where none has any."""
    tokenizer = load_tokenizer(tiny_model)
    changes = {"n_positions": 150} if name == "gpt2" else {"max_position_embeddings": 150}
    save_model(tiny_of(name, tokenizer, **changes), tokenizer, tmp_path / "m")
    model = store.resolve(str(tmp_path / "m"), ("model",))
    long = [row(f"l{i}", "q" * 200, "<think>t</think>a") for i in range(4)]
    (tmp_path / "rows").mkdir()
    write_rows(tmp_path / "rows" / "a.parquet", [*read_dataset(toy_data.with_subset("cot")), *long])
    data = store.resolve(str(tmp_path / "rows"), ("dataset",))
    config = SftConfig(max_steps=1, sample_prompts=3, sample_max_tokens=4, max_dropped=0.5)
    outcome = train(config, Inputs({"model": model, "data": data}), work)
    assert outcome.metrics["dropped"] == {"longer than the model's 150 positions": 4} and outcome.metrics["samples"]["n"] == 3
    for old in work.checkpoints.iterdir():
        os.rename(old, work.path / f"old-{old.name}")
    config = SftConfig(max_steps=1, sample_prompts=3, sample_max_tokens=150, max_dropped=0.5)
    outcome = train(config, Inputs({"model": model, "data": data}), work)
    assert outcome.metrics["samples"] == {} and (work.output / "config.json").exists()
    with pytest.raises(InputError, match="no training prompt leaves room for sample_max_tokens=150"):
        train(config.model_copy(update={"min_stop_rate": 0.1}), Inputs({"model": model, "data": data}), work)


def test_lora_is_merged_and_only_top_layers_move(tiny_artifact, toy_data, work):
    base = load_model(tiny_artifact.path).state_dict()
    settings = {"learning_rate": 1e-2, "max_steps": 2, "sample_prompts": 0}
    train(SftConfig(lora={"r": 4, "alpha": 8}, **settings), Inputs({"model": tiny_artifact, "data": toy_data.with_subset("cot")}), work)
    lora = load_model(work.output).state_dict()
    assert base.keys() == lora.keys() and not torch.equal(
        base["model.layers.0.mlp.up_proj.weight"], lora["model.layers.0.mlp.up_proj.weight"]
    )
    for old in work.checkpoints.iterdir():
        os.rename(old, work.path / f"old-{old.name}")
    train(SftConfig(train_layers=1, **settings), Inputs({"model": tiny_artifact, "data": toy_data.with_subset("cot")}), work)
    top = load_model(work.output).state_dict()
    assert torch.equal(base["model.layers.0.mlp.up_proj.weight"], top["model.layers.0.mlp.up_proj.weight"])
    assert torch.equal(base["model.embed_tokens.weight"], top["model.embed_tokens.weight"])
    assert not torch.equal(base["model.layers.1.mlp.up_proj.weight"], top["model.layers.1.mlp.up_proj.weight"])


def test_a_gate_on_the_stop_rate_fails_with_code_4(tiny_artifact, toy_data, cli):
    done = cli("sft", "model=tiny", "data=toy:cot", "max_steps=1", "sample_prompts=2", "sample_max_tokens=4", "min_stop_rate=1")
    assert done.returncode == 4 and "stop rate" in done.stderr and done.stdout.strip() == "model/tiny-sft@v1"
    table = done.stderr.partition("→ model/tiny-sft@v1")[2]
    for pattern in (
        r"rows +32 *\n",
        r"steps +1 *\n",
        r"supervised +\d+\.\d% of \d,\d+ tokens",
        r"loss +\d\.\d+ → \d",
        r"replies +2: 0% stopped, ",
    ):
        assert re.search(pattern, table), table


WORDS = ("sft", "model=tiny", "data=toy:cot", "max_steps=12", "save_steps=2", "learning_rate=1e-3", "sample_prompts=0", "-q")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_stopped_and_run_again_gives_the_same_bits(number, code, tiny_artifact, toy_data, cli, start_cli, store: Store):
    whole = cli(*WORDS, "--name", "whole")
    assert whole.returncode == 0 and whole.stdout.strip() == "model/whole@v1", whole.stderr
    expected = store.resolve("whole").digest
    store.remove(store.resolve("whole"))

    process = start_cli(*WORDS, "--name", "again")
    wait_for_checkpoint(store, process)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert [a for a in store.list("model") if a.name == "again"] == []

    again = cli(*WORDS, "--name", "again")
    assert again.returncode == 0, again.stderr
    events = (store.resolve("again").path / "safework" / "events.jsonl").read_text()
    assert "resumed at step" in events
    assert store.resolve("again").digest == expected


def wait_for_checkpoint(store: Store, process, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if list(store.runs.glob("*/checkpoints/checkpoint-*/COMPLETE.json")):
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    raise AssertionError("no checkpoint appeared")


def test_the_plan_counts_and_refuses(tiny_artifact, toy_data):
    inputs = Inputs({"model": tiny_artifact, "data": toy_data.with_subset("cot")})
    plan = stage.plan(SftConfig(max_steps=7), inputs)
    assert plan.optimizer_steps == 7 and plan.name == "tiny-sft" and not plan.refusals
    assert stage.plan(SftConfig(lora={}, train_layers=1), inputs).refusals


def no_room(config, model, folder):
    """A copy of a model with fewer positions."""
    import shutil

    shutil.copytree(model, folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | config))
    return folder


def test_samples_are_asked_of_rows_that_were_trained_on_and_leave_room(tiny_model, work, tmp_path):
    from safework_cli.engines.hf.engine import HFEngine
    from safework_sft.run import prompts_to_sample

    model = load_model(no_room({"max_position_embeddings": 128}, tiny_model, tmp_path / "short"), dtype="float32")
    tokenizer = load_tokenizer(tiny_model)
    rows = [row("dropped", "q" * 300, "a"), row("fills", "q" * 60, "a"), row("fits", "q", "a"), row("talk", "q", "a", "q" * 9, "a")]
    encoded = encode_rows(rows, tokenizer, [tokenizer.eos_token_id], max_length=120)
    engine = HFEngine(model, tokenizer)
    assert [kept.id for kept in encoded.rows] == ["fills", "fits", "talk"]
    chosen = prompts_to_sample(SftConfig(sample_max_tokens=64), encoded, engine, work)
    assert [kept.id for kept in chosen] == ["fits", "talk"]
    assert prompts_to_sample(SftConfig(sample_max_tokens=127), encoded, engine, work) == []
    assert "nothing will be known" in (work.path / "events.jsonl").read_text()
    with pytest.raises(InputError, match=r"leaves room for sample_max_tokens=127(.|\n)*min_stop_rate=0.5"):
        prompts_to_sample(SftConfig(sample_max_tokens=127, min_stop_rate=0.5), encoded, engine, work)


def test_an_error_after_the_training_keeps_the_model_and_is_reported(tiny_artifact, toy_data, store, work, monkeypatch):
    import safework_sft.run as module
    from safework_cli.core.config import resolve
    from safework_cli.core.errors import EXIT_TOO_MANY_FAILED, Interrupted
    from safework_cli.core.prepare import prepare
    from safework_cli.core.runtime import execute

    def broken(*_):
        raise RuntimeError("out of memory, say")

    monkeypatch.setattr(module, "_sample", broken)
    words = ["model=tiny", "data=toy:cot", "max_steps=1"]
    result = execute(prepare(stage, resolve(stage, (), words, {}), store), store, quiet=True)
    assert result.exit_code == EXIT_TOO_MANY_FAILED and result.artifact.ref == "model/tiny-sft@v1"
    assert result.artifact.manifest.notes == ["sampling failed after training: RuntimeError: out of memory, say"]
    load_model(result.artifact.path)
    again = execute(prepare(stage, resolve(stage, (), words, {}), store), store, quiet=True)
    assert again.already and again.exit_code == EXIT_TOO_MANY_FAILED

    def stopped(*_):
        raise Interrupted("interrupted by Ctrl-C")

    monkeypatch.setattr(module, "_sample", stopped)
    with pytest.raises(Interrupted, match="Ctrl-C"):
        execute(prepare(stage, resolve(stage, (), [*words, "seed=1"], {}), store), store, quiet=True)


def test_held_out_rows_are_not_trained_on(tiny_artifact, store, commit, work):
    from safework_cli.data.row import write_rows

    payload = store.staging()
    (payload / "cot").mkdir()
    write_rows(payload / "cot" / "train.parquet", [row(f"t{i}", f"q{i}", "a", split="train") for i in range(4)])
    write_rows(payload / "cot" / "test.parquet", [row("held", "q", "a", split="test")])
    data = commit(payload, "dataset", "split").with_subset("cot")
    outcome = train(SftConfig(max_steps=1, sample_prompts=0), Inputs({"model": tiny_artifact, "data": data}), work)
    assert outcome.metrics["rows"] == 4
    plan = stage.plan(SftConfig(), Inputs({"model": tiny_artifact, "data": data}))
    assert "(4 rows)" in plan.lines[0]


def test_a_gate_on_replies_that_are_not_sampled_is_refused(tiny_artifact, toy_data):
    inputs = Inputs({"model": tiny_artifact, "data": toy_data.with_subset("cot")})
    (refusal,) = stage.plan(SftConfig(min_stop_rate=0.9, sample_prompts=0), inputs).refusals
    assert "min_stop_rate=0.9 cannot be checked" in refusal.what and "sample_prompts=0 samples none" in str(refusal)
    assert stage.plan(SftConfig(min_stop_rate=0.9), inputs).refusals == []
