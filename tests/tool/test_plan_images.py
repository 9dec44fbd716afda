"""What images add to a plan: as many tokens as the processors write, the vision tower's patches, and their memory and time."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import tiny_processors
import tiny_vision
from exactness import image, row
from safework_cli.core.plan.device import Device
from safework_cli.core.plan.duration import step_flops
from safework_cli.core.plan.images import ImageCost
from safework_cli.core.plan.memory import memory_of
from safework_cli.core.settings import LaunchSettings
from safework_cli.core.stage import Inputs
from safework_cli.data.row import write_rows
from safework_cli.models.load import load_tokenizer, stop_token_ids
from safework_cli.models.pixels import PixelBounds
from safework_cli.models.processors import load_processor, prompt_ids, repeated_token
from safework_rl.m3.config import M3Config
from safework_rl.m3.stage import stage as m3_stage
from safework_sft.config import SftConfig
from safework_sft.encode import encode_rows
from safework_sft.stage import stage as sft_stage

SIZES = [(64, 48), (200, 20), (30, 120), (333, 217), (57, 57), (600, 400), (448, 448)]
EXACT = {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "llava", "gemma3", "mistral3"}


@pytest.fixture(scope="module")
def folder_of(tiny_model, tmp_path_factory):
    home = tmp_path_factory.mktemp("families")
    return lambda name: home / name if (home / name).exists() else tiny_vision.create(name, tiny_model, home / name)


def written(processor, size: tuple[int, int]) -> int:
    """Placeholder tokens that a processor writes for an image."""
    drawn = image(*size, 1)
    asked = processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}], tokenize=False)
    own = processor.tokenizer.convert_tokens_to_ids(repeated_token(processor))
    return prompt_ids(processor, asked, [drawn]).count(own)


@pytest.mark.parametrize("name", tiny_processors.FAMILIES)
def test_an_image_has_as_many_tokens_as_its_processor_writes(folder_of, name):
    processor, cost = load_processor(folder_of(name)), ImageCost.of(folder_of(name))
    planned, found = [cost.tokens(*size) for size in SIZES], [written(processor, size) for size in SIZES]
    if name in EXACT:
        assert planned == found
    else:  # which grid of tiles is taken, and what is cut off again
        assert 0.6 <= sum(planned) / sum(found) <= 1.4, (planned, found)


BOUNDS = [("qwen2_5_vl", {"max_pixels": 50_000}), ("internvl", {"max_tiles": 2}), ("mistral3", {"max_pixels": 4_000})]


@pytest.mark.parametrize(("name", "bounds"), BOUNDS)
def test_bounds_of_pixels_count(folder_of, name, bounds):
    bounded = load_processor(folder_of(name), pixels=PixelBounds(**bounds))
    cost = ImageCost.of(folder_of(name), bounds)
    assert [cost.tokens(*size) for size in SIZES] == [written(bounded, size) for size in SIZES]
    assert sum(cost.tokens(*size) for size in SIZES) < sum(ImageCost.of(folder_of(name)).tokens(*size) for size in SIZES)


def test_an_image_of_a_family_that_is_not_known_and_states_no_size_counts_by_its_own(tmp_path):
    tower = {"patch_size": 16, "hidden_size": 32, "depth": 2}
    written = {"model_type": "other", "text_config": {"hidden_size": 64}, "vision_config": tower}
    (tmp_path / "config.json").write_text(json.dumps(written))
    cost = ImageCost.of(tmp_path)
    assert cost is not None and cost.patches(1600, 800) > 4 * cost.patches(400, 200) > 0
    assert 0.8 < cost.patches(640, 480) / (40 * 30) < 1.25


def test_a_text_model_has_no_tower(tiny_model):
    assert ImageCost.of(tiny_model) is None


@pytest.fixture
def planned(folder_of, store, tmp_path):
    """Plans a stage on six rows with an image each, or on the same rows without."""
    asked = [row(n, "<image>Which is it?", f"It is {n}.", image(333, 217, n)) for n in range(6)]
    asked = [replace(one, answer=str(n), meta={"answer_type": "exact"}) for n, one in enumerate(asked)]

    def plan(stage, config, *, images: bool = True):
        folder = tmp_path / f"rows-{images}"
        if not folder.exists():
            folder.mkdir()
            bare = [row(n, "Which is it?", f"It is {n}.") for n in range(6)]
            bare = [replace(one, answer=other.answer, meta=other.meta) for one, other in zip(bare, asked, strict=True)]
            write_rows(folder / "rows.parquet", asked if images else bare)
        model = store.resolve(str(folder_of("qwen2_5_vl")), ("model",))
        made = stage.plan(config, Inputs({"model": model, "data": store.resolve(str(folder), ("dataset",))}))
        assert not made.refusals, made.refusals
        return made

    return plan, asked


def test_sft_plans_the_tokens_that_it_trains_on(planned, folder_of):
    plan, rows = planned
    tokenizer, processor = load_tokenizer(folder_of("qwen2_5_vl")), load_processor(folder_of("qwen2_5_vl"))
    encoded = encode_rows(rows, tokenizer, stop_token_ids(tokenizer), 4096, processor=processor)
    own = sum(ids.count(tokenizer.convert_tokens_to_ids(repeated_token(processor))) for ids in encoded.input_ids)
    config = SftConfig(max_steps=1, per_device_train_batch_size=6, gradient_accumulation_steps=1, max_length=4096)
    assert own == 6 * 96 and not encoded.dropped
    assert plan(sft_stage, config).tokens - plan(sft_stage, config, images=False).tokens == pytest.approx(own, abs=6 * 8)


def test_the_tower_takes_time_and_memory_and_more_where_it_is_trained(planned):
    plan, _ = planned
    settings = {"max_steps": 1, "per_device_train_batch_size": 6, "gradient_accumulation_steps": 1, "max_length": 4096}
    frozen, trained = (plan(sft_stage, SftConfig(**settings, train_vision=each)).work for each in (False, True))
    blind = replace(frozen, images=None)
    patches = 6 * 4 * 96  # of 333 × 217 pixels: 96 tokens of four patches each
    assert frozen.images.pass_patches == frozen.images.step_patches == patches
    tower = 2 * patches * frozen.images.tower.layer * frozen.images.tower.layers
    assert step_flops(frozen) - step_flops(blind) == tower and step_flops(trained) - step_flops(blind) == 3 * tower
    device = Device("cpu", "a CPU", None, bf16=False)
    sizes = [memory_of(work, LaunchSettings(), device).activations for work in (blind, frozen, trained)]
    assert sizes[0] + 4 * patches * frozen.images.tower.inputs < sizes[1] < sizes[2]


def test_rl_plans_its_prompts_with_their_images(planned):
    plan, _ = planned
    config = M3Config.model_validate(
        {
            "phases": [{"tasks": ["general"], "share": 1.0}], "rewards": {"general": {"correctness": 1.0}}, "max_steps": 1,
            "num_generations": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "preflight": 0,
        }
    )  # fmt: skip
    with_images, without = (plan(m3_stage, config, images=images).work for images in (True, False))
    assert with_images.sampling.prompt - without.sampling.prompt == pytest.approx(96, abs=8)  # the tag itself is a few tokens of text
    assert without.images is None and with_images.images.pass_patches == 2 * 4 * 96 and not with_images.images.trained
    assert plan(m3_stage, config.model_copy(update={"train_vision": True})).work.images.trained
