"""Prompts with images: vLLM, which encodes them itself, against transformers with the same weights; and what is refused."""

from __future__ import annotations

import pytest
import torch

import tiny_vision
from exactness import ROWS, Model
from safework_cli.core.errors import InputError
from safework_cli.core.torchvision import hidden_because
from safework_cli.engines.load import engine_over, load_token_engine
from safework_cli.engines.protocol import Sampling
from safework_cli.engines.settings import EngineSettings, ServerSettings, VllmSettings
from safework_cli.engines.vllm import images
from safework_cli.engines.vllm.engine import VllmEngine
from safework_cli.engines.vllm.served import ServedVllm
from safework_cli.engines.vllm.server import VllmServer
from safework_cli.models.load import load_model, load_tokenizer
from safework_cli.models.pixels import PixelBounds
from safework_cli.models.processors import load_processor
from safework_cli.models.tiny import create_tiny_model

pytest.importorskip("vllm", reason="vLLM is not installed here: make install-vllm test-vllm")
pytest.importorskip("torchvision", reason="vLLM's code for images needs torchvision: make test-vllm")
pytestmark = [pytest.mark.enable_socket, pytest.mark.timeout(900), pytest.mark.skipif(bool(hidden_because()), reason="torchvision differs")]
CONVERSATIONS, IMAGES = [row.prompt for row in ROWS], [row.images for row in ROWS]
GREEDY, SAMPLED = Sampling(16), Sampling(16, 1.0, seed=3)
MEAN_GAP, LARGEST_GAP = 2e-5, 2e-4


@pytest.fixture(scope="session")
def create(tmp_path_factory):
    text = tmp_path_factory.mktemp("text")
    create_tiny_model(text)
    return lambda family: tiny_vision.create(family, text, tmp_path_factory.mktemp(family), wide=True)


@pytest.fixture(scope="module")
def qwen(create):
    return create("qwen2_5_vl")


def compare(engine, own, barred=()) -> None:
    """Asserts equal greedy replies, and log-probabilities of sampled ones as those of a plain forward pass.

    Args:
        barred: tokens that the engine's distribution does not have.
    """
    greedy, expected = engine.generate(CONVERSATIONS, GREEDY, images=IMAGES), own.generate(CONVERSATIONS, GREEDY, images=IMAGES)
    assert [a.prompt_ids for (a,) in greedy] == [b.prompt_ids for (b,) in expected]
    equal = sum(a.token_ids == b.token_ids and a.text == b.text for (a,), (b,) in zip(greedy, expected, strict=True))
    plain, gaps = Model(own.model, own.tokenizer, own.processor), []
    for prompt, group in zip(plain.prompts(), engine.generate(CONVERSATIONS, SAMPLED, 2, images=IMAGES), strict=True):
        assert group[0].token_ids != group[1].token_ids
        for reply in group:
            logp_TV = plain.plain([*prompt.ids, *reply.token_ids], prompt.vision)[len(prompt.ids) - 1 : -1]
            logp_TV[:, list(barred)] = -torch.inf
            exact_T = logp_TV.log_softmax(-1).gather(1, torch.tensor(reply.token_ids)[:, None])[:, 0]
            gaps += (torch.tensor(reply.logprobs) - exact_T).abs().tolist()
    print(f"\n{engine.name}: greedy {equal}/{len(greedy)} equal, gap mean {sum(gaps) / len(gaps):.1e}, largest {max(gaps):.1e}")
    assert equal == len(greedy) and sum(gaps) / len(gaps) <= MEAN_GAP and max(gaps) <= LARGEST_GAP


@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl"])
def test_tokens_and_log_probabilities_are_those_of_transformers(family, create, share):
    folder = create(family)
    engine = load_token_engine(
        EngineSettings(kind="vllm", vllm={"gpu_memory_utilization": share, "max_model_len": 512}), folder, dtype="float32", images=True
    )
    own = load_token_engine(EngineSettings(), folder, dtype="float32", images=True)
    compare(engine, own)
    prompt = Model(own.model, own.tokenizer, own.processor).prompts()[2]
    ((whole,),) = own.generate_ids([prompt.ids], GREEDY, visions=[prompt.vision])
    ((rest,),) = engine.generate_ids([prompt.ids + whole.token_ids[:5]], Sampling(11), visions=[prompt.vision])
    assert rest.token_ids == whole.token_ids[5:], "a reply is continued after the images of its prompt"
    vision = prompt.vision
    vision.short = [vision.short[0], *vision.short]
    with pytest.raises(InputError, match=r"computed on other tokens .*: \d+ tokens with \d+ image tokens, the first at \d+ in place of"):
        engine.generate_ids([prompt.ids], GREEDY, visions=[vision])


def test_bounds_and_weights_of_the_trainer_are_taken_over(qwen, tmp_path, share):
    """The tower's weights change, too: what vLLM kept of an image is forgotten."""
    processor, tokenizer = load_processor(qwen, pixels=PixelBounds(max_pixels=28 * 28 * 2)), load_tokenizer(qwen)
    log = tmp_path / "vllm.log"
    engine = VllmEngine(
        qwen,
        tokenizer,
        VllmSettings(gpu_memory_utilization=share, max_model_len=512),
        dtype="float32",
        sampled=True,
        live=True,
        log=log,
        processor=processor,
    )
    model = load_model(qwen, dtype="float32")
    own = engine_over(model, tokenizer, processor=processor)
    torch.manual_seed(1)
    for _ in range(2):
        engine.load_weights(model.named_parameters())
        compare(engine, own, engine._placeholders)
        moved(model)


def moved(model) -> None:
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)


def test_a_server_gets_each_image_once(qwen, tmp_path, monkeypatch, serving):
    sent, png = [], images._png
    monkeypatch.setattr(images, "_png", lambda image: sent.append(image) or png(image))
    processor, tokenizer = load_processor(qwen), load_tokenizer(qwen)
    model = load_model(qwen, dtype="float32")
    own = engine_over(model, tokenizer, processor=processor)
    torch.manual_seed(1)
    with serving(qwen, tmp_path / "server") as (url, log):
        server = VllmServer(ServerSettings(url=url, log=str(log)), "none")
        engine = ServedVllm(server, qwen, tokenizer, dtype="float32", scratch=tmp_path / "scratch", processor=processor)
        for step in range(2):
            engine.load_weights(model.named_parameters, f"test:{step}")
            compare(engine, own, engine._placeholders)
            moved(model)
        sent.clear()
        engine.generate(CONVERSATIONS, SAMPLED, 4, images=IMAGES)
        assert len(sent) == sum(map(len, IMAGES))
        (prompt,) = [prompt for prompt in Model(model, tokenizer, processor).prompts() if prompt.vision and len(prompt.vision.images) == 1]
        answers = server.complete([engine._with_images(prompt.ids, prompt.vision, engine._options(GREEDY, 0), sent=True)])
        assert len(answers) == 1 and len(sent) == sum(map(len, IMAGES)), "named only"
        prompt.vision.images[0]["bytes"] += b" "  # another name, which the server does not have
        server.complete([engine._with_images(prompt.ids, prompt.vision, engine._options(GREEDY, 0), sent=True)])
        assert len(sent) == sum(map(len, IMAGES)) + 1, "forgotten, and sent again"
