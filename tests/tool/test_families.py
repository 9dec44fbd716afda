"""Every family of language models that the documentation names: saving, loading, generating, training's log-probabilities."""

from __future__ import annotations

import random
import re
import warnings
from pathlib import Path

import pytest
import torch

from safework_cli.engines.hf.decode import unshareable
from safework_cli.engines.hf.engine import HFEngine
from safework_cli.engines.protocol import Sampling
from safework_cli.models.load import load_model, load_tokenizer, save_model
from tiny_families import FAMILIES, MIXTURES, tiny_of

ACTING = {
    "do_sample": True, "temperature": 0.3, "top_k": 2, "min_p": 0.5, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "max_length": 3,
    "suppress_tokens": [70, 71, 72], "forced_eos_token_id": 9, "stop_strings": ["a"], "num_beams": 2, "bad_words_ids": [[80]],
    "sequence_bias": {(90,): 50.0}, "begin_suppress_tokens": list(range(40)), "renormalize_logits": True, "length_penalty": 2.0,
}  # fmt: skip
"""Settings of a generation_config.json that would make another policy of the model."""


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return load_tokenizer(tiny_model)


def prompts():
    drawn = random.Random(0)
    head = [drawn.randrange(10, 250) for _ in range(20)]
    return [head + [drawn.randrange(10, 250) for _ in range(n)] for n in (1, 3, 14, 40)]


def engine_of(model, tokenizer, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where prompts cannot be shared
        return HFEngine(model, tokenizer, **more)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_folder_loads_to_equal_logits(name, tokenizer, tmp_path):
    model = tiny_of(name, tokenizer)
    save_model(model, tokenizer, tmp_path / name)
    ids = torch.randint(0, 250, (2, 24))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, load_model(tmp_path / name, dtype="float32")(ids).logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_both_paths_draw_the_same_whatever_the_generation_config_says(name, tokenizer):
    model = tiny_of(name, tokenizer)
    for sampling in (Sampling(max_tokens=24), Sampling(max_tokens=24, temperature=0.8, seed=3)):
        found = []
        for share, settings in ((True, {}), (False, {}), (False, ACTING), (True, ACTING)):
            for key, value in settings.items():
                setattr(model.generation_config, key, value)
            found.append(engine_of(model, tokenizer, share_prompts=share).generate_ids(prompts(), sampling, 2))
            model.generation_config = type(model.generation_config)(eos_token_id=model.generation_config.eos_token_id)
        for other in found[1:]:
            for ours, theirs in zip((c for g in found[0] for c in g), (c for g in other for c in g), strict=True):
                assert ours.token_ids == theirs.token_ids and ours.finish_reason == theirs.finish_reason
                assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
    for group in found[0]:
        for c in group:  # and their log-probabilities are those of one plain pass
            with torch.no_grad():
                logits_TV = model(torch.tensor([c.prompt_ids + c.token_ids])).logits[0, len(c.prompt_ids) - 1 : -1].float()
            expected = logits_TV.log_softmax(-1).gather(1, torch.tensor(c.token_ids)[:, None])[:, 0].tolist()
            assert c.logprobs == pytest.approx(expected, abs=1e-3)


def test_the_table_of_families_is_that_of_the_tests(tokenizer):
    """docs/models.md, and every family's way of generating."""
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)`(?: \\\*)? \| (yes|–) \| (yes|no) \|$", page, re.MULTILINE)
    shared = {name: unshareable(tiny_of(name, tokenizer)) is None for name in FAMILIES}
    assert rows == [(name, "yes" if name in MIXTURES else "–", "yes" if shared[name] else "no") for name in FAMILIES]
