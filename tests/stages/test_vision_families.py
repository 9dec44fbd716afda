"""Every vision-language family: log-probabilities of generation, training and judging are those of a plain forward pass."""

from __future__ import annotations

from collections.abc import Collection

import pytest
import torch

import tiny_vision
from exactness import PATHS, Model, image, row, without_padding
from safework_cli.core.launch.world import World
from safework_cli.core.settings import LaunchSettings
from safework_cli.models.load import load_model, load_tokenizer
from safework_cli.models.processors import load_processor
from safework_cli.training.towers import towers_in_every_pass

PADDED = {"gemma3"}
"""Families whose rows do not follow each other without padding: tokens of one image see each other."""
DDP = {"launch": LaunchSettings(strategy="ddp", processes=2), "world": World(0, 2, 0)}


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


def trained_by(family, vision_of_row: int) -> dict[str, bool]:
    """Parameter → whether its gradient is other than 0, of those that a pass over one of ``exactness.ROWS`` gives a gradient."""
    prompt = family.prompts()[vision_of_row]
    ids_1T = torch.tensor([prompt.ids])
    family.model.train().zero_grad(set_to_none=True)
    output = family.model(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T), **(prompt.vision or {}))
    output.logits.float().log_softmax(-1)[0, -1, 5].backward()
    return {name: bool(p.grad.any()) for name, p in family.model.named_parameters() if p.grad is not None}


def waiting(family, got: Collection[str]) -> set[str]:
    """What is trained and is not among the parameters that got a gradient: DDP ends with an error for it."""
    return {name for name, parameter in family.model.named_parameters() if parameter.requires_grad} - set(got)


@pytest.fixture
def thawed(family):
    """The family, whose parameters are trained again afterwards."""
    yield family
    family.model.requires_grad_(True)


def test_on_several_processes_a_pass_without_images_trains_the_same_parameters(thawed):
    with_images, without = trained_by(thawed, 0), trained_by(thawed, 1)
    tower = with_images.keys() - without.keys()
    assert any(with_images[name] for name in tower)
    before = thawed.plain(thawed.prompts()[1].ids, None)
    with towers_in_every_pass([thawed.model], thawed.processor, images=True, **DDP):
        assert torch.equal(thawed.plain(thawed.prompts()[1].ids, None), before)
        empty = trained_by(thawed, 1)
        assert not waiting(thawed, empty)
        assert trained_by(thawed, 0) == with_images
    assert empty.keys() == with_images.keys() and not any(empty[name] for name in tower)
    assert trained_by(thawed, 1).keys() == without.keys(), "only inside"


def test_on_several_processes_rows_without_images_leave_nothing_waiting_for_a_gradient(thawed):
    without = trained_by(thawed, 1)
    assert waiting(thawed, without)
    with towers_in_every_pass([thawed.model], thawed.processor, images=False, **DDP):
        assert not waiting(thawed, without)
        assert trained_by(thawed, 1) == without
