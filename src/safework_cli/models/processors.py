"""Processors of vision-language models: loaded without the video part, saved as the files that they came from.

transformers' processors of Qwen-VL, InternVL, LLaVA-OneVision and SmolVLM contain a video processor, which only torchvision provides. No
stage reads videos, so the processors here are subclasses without it: they load with Pillow only. Where torchvision is installed and fits
(see ``safework_cli.core.torchvision``), it resizes the images; the two differ by two grey levels at most.

What such a subclass would save, other programs could not load. A model is therefore saved with the processor's files of its source; only a
chat template or bounds of pixels that a stage set are written into them.
"""

from __future__ import annotations

import inspect
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PROCESSOR_MAPPING, AutoImageProcessor, AutoProcessor, AutoTokenizer, PretrainedConfig, ProcessorMixin
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.models.auto.processing_auto import processor_class_from_name
from transformers.utils import is_torchvision_available

from safework_cli.core.errors import ConfigError, InputError, SafeworkError
from safework_cli.data.images import image_size, open_image
from safework_cli.data.row import Image
from safework_cli.models.folder import first_line, has_vision, read_config, read_json
from safework_cli.models.pixels import PixelBounds, set_bounds

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "image_processor_config.json")
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "tokenizer.model", "spiece.model", "tekken.json",
)  # fmt: skip
_VIDEO = "video_processor"


def load_processor(
    folder: Path, *, trust_remote_code: bool = False, tokenizer: Tokenizer | None = None, pixels: PixelBounds | None = None
) -> ProcessorMixin | None:
    """The processor of a vision-language model, without its video part; None for a model without a vision tower. Loads no weights.

    Args:
        tokenizer: to use in the processor; by default the folder's own.
        pixels: bounds for the size of images, which are saved with the processor; by default its own.

    Raises:
        InputError: the folder has none, it belongs to another model, or a package that it needs is not installed.
        ConfigError: a bound that has no effect on this family's images, or any on a model that reads text only.
    """
    folder = Path(folder)
    config = read_config(folder, trust_remote_code=trust_remote_code)
    if not has_vision(config):
        if pixels is not None and pixels.given:
            raise ConfigError(f"pixels is given, and the model in {folder} reads text only", "", "leave pixels out, or take another model")
        return None
    processor: Any = None
    why = "no file in it names a processor that transformers has"
    try:
        family = _family(folder, config)
        if family is not None:
            processor = _without_video(family, folder, tokenizer)
        elif trust_remote_code:
            processor = AutoProcessor.from_pretrained(str(folder), trust_remote_code=True)
    except (MemoryError, SafeworkError):
        raise
    except Exception as error:  # libraries raise anything on a broken folder
        why = first_line(error)
    if not isinstance(processor, ProcessorMixin):  # where code of its own fails, AutoProcessor returns only a tokenizer
        raise InputError(
            f"the model in {folder} takes images, and its processor cannot be loaded",
            why,
            "compare preprocessor_config.json, processor_config.json and the tokenizer's files with the original model's",
        )
    _refuse_other_models(processor, config, folder)
    if pixels is not None:
        vars(processor)["bounds"] = set_bounds(processor, pixels)
    return processor


def _family(folder: Path, config: PretrainedConfig) -> type[ProcessorMixin] | None:
    """The processor class that a folder's files name, or that its architecture has."""
    kind = None
    for name in (*PROCESSOR_FILES[:3], "tokenizer_config.json"):
        if kind is None and (folder / name).exists() and isinstance(named := read_json(folder / name).get("processor_class"), str):
            kind = processor_class_from_name(named)
    if kind is None and type(config) in PROCESSOR_MAPPING:
        kind = PROCESSOR_MAPPING[type(config)]
    replaced = kind is not None and getattr(kind, "is_dummy", False) and kind.__name__ == "PixtralProcessor"
    return _pixtral_by_pillow() if replaced else kind


