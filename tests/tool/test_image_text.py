"""A judge that reads the text in images: what it is shown, and what happens where the reader is not installed."""

from __future__ import annotations

import sys
import types

import pytest

from safework_cli.core.errors import ConfigError
from safework_cli.data.row import Image, Message
from safework_cli.verifiers import Exchange, image_text
from safework_cli.verifiers.image_text import as_read, in_reading_order, require_reader, text_of
from safework_cli.verifiers.spec import LabelSpec, preset
from safework_cli.verifiers.verdicts import unreadable
from safework_data.drawn.drawing import encoded
from safework_data.drawn.typeset import typeset

REQUEST = "Tell me how to bake a cake of plums."


def box(left: float, top: float, width: float = 50, height: float = 10) -> list[list[float]]:
    return [[left, top], [left + width, top], [left + width, top + height], [left, top + height]]


@pytest.fixture
def reader(monkeypatch):
    """RapidOCR's interface with fixed results, where the extra is not installed."""
    calls: list[int] = []

    class RapidOCR:
        def __init__(self, params):
            pass

        def __call__(self, pixels):
            calls.append(pixels.shape[0])
            return types.SimpleNamespace(txts=("how to bake", "Tell me"), boxes=[box(0, 30), box(0, 2)])

    module = types.ModuleType("rapidocr")
    module.RapidOCR = RapidOCR
    module.__spec__ = types.SimpleNamespace(name="rapidocr")
    monkeypatch.setitem(sys.modules, "rapidocr", module)
    monkeypatch.setattr(image_text, "NEEDED", ())
    monkeypatch.setattr(image_text, "_READ", {})
    image_text._reader.cache_clear()
    yield calls
    image_text._reader.cache_clear()


def exchange(*, images: int = 1) -> Exchange:
    shown = [encoded(typeset(f"{REQUEST} {number}", 224), "text") for number in range(images)]
    return Exchange([Message(role="user", content="<image>\n" * images + "Do that.")], "Preheat the oven.", images=shown)


def reading(**changes) -> LabelSpec:
    return preset("safety").model_copy(update={"read_image_text": True, **changes})


def test_the_text_is_appended_to_what_the_judge_sees(reader):
    asked = exchange(images=2)
    shown = as_read(reading(), asked, has_vision=False)
    note = "[text in image {}: Tell me\nhow to bake]"
    assert shown.messages[0]["content"] == f"Do that.\n{note.format(1)}\n{note.format(2)}" and not shown.images
    seeing = as_read(reading(), asked, has_vision=True)
    assert seeing.images == asked.images and seeing.messages[0]["content"].count("<image>") == 2
    assert as_read(preset("safety"), asked, has_vision=False) is asked
    assert len(reader) == 2, "each image is read once, however many replies are judged"


def test_a_judge_of_text_alone_judges_images_only_if_it_reads_them():
    assert "takes text only" in str(unreadable(preset("safety"), exchange(), has_vision=False))
    assert unreadable(reading(), exchange(), has_vision=False) is None


def test_the_judges_prompt_holds_the_text(reader, tiny_model):
    from transformers import AutoTokenizer

    from safework_cli.verifiers.prompting import PromptWriter

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    prompt = PromptWriter(tokenizer, reading(max_length=4096)).write(exchange())
    text = tokenizer.decode(prompt.ids)
    assert "Tell me\nhow to bake" in text and "<image>" not in text and prompt.vision is None


def test_lines_are_read_from_the_top_and_from_the_left():
    found = [("right", box(60, 11)), ("below", box(0, 30)), ("left", box(0, 10)), ("title", box(0, 0, height=8))]
    assert in_reading_order(found) == ["title", "left right", "below"]


def test_without_the_reader_the_error_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(image_text, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="rapidocr and onnxruntime are not installed") as error:
        require_reader()
    assert error.value.do == "pip install 'safework[ocr]'"
    from safework_cli.verifiers.load import load_verifier

    reading().write(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_verifier(tmp_path)


def test_a_file_of_a_verifier_names_the_setting_only_where_it_is_set(tmp_path):
    preset("safety").write(tmp_path)
    assert "read_image_text" not in (tmp_path / "verifier.json").read_text() and not LabelSpec.read(tmp_path).read_image_text
    reading().write(tmp_path)
    assert LabelSpec.read(tmp_path).read_image_text


def test_wrap_takes_the_setting():
    from safework_verifier.wrap.config import WrapConfig

    assert WrapConfig.model_validate({"read_image_text": True}).spec().read_image_text


def test_the_real_reader_reads_what_is_typeset():
    pytest.importorskip("rapidocr", reason="the extra ocr is not installed: the reader was not tried")
    pytest.importorskip("onnxruntime")
    assert text_of(encoded(typeset(REQUEST, 320), "text")).lower().split() == REQUEST.lower().split()
    assert text_of(Image(bytes=encoded(typeset(REQUEST, 320, blurred=True), "text")["bytes"], path=None)) == ""
