"""Every vision-language family: log-probabilities of generation, training and judging are those of a plain forward pass."""

from __future__ import annotations

import pytest
import torch

import tiny_vision
from exactness import PATHS, Model
from safework_cli.models.load import load_model, load_tokenizer
from safework_cli.models.processors import load_processor


@pytest.fixture(scope="module", params=tiny_vision.FAMILIES)
def family(request, tmp_path_factory, tiny_model):
    folder = tiny_vision.create(request.param, tiny_model, tmp_path_factory.mktemp(request.param))
    return Model(load_model(folder, dtype="float32"), load_tokenizer(folder), load_processor(folder))


@pytest.mark.parametrize("path", PATHS)
def test_log_probabilities_are_those_of_a_plain_pass(family, path):
    error = PATHS[path](family)
    if error is None:
        pytest.skip("its prompts are not shared in training")
    assert error <= 1e-5


def test_the_image_matters(family):
    ids, vision = family.prompts()[0]
    other = {name: -tensor if name == "pixel_values" else tensor for name, tensor in vision.items()}
    assert (family.plain(ids, vision)[-1] - family.plain(ids, other)[-1]).abs().max() > 1e-3
    assert torch.equal(family.plain(ids, vision), family.plain(ids, vision))
