"""A prompt computed once for its whole batch gives the tokens that transformers' own loop gives."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from safework_cli.core.errors import SafeworkError
from safework_cli.engines.hf.decode import Draws, _passes, common_prefix, unshareable
from safework_cli.engines.hf.engine import HFEngine
from safework_cli.engines.hf.packed import packed_linears
from safework_cli.engines.protocol import Sampling
from safework_cli.models.load import load_tokenizer

SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return load_tokenizer(tiny_model)


def model_of(kind, tokenizer):
    torch.manual_seed(1)
    config, cls = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}[kind]
    model = cls(config(vocab_size=len(tokenizer), **SMALL))
    for parameter in model.parameters():
        parameter.data *= 4  # far from ties, and attention far from uniform
    return model.eval()


def prompts_of(shape):
    drawn = random.Random(0)

    def tokens(count):
        return [drawn.randrange(10, 250) for _ in range(count)]

    head = tokens(30)
    return {
        "shared head, unequal lengths": [head + tokens(n) for n in (1, 3, 40, 3, 17, 90)],
        "nothing shared": [tokens(n) for n in (5, 61, 8, 30)],
        "one prompt": [tokens(50)],
        "one is the head of another": [head, head + tokens(9)],
        "a prompt twice": [[*head, 11], [*head, 12], [*head, 11]],
    }[shape]


SHAPES = ["shared head, unequal lengths", "nothing shared", "one prompt", "one is the head of another", "a prompt twice"]


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_tokens_are_those_of_generate(kind, shape, tokenizer):
    model, prompts = model_of(kind, tokenizer), prompts_of(shape)
    shared = HFEngine(model, tokenizer).generate_ids(prompts, Sampling(max_tokens=40), n=2)
    plain = HFEngine(model, tokenizer, share_prompts=False).generate_ids(prompts, Sampling(max_tokens=40), n=2)
    for ours, theirs in zip((c for g in shared for c in g), (c for g in plain for c in g), strict=True):
        assert ours.token_ids == theirs.token_ids and ours.finish_reason == theirs.finish_reason and ours.prompt_ids == theirs.prompt_ids
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
    assert len({tuple(g[0].token_ids) for g in shared}) > 1 or len(prompts) == 1  # the prompt does decide the reply


def test_sampled_tokens_carry_the_logprobs_of_the_plain_model_after_rows_have_left(tokenizer):
    """Rows end at different steps, so the batch is compacted several times; what is left must still attend to its own prompt."""
    model, prompts = model_of("llama", tokenizer), prompts_of("shared head, unequal lengths")
    engine = HFEngine(model, tokenizer)
    engine.stop_ids = list(range(20, 60))
    groups = engine.generate_ids(prompts, Sampling(max_tokens=60, temperature=1.0, seed=3), n=6)
    assert len({len(c.token_ids) for g in groups for c in g}) > 6  # they did end at different steps
    for completion in (c for g in groups for c in g):
        ids = torch.tensor([completion.prompt_ids + completion.token_ids])
        logp_TV = model(ids).logits[0, len(completion.prompt_ids) - 1 : -1].log_softmax(-1)
        expected = logp_TV.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0].tolist()
        assert completion.logprobs == pytest.approx(expected, abs=1e-4)
        assert (completion.token_ids[-1] in engine.stop_ids) == (completion.finish_reason == "stop")
        assert not set(completion.token_ids[:-1]) & set(engine.stop_ids)


def test_the_draw_follows_the_distribution(tokenizer):
    model = model_of("llama", tokenizer)
    prompt = prompts_of("one prompt")[0]
    expected_V = (model(torch.tensor([prompt])).logits[0, -1] / 2).softmax(-1).detach()
    groups = HFEngine(model, tokenizer, batch_size=4000).generate_ids([prompt], Sampling(max_tokens=1, temperature=2.0), n=4000)
    top = int(expected_V.argmax())
    share = sum(c.token_ids[0] == top for c in groups[0]) / 4000
    assert 0.02 < expected_V[top] < 0.98 and share == pytest.approx(float(expected_V[top]), abs=0.03)
    nucleus = HFEngine(model, tokenizer, batch_size=500).generate_ids([prompt], Sampling(max_tokens=1, temperature=2.0, top_p=0.01), n=500)
    assert {c.token_ids[0] for c in nucleus[0]} == {top}


def windowed(tokenizer):
    """Sliding windows: the cache cannot be expanded, and replies are generated plainly."""
    torch.manual_seed(1)
    model = MistralForCausalLM(MistralConfig(vocab_size=len(tokenizer), sliding_window=8, **SMALL)).eval()
    for parameter in model.parameters():
        parameter.data *= 4
    return model


@pytest.mark.parametrize("kind", ["shared", "plain", "window"])
def test_a_draw_depends_on_its_prompt_and_seed_and_on_nothing_else(kind, tokenizer):
    model = windowed(tokenizer) if kind == "window" else model_of("llama", tokenizer)
    prompts = prompts_of("nothing shared")
    sampling = Sampling(max_tokens=12, temperature=1.0, top_p=0.9, seed=7)

    def drawn(order, batch_size, n=3, **more):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            engine = HFEngine(model, tokenizer, batch_size, share_prompts=kind != "plain")
        engine.stop_ids = list(range(20, 60))  # rows leave at different steps
        groups = engine.generate_ids([prompts[i] for i in order], sampling, n, **more)
        return {i: [c.token_ids for c in group] for i, group in zip(order, groups, strict=True)}

    expected = drawn(range(4), 64)
    assert len({tuple(tokens) for group in expected.values() for tokens in group}) > 10
    for order, batch_size in ((range(4), 1), (range(4), 2), (range(4), 5), ([2, 0, 3, 1], 3), ([1], 64)):
        assert drawn(order, batch_size) == {i: expected[i] for i in order}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = HFEngine(model, tokenizer, share_prompts=kind != "plain")
    engine.stop_ids = list(range(20, 60))
    drawn_listed = [group[0].token_ids for group in engine.generate_ids([prompts[2]] * 3, sampling)]
    assert drawn_listed == expected[2]  # a prompt listed thrice is a prompt of which three are asked for
    given = drawn(range(4), 64, 2, seeds=[[5, 6], [5, 5], [8, 9], [6, 5]])
    assert given[1][0] == given[1][1] and given[0][0] != given[0][1]
    assert drawn([0], 64, 1, seeds=[[6]])[0] == given[0][1:]


def test_a_token_of_share_zero_is_never_drawn(tokenizer):
    draws = Draws(Sampling(temperature=1.0), [0, 1, 2], [0])
    draws._uniform = lambda: np.array([0.0, 0.5, 1 - 2.0**-53])
    logits = torch.tensor([[3.0, -torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(3, -1)
    assert draws.next(logits)[0].tolist() == [2, 4, 4]
    with pytest.raises(SafeworkError, match="NaN or infinite"):
        draws.next(logits * torch.nan)


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_packed_layers_compute_the_same_and_are_unpacked_afterwards(rows, tokenizer):
    model = model_of("qwen2", tokenizer)  # whose attention has biases
    ids = torch.randint(0, 200, (rows, 3))
    expected, layers = model(ids).logits, [m for m in model.modules() if type(m) is torch.nn.Linear]
    with torch.inference_mode(), packed_linears(model, rows=rows):
        assert all("forward" in vars(layer) for layer in layers) or not torch.backends.mkldnn.is_available()
        inside = model(ids).logits
    assert torch.allclose(inside, expected, atol=1e-4, rtol=1e-4)
    assert not any("forward" in vars(layer) for layer in layers) and torch.equal(model(ids).logits, expected)
    with pytest.raises(RuntimeError, match="stop"), packed_linears(model, rows=rows):
        raise RuntimeError("stop")
    assert not any("forward" in vars(layer) for layer in layers)
    with packed_linears(model.to(torch.bfloat16), rows=rows):
        assert not any("forward" in vars(layer) for layer in layers)


def test_a_model_whose_cache_cannot_be_expanded_falls_back_and_says_so(tokenizer):
    torch.manual_seed(0)
    window = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **SMALL))
    window.config.layer_types = ["full_attention", "sliding_attention", "full_attention"]
    window.config.sliding_window = 8
    with pytest.warns(UserWarning, match="prompt sharing is off in generation"):
        engine = HFEngine(window, tokenizer)
    assert not engine._share
    learned = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert HFEngine(learned, tokenizer)._share  # learned positions are given, so they can be shared
    assert unshareable(learned) is None


def test_common_prefix_leaves_each_prompt_a_token():
    assert common_prefix([(1, 2, 3), (1, 2, 3), (1, 2, 3, 4)]) == 2
    assert common_prefix([(1, 2, 9, 4), (1, 2, 3, 4), (1, 2, 5, 5)]) == 2
    assert common_prefix([(7,)]) == 0 and common_prefix([(1, 2), (3, 4)]) == 0


def test_passes_are_of_like_length_and_bounded():
    lengths = [100, 99, 80, 70, 40, 39, 5]
    assert _passes(range(7), lengths) == [[0, 1, 2], [3], [4, 5], [6]]
    assert max(map(len, _passes(range(100), [1000] * 100))) == 8