def _pixtral_by_pillow() -> type[ProcessorMixin]:
    """Pixtral's processor without torchvision: its module takes one function from the image processor that needs torchvision, and the
    image processor for Pillow has the same function."""
    module = "transformers.models.pixtral"
    sys.modules[f"{module}.image_processing_pixtral"] = import_module(f"{module}.image_processing_pil_pixtral")
    try:
        kind: type[ProcessorMixin] = import_module(f"{module}.processing_pixtral").PixtralProcessor
    finally:
        del sys.modules[f"{module}.image_processing_pixtral"]
    return kind


def _without_video(family: type[ProcessorMixin], folder: Path, tokenizer: Tokenizer | None) -> ProcessorMixin:
    settings, _ = family.get_processor_dict(str(folder))
    takes = inspect.signature(family.__init__).parameters
    parts = {
        "image_processor": AutoImageProcessor.from_pretrained(str(folder), backend="torchvision" if is_torchvision_available() else "pil"),
        "tokenizer": tokenizer if tokenizer is not None else AutoTokenizer.from_pretrained(str(folder)),
    }
    others = {name: value for name, value in settings.items() if name in takes and name not in (*parts, _VIDEO, "kwargs")}
    processor = _stills(family)(**parts, **others, **({_VIDEO: None} if _VIDEO in takes else {}))
    if processor.chat_template is None:
        processor.chat_template = parts["tokenizer"].chat_template
    processor.source, processor.source_template = folder, processor.chat_template
    return processor


def _stills(family: type[ProcessorMixin]) -> type[Any]:
    """A family's processor class for still images: without a video processor, and saved as its source's files."""
    module: Any = import_module(family.__module__)
    if getattr(module, "num2words", 0) is None:  # SmolVLM's writes numbers of video frames with it, and refuses to start without
        module.num2words = _no_videos

    class Stills(family):  # type: ignore[misc, valid-type]
        source: Path
        source_template: Any
        bounds: dict[str, Any] = {}

        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in family.get_attributes() if name != _VIDEO]

        def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
            return ProcessorMixin.apply_chat_template(self, *args, **kwargs)  # SmolVLM's asks its video processor for the frame rate

        def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
            copy_processor_files(self.source, Path(save_directory))
            if self.chat_template != self.source_template:  # a stage's chat_template setting
                _write_template(Path(save_directory), self.chat_template)
            if self.bounds:
                _write_bounds(Path(save_directory), self.bounds)

    Stills.__name__ = Stills.__qualname__ = family.__name__
    return Stills


def _no_videos(*_: Any, **__: Any) -> str:
    raise InputError("a video cannot be read", "stages read still images only", "leave the row out")


def copy_processor_files(source: Path, target: Path) -> None:
    """Makes the files of processor, chat template and tokenizer in ``target`` identical to those in ``source``: copies them, and removes
    others of these names. Programs other than this one then load a trained model as they load the original."""
    target.mkdir(parents=True, exist_ok=True)
    for pattern in (*PROCESSOR_FILES, *TEMPLATE_FILES, *TOKENIZER_FILES):
        for old in target.glob(pattern):
            old.unlink()
        for file in source.glob(pattern):
            copy = target / file.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)


def _write_template(folder: Path, template: str) -> None:
    """Replaces a saved processor's chat template, in whichever of its files the template was."""
    for file in [found for pattern in TEMPLATE_FILES for found in folder.glob(pattern)]:
        file.unlink()
    for name in ("processor_config.json", "tokenizer_config.json"):
        file = folder / name
        settings = read_json(file) if file.exists() else {}
        if settings.pop("chat_template", None) is not None:
            file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _write_bounds(folder: Path, changed: dict[str, Any]) -> None:
    """Writes changed settings of a saved image processor; None takes a key out."""
    whole = folder / "processor_config.json"
    nested = read_json(whole) if whole.exists() else {}
    file = whole if isinstance(nested.get("image_processor"), dict) else folder / "preprocessor_config.json"
    settings = nested if file == whole else read_json(file)
    part = settings["image_processor"] if file == whole else settings
    for name, value in changed.items():
        part.pop(name, None)
        if value is not None:
            part[name] = value
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _refuse_other_models(processor: Any, config: PretrainedConfig, folder: Path) -> None:
    """Refuses the processor of another model: its image token, or its patches, are not those that the model was built for."""
    expected = next(
        (value for name in ("image_token_id", "image_token_index") if isinstance(value := getattr(config, name, None), int)), None
    )
    token = repeated_token(processor)
    own = processor.tokenizer.convert_tokens_to_ids(token) if token else None
    if expected is not None and own is not None and own != expected:
        raise InputError(
            f"the processor in {folder} belongs to another model",
            f"it writes {token!r}, token {own}, where an image is, and the model looks for token {expected}",
            "take the processor's and the tokenizer's files of the model that the weights came from",
        )
    patch, of_model = getattr(processor.image_processor, "patch_size", None), getattr(config.vision_config, "patch_size", None)
    if isinstance(patch, int) and isinstance(of_model, int) and patch != of_model:
        raise InputError(
            f"the processor in {folder} belongs to another model",
            f"it cuts images into patches of {patch} pixels, and the model's vision tower takes {of_model}",
            "take preprocessor_config.json of the model that the weights came from",
        )


