"""Prompts with images for vLLM: what it is sent, in the process and on a server, and that it must compute on the same tokens."""

from __future__ import annotations

import re
import sys
from itertools import chain
from types import SimpleNamespace

import pytest

import tiny_vision
from exactness import ROWS, Model
from safework_cli.core.errors import InputError
from safework_cli.core.stage import Inputs
from safework_cli.engines.load import engine_over
from safework_cli.engines.openai import key_of
from safework_cli.engines.protocol import Sampling
from safework_cli.engines.settings import ServerSettings, VllmSettings
from safework_cli.engines.vllm import engine as in_process
from safework_cli.engines.vllm import images
from safework_cli.engines.vllm.served import ServedVllm
from safework_cli.engines.vllm.server import TOKENS, VllmServer
from safework_cli.models.load import load_model, load_tokenizer
from safework_cli.models.pixels import PixelBounds
from safework_cli.models.processors import encode_images, load_processor
from safework_eval.config import EvalConfig
from safework_eval.stage import stage as eval_stage
from vllm_served import fake_vllm

CONVERSATIONS, IMAGES = [row.prompt for row in ROWS], [row.images for row in ROWS]
GREEDY, SAMPLED = Sampling(6), Sampling(6, 1.0, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model):
    return tiny_vision.create("qwen2_5_vl", tiny_model, tmp_path_factory.mktemp("vl"))


def tokens(groups):
    return [[reply.token_ids for reply in group] for group in groups]


# ---------------------------------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl", "gemma3"])
def test_the_short_form_is_the_prompt_before_images_are_expanded(family, tiny_model, tmp_path):
    made = tiny_vision.create(family, tiny_model, tmp_path / family)
    processor, tokenizer = load_processor(made), load_tokenizer(made)
    for row, (ids, vision) in zip(ROWS, Model(None, tokenizer, processor).prompts(), strict=True):
        assert bool(vision) == bool(row.images)
        if vision:
            assert list(vision.images) == row.images and vision.length == len(ids) > len(vision.short)
            assert encode_images(processor, tokenizer.decode(vision.short), row.images)[0] == ids
            assert vision.short_of([*ids, 7, 8]) == [*vision.short, 7, 8]


# ---------------------------------------------------------------------------------------------------------------- in the process


class Llm:
    """vLLM's ``LLM`` as far as the engine uses it: expands images by the model's processor, and replies as transformers does."""

    def __init__(self, own):
        self.own, self.asked, self.options = own, [], {}
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=512))

    def generate(self, asked, options, **_):
        self.asked += asked
        return [self._answer(one, given) for one, given in zip(asked, options, strict=True)]

    def _answer(self, one, given):
        ids, vision = one["prompt_token_ids"], None
        if opened := one.get("multi_modal_data"):
            made = self.own.processor(text=[self.own.tokenizer.decode(ids)], images=[opened["image"]], return_tensors="pt")
            ids = made.pop("input_ids")[0].tolist()
            vision = {name: tensor for name, tensor in made.items() if name != "attention_mask"}
        sampling = Sampling(given["max_tokens"], given["temperature"])
        ((reply,),) = self.own.generate_ids([ids], sampling, visions=[vision], seeds=[[given["seed"] or 0]])
        logprobs = [{t: SimpleNamespace(logprob=logprob)} for t, logprob in zip(reply.token_ids, reply.logprobs, strict=True)]
        output = SimpleNamespace(token_ids=reply.token_ids, logprobs=logprobs, finish_reason=reply.finish_reason)
        return SimpleNamespace(prompt_token_ids=ids, outputs=[output])


@pytest.fixture
def own(folder):
    return engine_over(load_model(folder, dtype="float32"), load_tokenizer(folder), processor=load_processor(folder))


@pytest.fixture
def vllm(folder, own, monkeypatch):
    """Makes (engine, what stands in for vLLM)."""
    llm = Llm(own)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=dict))
    monkeypatch.setattr(in_process, "_started", lambda *_, **options: llm.options.update(options) or llm)

    def make(processor):
        return in_process.VllmEngine(folder, load_tokenizer(folder), VllmSettings(), dtype="float32", processor=processor), llm

    return make


def test_vllm_gets_the_short_prompts_and_their_images(vllm, own, folder):
    engine, llm = vllm(load_processor(folder))
    assert tokens(engine.generate(CONVERSATIONS, SAMPLED, 2, images=IMAGES)) == tokens(
        own.generate(CONVERSATIONS, SAMPLED, 2, images=IMAGES)
    )
    first, second, text, _, *last = llm.asked
    assert first["multi_modal_data"] is second["multi_modal_data"], "replies to one prompt share its images"
    assert [opened.size for opened in last[0]["multi_modal_data"]["image"]] == [(56, 56), (40, 120)]
    assert len({name for one in llm.asked for name in one.get("multi_modal_uuids", {}).get("image", [])}) == 3
    assert "multi_modal_data" not in text and llm.options["more"] == {}
    image = load_tokenizer(folder).convert_tokens_to_ids("<|image_pad|>")
    assert first["prompt_token_ids"].count(image) == 1 and last[0]["prompt_token_ids"].count(image) == 2
    assert engine._options(GREEDY, 0)["logit_bias"][image] == -100.0


def test_vllm_runs_code_of_the_folder_only_where_asked(vllm, folder):
    _, llm = vllm(None)
    assert llm.options["more"] == {}
    in_process.load_vllm(folder, VllmSettings(), trust_remote_code=True)
    assert llm.options["more"] == {"trust_remote_code": True}


