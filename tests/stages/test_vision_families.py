"""Every vision-language family: log-probabilities of generation, training and judging are those of a plain forward pass."""

from __future__ import annotations

import pytest
import torch

import tiny_vision
from exactness import PATHS, Model, image, row, without_padding
from safework_cli.models.load import load_model, load_tokenizer
from safework_cli.models.processors import load_processor

PADDED = {"gemma3"}
"""Families whose rows do not follow each other without padding: tokens of one image see each other."""


@pytest.fixture(scope="module", params=tiny_vision.FAMILIES)
def family(request, tmp_path_factory, tiny_model):
    folder = tiny_vision.create(request.param, tiny_model, tmp_path_factory.mktemp(request.param))
    made = Model(load_model(folder, dtype="float32"), load_tokenizer(folder), load_processor(folder))
    made.name = request.param
    return made


@pytest.mark.parametrize("path", PATHS)
def test_log_probabilities_are_those_of_a_plain_pass(family, path):
    error = PATHS[path](family)
    if path == "sft without padding":
        assert (error is None) is (family.name in PADDED)
    if error is None:
        pytest.skip("its attention does not keep rows apart, or its prompts are not shared in training")
    assert error <= 1e-5


def test_rows_without_padding_do_not_share_the_images_that_they_begin_with(family, monkeypatch):
    """Two rows whose tokens are the same up to the reply, images included: only what is before the image is computed once."""
    monkeypatch.setattr(family, "rows", [row(n, "<image>\nWhat?", "A gradient.", image(56, 56, 3 + 2 * n)) for n in range(2)])
    error = without_padding(family)
    assert (error is None) is (family.name in PADDED)
    assert error is None or error <= 1e-5
    ids, vision = family.prompts()[0]
    other, own = (family.plain(ids, each) for each in (family.prompts()[1].vision, vision))
    assert (other[-1] - own[-1]).abs().max() > 1e-4, "the two images do not matter"


def test_the_image_matters(family):
    ids, vision = family.prompts()[0]
    other = {name: -tensor if name == "pixel_values" else tensor for name, tensor in vision.items()}
    assert (family.plain(ids, vision)[-1] - family.plain(ids, other)[-1]).abs().max() > 1e-3
    assert torch.equal(family.plain(ids, vision), family.plain(ids, vision))
