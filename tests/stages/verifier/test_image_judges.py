"""Judges with a vision tower read, train on and save images; judges without one refuse them."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

import tiny_vision
from safework_cli.core.artifacts.external import path_artifact
from safework_cli.core.errors import InputError
from safework_cli.core.stage import Inputs
from safework_cli.data.row import Message, Row, write_rows
from safework_cli.models.load import load_model, load_tokenizer, save_model
from safework_cli.models.processors import load_processor
from safework_cli.verifiers.contract import Exchange
from safework_cli.verifiers.labels import LabelVerifier
from safework_cli.verifiers.load import load_verifier
from safework_cli.verifiers.spec import SHORT_TEMPLATES, LabelSpec, preset
from safework_verifier.train.config import VerifierTrainConfig
from safework_verifier.train.stage import stage


def image(colour: str, size: int = 28) -> dict:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def spec() -> LabelSpec:
    made = preset("value")
    made.template, made.strict_template = SHORT_TEMPLATES["value"]
    made.max_length = 400
    return made


def asked(reply: str, *colours: str) -> Exchange:
    tags = "<image>\n" * len(colours)
    return Exchange([Message(role="user", content=f"{tags}What is this?")], reply, images=[image(colour) for colour in colours])


@pytest.fixture(scope="module", params=["llava", "idefics3"])
def with_vision(request, tmp_path_factory, tiny_model):
    model, processor = getattr(tiny_vision, request.param)(tiny_model)
    folder = tmp_path_factory.mktemp(request.param)
    save_model(model, processor, folder)
    return folder


def test_images_are_read_and_batches_give_the_results_of_single_calls(with_vision):
    model, processor = load_model(with_vision, dtype="float32"), load_processor(with_vision)
    judge = LabelVerifier(model, load_tokenizer(with_vision), spec(), processor=processor, batch_size=4)
    samples = [asked("a", "red"), asked("a", "blue"), asked("a"), asked("a longer reply", "red", "blue")]
    together = [reading.probabilities for reading in judge.read(samples)]
    for sample, probabilities in zip(samples, together, strict=True):
        assert judge.read([sample])[0].probabilities == pytest.approx(probabilities, abs=1e-5)
    assert together[0] != pytest.approx(together[1], abs=1e-7), "the colour must matter"
    prompt = judge.writer.write(samples[3])
    assert prompt.vision and "<image>" not in judge.tokenizer.decode(
        [i for i in prompt.ids if i not in set(judge.tokenizer.all_special_ids)]
    )


def test_the_prompt_of_an_image_is_the_processors_own(with_vision):
    """The ids are those that the processor makes of the whole conversation, where no text has to be escaped."""
    model, processor = load_model(with_vision, dtype="float32"), load_processor(with_vision)
    judge = LabelVerifier(model, load_tokenizer(with_vision), spec(), processor=processor)
    sample = asked("fine", "red")
    prompt, own = judge.writer.write(sample), spec()
    user = own.template.replace("{query}", "What is this?").replace("{response}", "fine")
    messages = [
        {"role": "system", "content": [{"type": "text", "text": own.system}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": user}]},
    ]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    made = processor(text=[text], images=[[Image.new("RGB", (28, 28), "red")]], return_tensors="pt", add_special_tokens=False)
    assert judge.tokenizer.decode(prompt.ids) == judge.tokenizer.decode(made["input_ids"][0])
    torch.testing.assert_close(prompt.vision["pixel_values"], made["pixel_values"])


def rows() -> list[Row]:
    made = []
    for number in range(60):
        colour, label = (("red", "bad"), ("white", "good"))[number % 2]
        messages = [Message(role="user", content="<image>\nIs it good?"), Message(role="assistant", content="yes")]
        made.append(Row(f"r{number}", "value", messages, images=[image(colour)], meta={"label": label}))
    return made


def test_a_judge_trains_on_images_only_and_is_saved_with_its_vision_tower(work, tmp_path, tiny_model):
    model, processor = tiny_vision.llava(tiny_model)
    save_model(model, processor, tmp_path / "model")
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "rows.parquet", rows())
    inputs = Inputs({
        "model": path_artifact(tmp_path / "model", "model", ("model",)), "data": path_artifact(tmp_path / "data", "data", ("dataset",)),
    })  # fmt: skip
    config = VerifierTrainConfig(
        task="value", instruction="short", max_length=400, learning_rate=3e-3, max_steps=30, eval_fraction=0.4, dtype="float32",
        lr_scheduler_type="constant", attack_rows=0,
    )  # fmt: skip
    outcome = stage.run(config, inputs, work)
    assert outcome.metrics["accuracy"]["value"] == 1.0
    judge = load_verifier(work.output, dtype="float32")
    red, white = judge.judge([Exchange.of(row) for row in rows()[:2]])
    assert (red.label, white.label) == ("bad", "good")


def test_a_judge_without_a_vision_tower_refuses_images(work, tmp_path, tiny_model):
    judge = LabelVerifier(load_model(tiny_model, dtype="float32"), load_tokenizer(tiny_model), spec())
    with_image, plain = judge.judge([asked("a", "red"), asked("a")])
    assert with_image.score is None and "takes text only" in with_image.error and plain.score is not None
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "rows.parquet", rows())
    inputs = Inputs({
        "model": path_artifact(tiny_model, "model", ("model",)), "data": path_artifact(tmp_path / "data", "data", ("dataset",)),
    })  # fmt: skip
    with pytest.raises(InputError, match="takes text only"):
        stage.run(VerifierTrainConfig(task="value", instruction="short", max_length=400), inputs, work)
