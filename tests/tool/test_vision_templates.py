"""Templates of vision-language families: text reaches the model, whether a template reads text or lists of parts."""

from __future__ import annotations

import pytest

from safework_cli.data.reply import parse_reply
from safework_cli.models.chat_template import encode_conversation, encode_prompt, instructed, observation_ids
from safework_cli.models.rendering import TemplateError, form_of, render
from safework_cli.models.thoughts import ThoughtReader
from vision_templates import FAMILIES, TEMPLATES, family_tokenizer

LISTS_ONLY = {"llava", "llava_next", "llava_onevision", "idefics3", "smolvlm"}
ASKED, MORE = {"role": "user", "content": "Who built it?"}, {"role": "user", "content": "Results: none"}
SAID = {"role": "assistant", "content": "<think>Look it up.</think>Ada"}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def spoken(tiny_model, family):
    tokenizer = family_tokenizer(tiny_model, family)
    return tokenizer, [tokenizer.eos_token_id]


def test_what_a_template_reads_is_tried(spoken, family):
    form = form_of(spoken[0])
    assert form.images
    assert ("user" not in form.text) == ("assistant" not in form.text) == (family in LISTS_ONLY)


def test_a_text_prompt_reaches_the_model(spoken):
    """Four questions got one reply from templates that drop text."""
    tokenizer, _ = spoken
    assert "Who built it?" in tokenizer.decode(encode_prompt(tokenizer, [ASKED]).ids)
    asked = instructed(tokenizer, "Be brief.", [ASKED])
    text = tokenizer.decode(encode_prompt(tokenizer, asked).ids)
    assert "Be brief." in text and "Who built it?" in text


def test_training_is_on_what_generation_would_sample(spoken):
    tokenizer, stops = spoken
    encoded = encode_conversation(tokenizer, [ASKED, SAID], stops)
    prompt = encode_prompt(tokenizer, [ASKED]).ids
    assert encoded.input_ids[: len(prompt)] == prompt and encoded.supervised == [False] * len(prompt) + [True] * (
        len(encoded.input_ids) - len(prompt)
    )
    assert encoded.input_ids[-1] in stops and encoded.vision is None
    reply = parse_reply(ThoughtReader(tokenizer).text_of(prompt, encoded.input_ids[len(prompt) :]))
    assert (reply.thought, reply.answer) == ("Look it up.", "Ada")


def test_a_turn_ends_once(spoken):
    """Training on several turns, and episodes that append them, have the same ids."""
    tokenizer, stops = spoken
    encoded = encode_conversation(tokenizer, [ASKED, SAID, MORE, SAID], stops)
    first = encode_conversation(tokenizer, [ASKED, SAID], stops).input_ids
    between = observation_ids(tokenizer, [ASKED, SAID, MORE], stops, stopped=True)
    assert encoded.input_ids[: len(first) + len(between)] == first + between
    assert "Results: none" in tokenizer.decode(between)


def test_images_are_written_where_the_template_has_them(spoken, family):
    tokenizer, _ = spoken
    asked = [{"role": "user", "content": "One <image> and <image> two"}]
    written, literal = render(tokenizer, asked, images=True), render(tokenizer, asked)
    mark = {"internvl": "<IMG_CONTEXT>", "gemma3": "<start_of_image>", "mistral3": "[IMG]"}.get(
        family, "<|image_pad|>" if family.startswith("qwen") else "<image>"
    )
    assert written.count(mark) == 2 and all(word in written for word in ("One", "and", "two"))
    assert "One <image> and <image> two" in literal, "without images it is text"


def test_a_text_model_refuses_images(tiny_model):
    from safework_cli.models.load import load_tokenizer

    tokenizer = load_tokenizer(tiny_model)
    assert form_of(tokenizer) == type(form_of(tokenizer))(frozenset(("system", "user", "assistant")), False)
    image = {"bytes": b"", "path": None}
    with pytest.raises(TemplateError, match="it has images, and the model reads text only"):
        encode_prompt(tokenizer, [{"role": "user", "content": "<image>"}], [image])
    with pytest.raises(TemplateError, match="no place for images"):
        encode_prompt(tokenizer, [{"role": "user", "content": "<image>"}], [image], processor=object())


def test_each_image_has_one_place(tiny_model):
    tokenizer, image = family_tokenizer(tiny_model, "llava"), {"bytes": b"", "path": None}
    with pytest.raises(TemplateError, match="it has 1 <image> tags for 2 images"):
        encode_prompt(tokenizer, [{"role": "user", "content": "<image>"}], [image, image], processor=object())


def test_the_processors_template_is_the_models(tiny_model, tmp_path):
    """Qwen2.5-VL as published has a template for text in the tokenizer, and another one in the processor's file."""
    import json
    import shutil

    from safework_cli.models.load import load_tokenizer

    folder = shutil.copytree(tiny_model, tmp_path / "published")
    config = {"model_type": "llava", "vision_config": {"model_type": "siglip_vision_model"}, "text_config": {"model_type": "llama"}}
    config["text_config"] |= {"vocab_size": json.loads((folder / "config.json").read_text())["vocab_size"]}
    (folder / "config.json").write_text(json.dumps(config))
    for name, content in (("chat_template.json", {"chat_template": TEMPLATES["llava"]}), ("processor_config.json", {})):
        (folder / name).write_text(json.dumps(content))
    (folder / "chat_template.jinja").unlink()
    assert load_tokenizer(folder).chat_template == TEMPLATES["llava"]
