"""Rows with images in every command, on a tiny Qwen2.5-VL; and what a model that reads text only says to them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch

import tiny_vision
from exactness import image, row
from safework_cli.core.errors import ConfigError, InputError
from safework_cli.core.journal import read_journal
from safework_cli.core.progress import Progress, QuietDisplay
from safework_cli.core.signals import StopRequest
from safework_cli.core.stage import Inputs, WorkDir
from safework_cli.data.images import open_image
from safework_cli.data.row import read_rows, write_rows
from safework_cli.models.load import load_model, load_tokenizer
from safework_cli.models.processors import Headers, load_processor
from safework_cli.verifiers.contract import Exchange
from safework_cli.verifiers.prompting import PromptWriter
from safework_cli.verifiers.spec import preset
from safework_cli.verifiers.values import PrefixWriter
from safework_data.cot.config import CotConfig
from safework_data.cot.stage import stage as cot_stage
from safework_eval.config import EvalConfig
from safework_eval.stage import stage as eval_stage
from safework_search.config import GuidedConfig
from safework_search.stage import stage as search_stage
from safework_sft.config import SftConfig
from safework_sft.encode import VisionOf
from safework_sft.stage import stage as sft_stage
from safework_verifier.rollouts.config import RolloutsConfig
from safework_verifier.rollouts.stage import stage as rollouts_stage
from safework_verifier.values.config import ValuesConfig
from safework_verifier.values.stage import stage as values_stage
from served import served

SFT = {"max_steps": 1, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 1, "sample_prompts": 1, "sample_max_tokens": 3}
SEARCH = {"method": "best_of_n", "candidates": 2, "max_tokens": 5, "batch_prompts": 4, "likelihood_weight": 1.0}
EVAL = {"suites": [{"name": "k", "rows": {"task": "general"}}], "max_tokens": 3, "dtype": "float32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model):
    return tiny_vision.create("qwen2_5_vl", tiny_model, tmp_path_factory.mktemp("vl"))


@pytest.fixture
def work(tmp_path):
    def make(name):
        (tmp_path / name).mkdir()
        return WorkDir(tmp_path / name, "0" * 64, Progress(tmp_path / name, QuietDisplay()), StopRequest())

    return make


def rows(images: bool, count: int = 6):
    made = []
    for number in range(count):
        seen = [image(56, 56, number)] if images else []
        one = row(number, "<image>" * len(seen) + "Which is it?", f"It is {number}.", *seen)
        made.append(replace(one, answer=str(number), meta={"answer_type": "exact"}))
    return made


@pytest.fixture
def data(tmp_path, store):
    def make(images, count=6):
        (tmp_path / f"rows-{images}").mkdir()
        write_rows(tmp_path / f"rows-{images}" / "rows.parquet", rows(images, count))
        return store.resolve(str(tmp_path / f"rows-{images}"), ("dataset",))

    return make


@pytest.mark.parametrize("images", [True, False])
def test_sft_trains_and_saves_a_model_that_reads_images(images, folder, data, store, work):
    made = work("sft")
    outcome = sft_stage.run(SftConfig(**SFT), Inputs({"model": store.resolve(str(folder), ("model",)), "data": data(images)}), made)
    assert outcome.metrics["rows"] == 6 and not outcome.metrics["dropped"] and outcome.metrics["samples"]["n"] == 1
    assert load_processor(made.output) is not None
    assert load_tokenizer(made.output).chat_template == load_tokenizer(folder).chat_template


def test_images_are_encoded_when_their_step_comes(folder, data, store, work, monkeypatch):
    """With 10,000 images, encoding each of them before the first step takes minutes."""
    opened, coming = [], []

    def opens(one):
        opened.append(len(coming))
        return open_image(one)

    def ahead(self, numbers):
        coming.append(sorted(numbers))

    monkeypatch.setattr("safework_cli.models.processors.open_image", opens)
    monkeypatch.setattr(VisionOf, "ahead", ahead)
    config = SftConfig(**SFT | {"max_steps": 2, "per_device_train_batch_size": 2, "sample_prompts": 0})
    sft_stage.run(config, Inputs({"model": store.resolve(str(folder), ("model",)), "data": data(True)}), work("sft"))
    before = opened.count(0)  # two rows, which are tried without padding and with it
    assert set(map(len, coming)) <= {2, 4} and set(opened) <= {0, 1, 2, 3} and before <= 4 and len(opened) - before <= 6

    tokenizer, processor = load_tokenizer(folder), load_processor(folder)
    spec = preset("value").model_copy(update={"max_length": 2000})
    for kind, settings in ((PromptWriter, (spec,)), (PrefixWriter, (300, None))):
        opened.clear()
        exchanges = [Exchange.of(one) for one in rows(True)]
        short = [kind(tokenizer, *settings, Headers(processor)).write(one) for one in exchanges]
        assert opened == []
        whole = [kind(tokenizer, *settings, processor).write(one) for one in exchanges]
        ids = [[(one[0] if kind is PrefixWriter else one).ids for one in written] for written in (short, whole)]
        assert ids[0] == ids[1] and len(opened) == 6


@pytest.fixture(scope="module")
def internvl(tmp_path_factory, tiny_model):
    return tiny_vision.create("internvl", tiny_model, tmp_path_factory.mktemp("internvl"))


def changed_parts(before, after):
    """The parts of a tiny InternVL whose weights differ."""
    old, new = (dict(load_model(each, dtype="float32").named_parameters()) for each in (before, after))
    differing = {name for name in old if not torch.equal(old[name], new[name])}
    parts = ("vision_tower", "multi_modal_projector", "language_model")
    return {part for part in parts if any(part in name for name in differing)}, differing


def test_a_projector_is_trained_in_full_next_to_adapters_and_the_tower_stays(internvl, data, store, work):
    made = work("sft")
    settings = {"train_vision": False, "lora": {"r": 2, "full": ["multi_modal_projector"]}, "learning_rate": 1e-2}
    inputs = Inputs({"model": store.resolve(str(internvl), ("model",)), "data": data(True)})
    sft_stage.run(SftConfig(**SFT, **settings), inputs, made)
    parts, differing = changed_parts(internvl, made.output)
    assert parts == {"multi_modal_projector", "language_model"}
    assert any("multi_modal_projector.layer_norm" in name for name in differing), "its normalisation has no adapter"
    assert not any("embed_tokens" in name for name in differing)


def test_a_part_that_the_model_lacks_is_refused(internvl, data, store, work):
    inputs = Inputs({"model": store.resolve(str(internvl), ("model",)), "data": data(True)})
    with pytest.raises(ConfigError, match="lora.full names 'projector', and InternVLForConditionalGeneration has no such module"):
        sft_stage.run(SftConfig(**SFT, lora={"full": ["projector"]}), inputs, work("sft"))
    plan = sft_stage.plan(SftConfig(**SFT, lora={"full": ["multi_modal_projector"], "keep": "adapter"}), inputs)
    assert "lora.full is given with lora.keep=adapter" in [refusal.what for refusal in plan.refusals]


@pytest.mark.parametrize(("train_vision", "trained"), [(False, set()), (True, {"vision_tower"})])
def test_the_tower_is_trained_where_it_is_asked_for(train_vision, trained, internvl, data, store, work):
    made = work("sft")
    inputs = Inputs({"model": store.resolve(str(internvl), ("model",)), "data": data(True)})
    sft_stage.run(SftConfig(**SFT, train_vision=train_vision, learning_rate=1e-2), inputs, made)
    assert changed_parts(internvl, made.output)[0] == {"multi_modal_projector", "language_model"} | trained


def test_search_sees_the_images(folder, data, store, work):
    """The prompts differ in their images only."""
    made = work("search")
    inputs = Inputs({"model": store.resolve(str(folder), ("model",)), "prompts": data(True), "guide": {}})
    search_stage.run(GuidedConfig(**SEARCH), inputs, made)
    table = pq.read_table(made.output / "generations.parquet")
    assert table["error"].null_count == 6 and len(set(table["candidates"].to_pylist())) == 6


def test_eval_asks_with_the_images(folder, data, store, work):
    made = work("eval")
    inputs = Inputs({"model": store.resolve(str(folder), ("model",)), "data": data(True)})
    assert eval_stage.plan(EvalConfig(**EVAL), inputs).refusals == []
    eval_stage.run(EvalConfig(**EVAL), inputs, made)
    samples = [path for path in made.output.rglob("*.parquet") if "prompt_tokens" in pq.read_schema(path).names]
    tokens = [count for path in samples for count in pq.read_table(path)["prompt_tokens"].to_pylist()]
    assert tokens and min(tokens) > len(load_tokenizer(folder)("Which is it?")["input_ids"])


ROLLOUTS = {"rules": {"general": "correctness"}, "replies": 3, "prefixes": 2, "continuations": 2, "max_tokens": 12}
VALUES = {"max_steps": 1, "per_device_train_batch_size": 4, "eval_fraction": 0.4, "max_length": 256}


def test_a_value_model_is_trained_on_rollouts_that_keep_the_images(folder, data, store, work):
    """Their journal holds texts only, and a killed run resumes from it."""
    model, made, prompts = store.resolve(str(folder), ("model",)), work("rollouts"), {one.id: one for one in rows(True, 12)}
    config = RolloutsConfig(**ROLLOUTS, boundaries=list("aeioubcdfghklmnprst "), chunk_prompts=2)
    inputs = Inputs({"model": model, "data": data(True, 12)})
    rollouts_stage.run(config, inputs, made)
    rolled = read_rows(made.output / "rollouts")
    assert len({one.id.rpartition("@")[0] for one in rolled}) > 3
    assert all(one.images == prompts[one.id.rpartition("@")[0]].images for one in rolled)

    lines = (made.path / "prefixes.jsonl").read_text().splitlines(keepends=True)
    again = work("again")
    (again.path / "prefixes.jsonl").write_text(lines[0] + lines[1][:20])
    rollouts_stage.run(config, inputs, again)
    assert read_rows(again.output / "rollouts") == rolled

    (made.path / "values").mkdir()
    write_rows(made.path / "values" / "rows.parquet", [replace(one, split="train") for one in rolled])
    valued = work("values")
    inputs = Inputs({"model": model, "data": store.resolve(str(made.path / "values"), ("dataset",))})
    assert values_stage.run(ValuesConfig(**VALUES), inputs, valued).metrics["rows"]["train"] > 0


def test_a_teacher_sees_the_images_and_their_rows_keep_them(folder, data, store, work, tmp_path):
    config = {"rules": [], "samples": 4, "max_tokens": 12, "max_failed": 1.0}
    teacher = store.resolve(str(tiny_vision.stops_soon(folder, tmp_path / "teacher")), ("model",))
    made, there = work("cot"), data(True)
    cot_stage.run(CotConfig(**config), Inputs({"model": teacher, "data": there}), made)
    prompts, kept = {one.id: one for one in rows(True)}, read_rows(made.output / "cot")
    assert kept and all(one.images == prompts[one.id.partition("#")[0]].images for one in kept)
    # greedy: the replies that `eval` gets to prompts that differ in their images only
    greedy = work("greedy")
    one_sample = CotConfig(**config | {"samples": 1, "temperature": 0, "system": ""})
    inputs = Inputs({"model": store.resolve(str(folder), ("model",)), "data": there})
    with suppress(InputError):  # this model never ends a turn
        cot_stage.run(one_sample, inputs, greedy)
    said = {rows(True)[record["place"]].id: record["samples"][0]["text"] for record in read_journal(greedy.path / "samples.jsonl")}
    assert len(set(said.values())) > 1
    evaluated = work("eval")
    eval_stage.run(EvalConfig(**EVAL | {"max_tokens": 12, "max_failed": 1.0}), inputs, evaluated)
    replies = pq.read_table(evaluated.output / "samples.parquet").to_pylist()
    assert {one["id"]: one["reply"] for one in replies} == said


@pytest.mark.enable_socket
def test_a_served_teacher_is_sent_the_images(data, work):
    def teacher(request):
        (part,) = [part for part in request["messages"][-1]["content"] if part["type"] == "image_url"]
        return f"<think>First I look.</think>{len(part['image_url']['url'])}"

    made = work("cot")
    with served(teacher) as (url, _):
        engine = {"kind": "openai", "url": url, "model": "teacher", "max_retries": 0}
        cot_stage.run(CotConfig(engine=engine, samples=1, rules=["format"]), Inputs({"data": data(True)}), made)
    kept = read_rows(made.output / "cot")
    assert [one.images for one in kept] == [one.images for one in rows(True)]
    assert len({one.reply for one in kept}) == 6, "each with its own image"


def test_a_text_model_is_refused_in_the_plan(tiny_artifact, data):
    there = data(True)
    plans = [
        sft_stage.plan(SftConfig(**SFT), Inputs({"model": tiny_artifact, "data": there})),
        eval_stage.plan(EvalConfig(**EVAL), Inputs({"model": tiny_artifact, "data": there})),
        search_stage.plan(GuidedConfig(**SEARCH), Inputs({"model": tiny_artifact, "prompts": there, "guide": {}})),
        cot_stage.plan(CotConfig(), Inputs({"model": tiny_artifact, "data": there})),
        rollouts_stage.plan(RolloutsConfig(**ROLLOUTS), Inputs({"model": tiny_artifact, "data": there})),
    ]
    for plan in plans:
        assert any("have images, and" in refusal.what and "reads text only" in refusal.what for refusal in plan.refusals)


def test_the_preview_counts_the_tokens_of_an_image(folder, data, cli):
    said = cli("data", "preview", data(True).external, "--model", str(folder), "-n", "1").stdout
    assert "⟨image: 4 tokens⟩" in said and "<image>" not in said and "Which is it?" in said


def test_a_prefix_keeps_the_images_of_its_prompt(folder):
    writer = PrefixWriter(load_tokenizer(folder), 300, processor=load_processor(folder))
    (ids, vision), length = writer.write(Exchange.of(rows(True)[0]))
    assert vision and length and len(ids) > length
    short = PrefixWriter(load_tokenizer(folder), 40, processor=load_processor(folder))
    with pytest.raises(Exception, match="a prompt with images has"):
        short.write(Exchange.of(rows(True)[0]))