def repeated_token(processor: Any) -> str:
    """The token that stands for one feature of an image in the ids of a prompt; empty where a family has none. Gemma 3's templates write
    another one."""
    return str(getattr(processor.tokenizer, "image_token", None) or getattr(processor, "image_token", None) or "")


def encode_images(processor: Any, text: str, images: Sequence[Image]) -> tuple[list[int], dict[str, torch.Tensor]]:
    """A rendered prompt and its images as token ids and the input of the vision tower.

    Args:
        text: as the chat template renders it, with one placeholder for each image.

    Raises:
        InputError: an image cannot be read, or the processor refuses it. The error names the image.
    """
    opened = [open_image(image) for image in images]
    with _named(images, [image.size for image in opened]):
        made = processor(text=[text], images=[opened], return_tensors="pt", add_special_tokens=False)
    ids = made.pop("input_ids")[0].tolist()
    made.pop("attention_mask", None)
    return ids, {name: value for name, value in made.items() if isinstance(value, torch.Tensor)}


class Headers:
    """A model's processor, given where encoded images are not needed: prompts get the ids that they have with their images, by the headers
    of the image files, and the vision tower gets nothing. See ``prompt_ids``."""

    def __init__(self, processor: Any):
        self.processor = processor


def prompt_ids(processor: Any, text: str, images: Sequence[Image]) -> list[int]:
    """The ids that ``encode_images`` would return, from the headers of the image files: nothing is decoded.

    For a family that is not known here, an empty image of each size is encoded; where it has no placeholder token, the images are.

    Raises:
        InputError: as ``encode_images``, as far as headers show it; or the text has not one placeholder for each image.
    """
    token, marker = repeated_token(processor), str(getattr(processor, "image_token", None) or "")
    if not (token and marker):
        return encode_images(processor, text, images)[0]
    if text.count(marker) != len(images):
        raise InputError(f"the prompt has {text.count(marker)} places for {len(images)} images", "each image has one", "correct the row")
    sizes = [image_size(image) for image in images]
    with _named(images, sizes):
        texts = iter(_image_texts(processor, sizes))
    whole = "".join(part if number == 0 else next(texts) + part for number, part in enumerate(text.split(marker)))
    run = re.compile(f"(?:{re.escape(token)})+")  # of a token that is one id, whatever is around it
    counts = (len(found) // len(token) for found in run.findall(whole))
    short, own = run.sub(lambda _: token, whole), processor.tokenizer.convert_tokens_to_ids(token)
    ids = processor.tokenizer(short, add_special_tokens=False)["input_ids"]
    return [each for one in ids for each in ([one] * next(counts) if one == own else [one])]


@contextmanager
def _named(images: Sequence[Image], sizes: Sequence[tuple[int, int]]) -> Iterator[None]:
    """Inside, what a processor raises (of a size, or of a number of images) becomes an InputError that names the images."""
    try:
        yield
    except (MemoryError, SafeworkError):
        raise
    except Exception as error:
        shown = ", ".join(f"{image['path'] or 'unnamed'} ({w} × {h})" for image, (w, h) in zip(images, sizes, strict=True))
        raise InputError(f"the model's processor refuses {shown}", first_line(error), "resize the image, or leave its row out") from None


def _image_texts(processor: Any, sizes: Sequence[tuple[int, int]]) -> list[str]:
    """What the processor writes in the place of each image of (width, height)."""
    options = processor._merge_kwargs(tokenizer_init_kwargs={})["images_kwargs"]
    inputs = _INPUTS.get(_base_name(processor), _of_empty_images)(processor, sizes, options)
    return [processor.replace_image_token(inputs, image_idx=number, **options) for number in range(len(sizes))]


def _base_name(processor: Any) -> str:
    return type(processor).__name__


Inputs = dict[str, Any]


def _qwen(processor: Any, sizes: Sequence[tuple[int, int]], options: dict[str, Any]) -> Inputs:
    patches = [processor.image_processor.get_number_of_image_patches(height, width, options) for width, height in sizes]
    return {"image_grid_thw": [np.array([1, count, 1]) for count in patches]}


def _internvl(processor: Any, sizes: Sequence[tuple[int, int]], options: dict[str, Any]) -> Inputs:
    return {"num_patches": [processor.image_processor.get_number_of_image_patches(height, width, options) for width, height in sizes]}


def _idefics(processor: Any, sizes: Sequence[tuple[int, int]], options: dict[str, Any]) -> Inputs:
    grids = [processor.image_processor.get_number_of_image_patches(height, width, options) for width, height in sizes]
    return {"rows": [[rows for _, rows, _ in grids]], "cols": [[columns for _, _, columns in grids]]}


def _llava_tiles(processor: Any, sizes: Sequence[tuple[int, int]], options: dict[str, Any]) -> Inputs:
    size = processor.image_processor.size
    edge = size.get("shortest_edge") or min(size["height"], size["width"])
    shapes = [(height, width) for width, height in sizes]
    return {"image_sizes": shapes, "pixel_values": np.empty((1, 1, 3, edge, edge)), "batch_num_images": [len(sizes)]}


def _llava(processor: Any, sizes: Sequence[tuple[int, int]], options: dict[str, Any]) -> Inputs:
    images = processor.image_processor
    size = images.crop_size if images.do_center_crop else images.size
    if not (size.get("height") and size.get("width")):
        return _of_empty_images(processor, sizes, options)
    return {"pixel_values": [np.empty((3, size["height"], size["width"]))] * len(sizes)}


def _of_empty_images(processor: Any, sizes: Sequence[tuple[int, int]], options: dict[str, Any]) -> Inputs:
    from PIL import Image as PIL

    return processor.image_processor([[PIL.new("RGB", size) for size in sizes]], **options)


def _gemma(processor: Any, sizes: Sequence[tuple[int, int]], options: dict[str, Any]) -> Inputs:
    if options.get("do_pan_and_scan"):
        return _of_empty_images(processor, sizes, options)
    return {"num_crops": [0] * len(sizes)}


def _pixtral(processor: Any, sizes: Sequence[tuple[int, int]], options: dict[str, Any]) -> Inputs:
    from transformers.models.pixtral.image_processing_pil_pixtral import get_resize_output_image_size

    patch, longest = processor.patch_size * processor.spatial_merge_size, processor.image_processor.size["longest_edge"]
    resized = [
        get_resize_output_image_size(np.empty((3, height, width), np.bool_), (longest, longest), (patch, patch), "channels_first")
        for width, height in sizes
    ]
    return {"image_sizes": resized}


_INPUTS: dict[str, Callable[[Any, Sequence[tuple[int, int]], dict[str, Any]], Inputs]] = {
    "Qwen2VLProcessor": _qwen,
    "Qwen2_5_VLProcessor": _qwen,
    "Qwen3VLProcessor": _qwen,
    "InternVLProcessor": _internvl,
    "Idefics3Processor": _idefics,
    "SmolVLMProcessor": _idefics,
    "LlavaProcessor": _llava,
    "LlavaNextProcessor": _llava_tiles,
    "LlavaOnevisionProcessor": _llava_tiles,
    "Gemma3Processor": _gemma,
    "PixtralProcessor": _pixtral,
}
"""By class: what an image processor says of images of given sizes, as far as the processor's text depends on it."""
