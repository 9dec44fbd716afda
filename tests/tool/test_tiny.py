"""The tiny models: sizes, learned tokens, and Qwen2.5-VL's architecture with its template."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoTokenizer

from safework_cli.core.errors import ConfigError
from safework_cli.core.stage import Inputs
from safework_cli.data.row import Message
from safework_cli.models.load import load_model, load_tokenizer
from safework_cli.models.processors import encode_images, load_processor
from safework_cli.models.pull import PullConfig, PullModel
from safework_cli.models.rendering import form_of, render
from safework_cli.models.templates import named_template
from safework_cli.models.tiny import create_tiny_model, tiny_tokenizer
from safework_cli.models.tiny_sizes import TinySizes
from safework_data.drawn.drawing import encoded
from safework_data.drawn.scenes import placed

SIZES = TinySizes(hidden_size=96, layers=3, heads=2, vocabulary=300, vision_hidden_size=32, vision_layers=3, patch_size=8)
TEXTS = ["How many shapes are there? Answer with a number.", "1 red circle, 2 blue square, 3 green triangle."] * 5


def test_the_vision_model_has_its_sizes_and_reads_images(tmp_path):
    from random import Random

    create_tiny_model(tmp_path, architecture="qwen2.5-vl", seed=1, sizes=SIZES, texts=TEXTS)
    model, processor, tokenizer = load_model(tmp_path, dtype="float32"), load_processor(tmp_path), load_tokenizer(tmp_path)
    text, tower = model.config.text_config, model.config.vision_config
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (96, 3, 2)
    assert sum(text.rope_parameters["mrope_section"]) == 24
    assert (tower.hidden_size, tower.depth, tower.patch_size, tower.fullatt_block_indexes) == (32, 3, 8, [1])
    assert tokenizer.chat_template == named_template("qwen2_5_vl") and form_of(tokenizer).images
    asked = render(processor.tokenizer, [Message(role="user", content="<image>\nHow many?")], generation_prompt=True, images=True)
    scenes = [placed([("red", "circle")] * count, Random(count)).draw(96) for count in (1, 5)]
    logits = []
    for scene in scenes:
        ids, made = encode_images(processor, asked, [encoded(scene, "drawing")])
        assert ids.count(model.config.image_token_id) == 36  # (96 / 8 / 2)²
        with torch.no_grad():
            logits.append(model(input_ids=torch.tensor([ids]), **made).logits[0, -1])
    assert not torch.allclose(logits[0], logits[1], atol=1e-5)


def test_tokens_are_learned_and_any_text_can_be_written(tmp_path):
    learned, by_byte = tiny_tokenizer(TEXTS, 300), tiny_tokenizer(None, None)
    assert len(learned) == 300 + 3 and len(by_byte) == 256 + 3
    for text in (TEXTS[1], "Ärger 日本"):
        ids = learned(text, add_special_tokens=False)["input_ids"]
        assert learned.decode(ids) == text and len(ids) <= len(by_byte(text, add_special_tokens=False)["input_ids"])
    assert len(learned(TEXTS[1], add_special_tokens=False)["input_ids"]) < len(TEXTS[1]) / 2


def test_the_system_message_of_the_template_takes_few_tokens(tmp_path):
    create_tiny_model(tmp_path, architecture="qwen2.5-vl", sizes=SIZES.model_copy(update={"vocabulary": 400}), texts=TEXTS)
    tokenizer = load_tokenizer(tmp_path)
    assert len(tokenizer("system\nYou are a helpful assistant.\n", add_special_tokens=False)["input_ids"]) < 12


def test_tokens_do_not_depend_on_how_often_they_are_learned():
    one, other = (tiny_tokenizer(TEXTS, 290).get_vocab() for _ in range(2))
    assert one == other


def test_a_seed_gives_its_weights(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        create_tiny_model(tmp_path / name, architecture="qwen2.5-vl", seed=seed)
    one, same, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert one == same != other and len(AutoTokenizer.from_pretrained(str(tmp_path / "a"))) == 256 + 7


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"source": "smollm2", "tiny": {"layers": 4}}, "only the tiny model has sizes"),
        (
            {"source": "tiny", "architecture": "qwen2.5-vl", "tiny": {"hidden_size": 72, "heads": 4}},
            "not a multiple of 16 times tiny.heads=4",
        ),
        ({"source": "tiny", "tiny": {"hidden_size": 66, "heads": 4}}, "divided among heads=4"),
        ({"source": "tiny", "tiny": {"vision_hidden_size": 40}}, "not a multiple of 16"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings, why):
    with pytest.raises(ValidationError, match=why):
        PullConfig(**settings)


def test_tokens_need_texts_and_texts_need_a_number_of_tokens(toy_data):
    stage = PullModel()
    lacking = stage.plan(PullConfig(source="tiny", tiny={"vocabulary": 300}), Inputs({}))
    assert [refusal.what for refusal in lacking.refusals] == ["tiny.vocabulary is given without data"]
    unused = stage.plan(PullConfig(source="tiny"), Inputs({"data": toy_data.with_subset("cot")}))
    assert [refusal.what for refusal in unused.refusals] == ["data is given without tiny.vocabulary"]
    assert not stage.plan(PullConfig(source="tiny", tiny={"vocabulary": 300}), Inputs({"data": toy_data.with_subset("cot")})).refusals
    with pytest.raises(ConfigError, match="did you mean 'smollm2-vision'"):
        stage.plan(PullConfig(source="smollm2-visoin"), Inputs({}))
