"""Processors of eleven vision-language families: by Pillow, without the video part, saved as the files that they came from."""

from __future__ import annotations

import filecmp
import io
import json
import os
import subprocess
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PIL

import tiny_processors
from safework_cli.core.errors import ConfigError, InputError
from safework_cli.data.row import Image
from safework_cli.models.folder import read_config
from safework_cli.models.pixels import PixelBounds
from safework_cli.models.processors import copy_processor_files, encode_images, load_processor, prompt_ids, repeated_token

SIZES = [[(64, 48)], [(1, 1)], [(200, 2)], [(30, 500)], [(333, 217)], [(64, 48), (100, 20)], [(57, 57), (28, 28), (300, 200)]]


@pytest.fixture(scope="module")
def folder_of(tiny_model, tmp_path_factory):
    home = tmp_path_factory.mktemp("families")
    return lambda name: home / name if (home / name).exists() else tiny_processors.create(name, tiny_model, home / name)


def noise(size: tuple[int, int], seed: int = 0) -> PIL.Image:
    return PIL.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def stored(drawn: PIL.Image, path: str = "drawn.png") -> Image:
    file = io.BytesIO()
    drawn.save(file, "PNG")
    return Image(bytes=file.getvalue(), path=path)


def asked(processor, images: int, text: str = "\nWhat is it?") -> str:
    parts = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}]
    return processor.apply_chat_template([{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize("name", tiny_processors.FAMILIES)
def test_the_ids_of_prompts_are_known_before_an_image_is_decoded(folder_of, name, monkeypatch):
    processor = load_processor(folder_of(name))
    encoded = {}
    for number, sizes in enumerate(SIZES):
        images = [stored(noise(size)) for size in sizes]
        ids, vision = encode_images(processor, asked(processor, len(sizes)), images)
        assert all(torch.isfinite(tensor.float()).all() for tensor in vision.values()) and "pixel_values" in vision
        encoded[number] = images, ids
        token = processor.tokenizer.convert_tokens_to_ids(repeated_token(processor))
        assert ids.count(token) >= len(sizes)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    for images, ids in encoded.values():
        assert prompt_ids(processor, asked(processor, len(images)), images) == ids
    with pytest.raises(InputError, match="2 places for 1 images"):
        prompt_ids(processor, asked(processor, 2), images[:1])


@pytest.mark.parametrize("name", tiny_processors.FAMILIES)
def test_a_saved_processor_is_its_source_file_by_file(folder_of, name, tmp_path):
    source = folder_of(name)
    (tmp_path / "chat_template.jinja").write_text("another model's")
    load_processor(source).save_pretrained(str(tmp_path))
    names = {file.name for file in source.iterdir()} - {"config.json"}
    assert {file.name for file in tmp_path.iterdir()} == names
    assert set(filecmp.cmpfiles(source, tmp_path, names, shallow=False)[0]) == names


@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl"])  # with chat_template.json, and with chat_template.jinja
def test_a_template_that_a_stage_set_is_saved(folder_of, name, tmp_path):
    processor = load_processor(folder_of(name))
    processor.chat_template = "{{ 'mine' }}" + processor.chat_template
    processor.save_pretrained(str(tmp_path))
    (tmp_path / "config.json").write_bytes((folder_of(name) / "config.json").read_bytes())
    assert load_processor(tmp_path).chat_template.startswith("{{ 'mine' }}")


def test_a_text_run_leaves_the_processor_of_a_vision_model_as_it_was(folder_of, tmp_path):
    source = folder_of("qwen2_5_vl")
    processor = load_processor(source)
    processor.tokenizer.save_pretrained(str(tmp_path))  # what a stage for text saves: the tokenizer with its own template
    assert (tmp_path / "chat_template.jinja").exists()
    copy_processor_files(source, tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == {f.name for f in source.iterdir()} - {"config.json"}


def test_pillow_is_enough(folder_of):
    """In a process where neither torchvision nor num2words can be imported."""
    script = (
        "import sys; sys.modules['torchvision'] = sys.modules['num2words'] = None\n"
        "from pathlib import Path\nfrom safework_cli.models.processors import load_processor\n"
        "print(*(type(load_processor(Path(folder)).image_processor).__name__ for folder in sys.argv[1:]))"
    )
    folders = [str(folder_of(name)) for name in tiny_processors.FAMILIES]
    done = subprocess.run([sys.executable, "-c", script, *folders], capture_output=True, text=True, check=False)
    kinds = done.stdout.split()
    assert len(kinds) == len(folders) and all(kind.endswith("Pil") for kind in kinds), done.stderr


def test_a_torchvision_built_for_another_torch_is_ignored(folder_of, tmp_path):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    script = (
        "import sys\nfrom pathlib import Path\nimport safework_cli\n"
        "from transformers import AutoModelForCausalLM, ProcessorMixin, Trainer\n"
        "from safework_cli.models.processors import load_processor\nfrom safework_cli.cli.doctor import _images\n"
        "print(type(load_processor(Path(sys.argv[1])).image_processor).__name__)\n"
        "print([(f.level, f.text, f.do) for f in _images()])"
    )
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder_of("qwen2_5_vl"))], env=os.environ | {"PYTHONPATH": paths}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.stdout.startswith("Qwen2VLImageProcessorPil\n"), done.stderr
    assert "('note', " in done.stdout and "nms does not exist" in done.stdout and "pip uninstall torchvision" in done.stdout


@pytest.fixture(scope="module")
def compared(folder_of):
    """Family → greatest difference in grey levels between Pillow and torchvision, and whether the shapes are equal. One process for all:
    the operators that a CUDA build of torchvision lacks next to a CPU torch are declared before anything imports it."""
    try:
        version("torchvision")
    except PackageNotFoundError:
        warnings.warn("torchvision is not installed: images resized by it were not compared with Pillow's", stacklevel=1)
        pytest.skip("needs torchvision in an environment of its own")
    folders = [str(folder_of(name)) for name in tiny_processors.FAMILIES]
    paths = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", COMPARED, *folders], capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": paths}
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(tiny_processors.FAMILIES, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("name", tiny_processors.FAMILIES)
def test_pillow_and_torchvision_differ_by_two_grey_levels_at_most(compared, name):
    assert compared[name]["shapes"] and round(compared[name]["levels"], 3) <= 2.0


COMPARED = """
import json, sys, torch
operators = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):  # nothing here uses them
    try:
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except RuntimeError:
        pass
import numpy as np
from pathlib import Path
from PIL import Image
from safework_cli.models.processors import load_processor
from transformers import AutoImageProcessor
answers = []
for folder in map(Path, sys.argv[1:]):
    processor = load_processor(folder)
    fast, slow = processor.image_processor, AutoImageProcessor.from_pretrained(str(folder), backend="pil")
    assert not type(fast).__name__.endswith("Pil") and type(slow).__name__.endswith("Pil"), (type(fast), type(slow))
    options = processor._merge_kwargs(tokenizer_init_kwargs={}, return_tensors="pt")["images_kwargs"]
    options["do_normalize"] = False  # from 0 to 1: the deviations that channels are divided by differ
    if type(processor).__name__ == "PixtralProcessor":
        options["patch_size"] = processor.patch_size * processor.spatial_merge_size
    draw = np.random.default_rng(0)
    levels, shapes = 0.0, True
    for width, height in [(64, 48), (1, 1), (200, 3), (30, 500), (333, 217), (640, 480), (56, 56), (57, 31), (112, 700)]:
        coarse = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        smooth = coarse.resize((width, height), Image.Resampling.BICUBIC)
        by = [torch.as_tensor(np.asarray(kind([[smooth]], **options)["pixel_values"])) for kind in (fast, slow)]
        shapes &= by[0].shape == by[1].shape
        if shapes:
            levels = max(levels, float((by[0].float() - by[1].float()).abs().max()) * 255)
    answers.append({"levels": levels, "shapes": shapes})
print(json.dumps(answers))
"""


@pytest.mark.parametrize("name", tiny_processors.FAMILIES)
def test_one_red_pixel_is_a_red_image(folder_of, name):
    processor = load_processor(folder_of(name))
    small, large = (
        encode_images(processor, asked(processor, 1), [stored(PIL.new("RGB", size, (255, 0, 0)))])[1]["pixel_values"]
        for size in ((1, 1), (28, 28))
    )
    values = [sorted({round(v, 4) for v in tensor.flatten().tolist()}) for tensor in (small, large)]
    assert values[0] == values[1] or set(values[1]) <= set(values[0])  # with padding, tiles of another number


def test_what_a_processor_refuses_names_the_image(folder_of, monkeypatch):
    processor = load_processor(folder_of("qwen2_5_vl"))
    monkeypatch.setattr(processor.image_processor, "size", {})
    with pytest.raises(InputError, match=r"refuses cat.png \(9 × 7\)"):
        encode_images(processor, asked(processor, 1), [stored(noise((9, 7)), "cat.png")])
    pixtral = load_processor(folder_of("mistral3"))  # which would reduce the strip's height to nothing
    with pytest.raises(InputError, match=r"refuses strip.png \(200 × 1\)"):
        prompt_ids(pixtral, asked(pixtral, 1), [stored(noise((200, 1)), "strip.png")])
    with pytest.raises(InputError, match="'strip.png' is too narrow"):
        encode_images(processor, asked(processor, 1), [stored(noise((400, 1)), "strip.png")])


BOUNDS = [
    ("qwen2_5_vl", {"max_pixels": 50_000}, True), ("qwen3_vl", {"max_pixels": 50_000}, True), ("internvl", {"max_tiles": 2}, True),
    ("idefics3", {"max_tiles": 4}, True), ("smolvlm", {"max_tiles": 1}, True), ("mistral3", {"max_pixels": 4_000}, True),
    ("qwen2_vl", {"min_pixels": 60_000, "max_pixels": 70_000}, False),
]  # fmt: skip


@pytest.mark.parametrize(("name", "bounds", "fewer"), BOUNDS)
def test_bounds_change_the_number_of_tokens_and_are_saved(folder_of, name, bounds, fewer, tmp_path):
    plain, bounded = load_processor(folder_of(name)), load_processor(folder_of(name), pixels=PixelBounds(**bounds))
    image = [stored(noise((600, 400) if fewer else (60, 40)))]
    before = len(encode_images(plain, asked(plain, 1), image)[0])
    ids, vision = encode_images(bounded, asked(bounded, 1), image)
    assert (len(ids) < before) is fewer and len(ids) != before
    assert prompt_ids(bounded, asked(bounded, 1), image) == ids
    if name == "qwen2_5_vl":
        assert vision["pixel_values"].shape[0] * 14 * 14 <= 50_000
    bounded.save_pretrained(str(tmp_path))
    (tmp_path / "config.json").write_bytes((folder_of(name) / "config.json").read_bytes())
    again = load_processor(tmp_path)
    assert encode_images(again, asked(again, 1), image)[0] == ids


def test_bounds_that_change_nothing_are_refused(folder_of, tiny_model):
    with pytest.raises(ConfigError, match="reads text only"):
        load_processor(tiny_model, pixels=PixelBounds(max_pixels=9_999))
    with pytest.raises(ConfigError, match="max_pixels has no effect"):
        load_processor(folder_of("gemma3"), pixels=PixelBounds(max_pixels=9_999))
    with pytest.raises(ConfigError, match="cross the processor's own"):
        load_processor(folder_of("qwen2_5_vl"), pixels=PixelBounds(min_pixels=2**20))
    with pytest.raises(ValueError, match="min_pixels=2000 is above max_pixels=1000"):
        PixelBounds(min_pixels=2000, max_pixels=1000)


def changed(source: Path, target: Path, **values) -> Path:
    copy_processor_files(source, target)
    config = json.loads((source / "config.json").read_text()) | values
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_the_processor_of_another_model_is_refused(folder_of, tmp_path):
    source = folder_of("qwen2_5_vl")
    with pytest.raises(InputError, match="belongs to another model") as refused:
        load_processor(changed(source, tmp_path / "token", image_token_id=7))
    assert "looks for token 7" in refused.value.why
    with pytest.raises(InputError, match="belongs to another model") as refused:
        load_processor(changed(source, tmp_path / "patch", vision_config={"patch_size": 16}))
    assert "patches of 14 pixels" in refused.value.why


def test_a_folder_without_a_processor_is_refused(folder_of, tmp_path):
    target = changed(folder_of("qwen2_5_vl"), tmp_path / "none")
    (target / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match="its processor cannot be loaded") as refused:
        load_processor(target)
    assert "torchvision" not in str(refused.value)


def test_internvl_with_code_of_its_own_names_the_port(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "internvl_chat", "auto_map": {"AutoConfig": "x.C"}}))
    for trusted in (False, True):
        with pytest.raises(InputError, match="code of its own") as refused:
            read_config(tmp_path, trust_remote_code=trusted)
        assert "-hf" in refused.value.do