def test_bounds_of_pixels_are_given_to_vllm_and_other_tokens_are_an_error(vllm, folder):
    engine, llm = vllm(load_processor(folder, pixels=PixelBounds(max_pixels=28 * 28 * 2)))
    assert llm.options["more"] == {"mm_processor_kwargs": {"size": {"shortest_edge": 784, "longest_edge": 1568}}}
    expected = (
        r"vllm/float32 computed on other tokens than those of the prompt: 82 tokens with 8 image tokens, the first at 45 "
        r"in place of 77 tokens with 3 image tokens, the first at 45"
    )
    with pytest.raises(InputError, match=expected) as refused:  # the stand-in does not take them
        engine.generate(CONVERSATIONS, GREEDY, images=IMAGES)
    assert """--mm-processor-kwargs '{"size": {"longest_edge": 1568, "shortest_edge": 784}}'""" in refused.value.do


# ---------------------------------------------------------------------------------------------------------------- on a server


@pytest.fixture
def fake(folder):
    with fake_vllm(folder) as server:
        yield server


@pytest.fixture
def connect(fake, folder, tmp_path):
    def make() -> ServedVllm:
        settings = ServerSettings(url=fake.url, start_timeout_s=0.0, timeout_s=60.0)
        scratch, processor = tmp_path / "served", load_processor(folder)
        server = VllmServer(settings, key_of(settings))
        return ServedVllm(server, folder, load_tokenizer(folder), dtype="float32", scratch=scratch, processor=processor)

    return make


def parts(fake):
    return [part for path, body in fake.seen if path == TOKENS and body for part in body["content_parts"]]


@pytest.mark.enable_socket
def test_a_server_gets_each_image_once_and_again_when_it_forgot_it(fake, connect, own):
    engine = connect()
    engine.load_weights(own.model.named_parameters, "run:0")
    replies, expected = (one.generate(CONVERSATIONS, SAMPLED, 3, images=IMAGES) for one in (engine, own))
    assert tokens(replies) == tokens(expected)
    for reply, same in zip(chain(*replies), chain(*expected), strict=True):
        assert reply.logprobs == pytest.approx(same.logprobs, abs=1e-5) and reply.prompt_ids == same.prompt_ids
    assert sum(part["url"] is not None for part in parts(fake)) == 3, "one image, and two, of two of the three prompts"
    assert sum(part["url"] is None for part in parts(fake)) == 9
    assert ("/reset_encoder_cache", None) in fake.seen, "the tower's weights may have changed"
    fake.seen.clear()
    answer = fake.answer

    def forgets(path, body):
        made = answer(path, body)
        if path == TOKENS and body and body["sampling_params"]["max_tokens"] == 1:
            fake.images.clear()
        return made

    fake.answer = forgets
    assert tokens(engine.generate(CONVERSATIONS[:1], SAMPLED, 2, images=IMAGES[:1])) == [tokens(expected)[0][:2]]
    assert sum(part["url"] is not None for part in parts(fake)) in (2, 3), "again, by the first of the two replies or by both"
    fake.seen.clear()
    engine.generate(CONVERSATIONS, GREEDY, images=IMAGES)
    assert [part["url"] is None for part in parts(fake)] == [False] * 3, "a single reply's request has the images"


@pytest.mark.enable_socket
def test_other_tokens_on_a_server_are_an_error(fake, connect, own):
    engine, answer = connect(), fake.answer
    engine.load_weights(own.model.named_parameters, "run:0")

    def one_less(path, body):
        made = answer(path, body)
        if path == TOKENS and body:
            made["prompt_token_ids"].remove(fake.tokenizer.convert_tokens_to_ids("<|image_pad|>"))
        return made

    fake.answer = one_less
    expected = r"at 127\.0\.0\.1:\d+/float32 computed on other tokens .* with (\d+) image tokens, .* with (\d+) image tokens, "
    with pytest.raises(InputError, match=expected) as refused:
        engine.generate(CONVERSATIONS, GREEDY, images=IMAGES)
    theirs, ours = map(int, re.search(expected, refused.value.what).groups())
    assert theirs == ours - 1


@pytest.mark.enable_socket
def test_a_server_that_takes_no_images_is_refused(fake, connect):
    fake.fail[TOKENS] = (404, {"detail": "Not Found"})
    with pytest.raises(InputError, match=r"takes no images with token ids\n(.|\n)*--enable-scale-out"):
        connect()


def test_an_image_that_is_too_large_to_be_sent_is_refused(folder, monkeypatch):
    monkeypatch.setattr(images, "MAX_SENT_BYTES", 100)
    vision = Model(None, load_tokenizer(folder), load_processor(folder)).prompts()[0].vision
    with pytest.raises(InputError, match=r"the image x\.png is [\d,]+ bytes as PNG"):
        images.over_http(vision, sent=False)
    assert images.over_http(vision, sent=True)[0]["url"] is None


# ---------------------------------------------------------------------------------------------------------------- plans and settings


def test_eval_of_a_model_of_the_store_is_by_the_engine_that_was_asked_for(folder, store, toy_data, work, monkeypatch):
    """It was by transformers, whatever engine.kind said."""

    class Loaded(Exception):
        pass

    def load(settings, *_, **__):
        raise Loaded(settings.kind)

    monkeypatch.setattr("safework_cli.engines.load.load_engine", load)
    inputs = Inputs({"model": store.resolve(str(folder), ("model",)), "data": toy_data.with_subset("rl")})
    config = EvalConfig(suites=[{"name": "k", "rows": {"task": "general"}}], engine={"kind": "vllm"})
    with pytest.raises(Loaded, match="vllm"):
        eval_stage.run(config, inputs, work)
