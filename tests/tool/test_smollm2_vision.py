"""The conversion of the vision tower, on a small graph that is written here, and on the real model where it is pulled.

What the real tower must compute is in ``models/smollm2_vision.py``; ``python tests/tower_reference.py`` prints it with onnxruntime.
``models pull smollm2-vision`` compares with it each time, and so does the last test here, where SAFEWORK_SMOLLM2_VISION names the folder of
such a model (``safework artifacts show smollm2-vision`` prints it).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, InternVLVisionConfig, InternVLVisionModel

from safework_cli.core.errors import InputError, SafeworkError
from safework_cli.data.row import Message
from safework_cli.models import smollm2_vision as vision
from safework_cli.models.load import load_model, load_tokenizer
from safework_cli.models.onnx_weights import Onnx, read_onnx
from safework_cli.models.processors import encode_images, load_processor
from safework_cli.models.rendering import form_of, render
from safework_cli.models.tiny import create_tiny_model


def varint(value: int) -> bytes:
    low, high = value & 127, value >> 7
    return bytes([low | 128]) + varint(high) if high else bytes([low])


def message(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def tensor(name: str, values: np.ndarray, kind: int = 1) -> bytes:
    dims = b"".join(varint(1 << 3) + varint(size) for size in values.shape)
    return message(5, dims + varint(2 << 3) + varint(kind) + message(8, name.encode()) + message(9, values.tobytes()))


def node(name: str, *inputs: str) -> bytes:
    return message(1, b"".join(message(1, each.encode()) for each in inputs) + message(3, name.encode()))


def test_tensors_and_who_uses_them_are_read(tmp_path):
    weights = np.arange(300, dtype="<f4").reshape(3, 100)
    graph = node("/fc1/MatMul", "x", "onnx::MatMul_7") + tensor("onnx::MatMul_7", weights) + tensor("shape", np.array([1]), kind=7)
    file = tmp_path / "small.onnx"
    file.write_bytes(varint(1 << 3) + varint(300) + varint(9 << 3 | 5) + b"1234" + message(7, graph))
    found = read_onnx(file)
    assert list(found.tensors) == ["onnx::MatMul_7"] and np.array_equal(found.tensors["onnx::MatMul_7"], weights)
    assert found.used_by == {"/fc1/MatMul": ["x", "onnx::MatMul_7"]}


@pytest.mark.parametrize("content", [b"", b"no protobuf at all", message(7, tensor("a", np.ones(4, "<f4")))[:-3], b"\xff" * 30])
def test_another_file_is_refused(tmp_path, content):
    file = tmp_path / "other.onnx"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"other\.onnx cannot be read as ONNX"):
        read_onnx(file)


def graph_of(tower: InternVLVisionModel, side: int) -> Onnx:
    """A tower's weights as the exporter writes them: names of DINOv2, matrices folded into tensors with numbers."""
    state = {name: value.numpy() for name, value in tower.state_dict().items()}
    tensors = {}
    used_by = {"/backbone/embeddings/Reshape_1": ["p1", "s"], "/backbone/embeddings/Concat_6": ["p0", "r"]}
    positions = state["embeddings.position_embeddings"]
    tensors |= {"p0": positions[:, :1], "p1": positions[:, 1:].reshape(1, side * side, -1)}
    for name in ("cls_token", "patch_embeddings.projection.weight", "patch_embeddings.projection.bias"):
        tensors[f"backbone.embeddings.{name}"] = state[f"embeddings.{name}"]
    for layer in range(tower.config.num_hidden_layers):
        theirs = f"backbone.encoder.layer.{layer}"
        for number in (1, 2):
            tensors[f"{theirs}.layer_scale{number}.lambda1"] = state[f"encoder.layer.{layer}.lambda_{number}"]
        for part, written in vision._LAYER.items():
            name = f"{theirs}.{written.replace('/', '.')}"
            weight = state[f"encoder.layer.{layer}.{part}.weight"]
            tensors[f"{name}.bias"] = state[f"encoder.layer.{layer}.{part}.bias"]
            if written.startswith("norm"):
                tensors[f"{name}.weight"] = weight
            else:
                number = f"onnx::MatMul_{len(tensors)}"
                tensors[number] = weight.T
                used_by[f"/backbone/encoder/layer.{layer}/{written}/MatMul"] = ["x", number]
    return Onnx(tensors, used_by)


@pytest.fixture
def small_tower():
    config = InternVLVisionConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, attention_bias=True, image_size=[56, 56],
        patch_size=[14, 14], use_mean_pooling=True,
    )  # fmt: skip
    torch.manual_seed(1)
    tower = InternVLVisionModel(config).eval()
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return tower


def test_each_weight_gets_its_place(small_tower):
    weights = vision.tower_weights(graph_of(small_tower, side=4), small_tower.config)
    for name, value in small_tower.state_dict().items():
        assert torch.allclose(weights[name], value, atol=1e-6), name
    assert set(weights) == set(small_tower.state_dict())


def test_a_graph_that_lacks_a_weight_is_refused(small_tower):
    graph = graph_of(small_tower, side=4)
    del graph.tensors["backbone.embeddings.cls_token"]
    with pytest.raises(SafeworkError, match="not that of the expected vision tower"):
        vision.tower_weights(graph, small_tower.config)


def test_a_tower_that_computes_something_else_is_refused():
    with pytest.raises(SafeworkError, match="computes other features than its source"):
        vision.refuse_inexact(InternVLVisionModel(vision.vision_config()).eval())


@pytest.fixture
def language(tmp_path):
    create_tiny_model(tmp_path / "text", seed=3)
    return load_model(tmp_path / "text", dtype="float32"), AutoTokenizer.from_pretrained(str(tmp_path / "text"))


@pytest.fixture
def with_tower(language, small_tower, monkeypatch, tmp_path):
    """A tiny language model with the small tower, saved."""
    monkeypatch.setattr(vision, "vision_config", lambda: small_tower.config)
    monkeypatch.setattr(vision, "IMAGE_SIZE", 56)
    monkeypatch.setattr(vision, "TOKENS", 4)
    model, tokenizer = language
    template = tokenizer.chat_template
    made = vision.with_vision(model, tokenizer, graph_of(small_tower, side=4), seed=5)
    (tmp_path / "both").mkdir()
    vision.save_with_vision(made, tokenizer, tmp_path / "both")
    return tmp_path / "both", template


def test_text_is_answered_as_without_the_tower(language, with_tower):
    folder, template = with_tower
    text_model, _ = language
    model, tokenizer = load_model(folder, dtype="float32"), load_tokenizer(folder)
    messages = [Message(role="user", content="How many?"), Message(role="assistant", content="Two.")]
    rendered = render(tokenizer, messages, generation_prompt=True)
    tokenizer.chat_template, of_images = template, tokenizer.chat_template
    assert rendered == render(tokenizer, messages, generation_prompt=True) and of_images != template
    ids = torch.tensor([tokenizer(rendered, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        ours, theirs = model(input_ids=ids).logits, text_model(input_ids=ids).logits
    assert torch.allclose(ours[..., : theirs.shape[-1]], theirs, atol=1e-5)
    assert ours.shape[-1] == theirs.shape[-1] + 4
    assert torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)


def test_an_image_has_its_tokens_and_reaches_the_logits(with_tower, tmp_path):
    from PIL import Image as PIL

    from safework_data.drawn.drawing import encoded

    folder, _ = with_tower
    processor, tokenizer, model = load_processor(folder), load_tokenizer(folder), load_model(folder, dtype="float32")
    assert form_of(tokenizer).images
    text = render(processor.tokenizer, [Message(role="user", content="<image>\nWhat?")], generation_prompt=True, images=True)
    logits = []
    for colour in ("red", "blue"):
        ids, made = encode_images(processor, text, [encoded(PIL.new("RGB", (80, 80), colour), "drawing")])
        assert ids.count(model.config.image_token_id) == 4 and made["pixel_values"].shape == (1, 3, 56, 56)
        with torch.no_grad():
            logits.append(model(input_ids=torch.tensor([ids]), **made).logits[0, -1])
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_the_projector_is_that_of_the_seed(language, small_tower, monkeypatch):
    monkeypatch.setattr(vision, "vision_config", lambda: small_tower.config)
    made = [vision.with_vision(*language, graph_of(small_tower, side=4), seed=seed) for seed in (1, 1, 2)]
    one, same, other = (model.model.multi_modal_projector.linear_1.weight for model in made)
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.real_model
def test_the_real_tower_computes_what_its_graph_does():
    folder = os.environ.get("SAFEWORK_SMOLLM2_VISION")
    if not folder:
        pytest.skip("SAFEWORK_SMOLLM2_VISION names no folder of `safework models pull smollm2-vision`: the real tower is NOT compared")
    tower = load_model(Path(folder), dtype="float32").model.vision_tower
    assert vision.refuse_inexact(tower) < vision.EXACT
