"""Chat templates by name: those that TRL ships, and their training variants. Torch-free until a tokenizer is given one.

TRL keeps the stock templates of many families and, for most, a variant that keeps a reply's thought in the history and marks what an
assistant says (`trl/chat_templates/README.md`). A stage that is given one trains with it and saves it with the model, so that the next
stage, the evaluation and a server render what was trained on.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from safework_cli.core.errors import InputError, nearest

OWN, TRAINING = "model", "training"
_SUFFIX = "_training"
_GENERATION = re.compile(r"(\{%-?\s*)(end)?generation(\s*-?%\})")


@cache
def template_folder() -> Path:
    spec = find_spec("trl")
    assert spec is not None and spec.origin  # a core dependency
    return Path(spec.origin).parent / "chat_templates"


@cache
def template_names() -> list[str]:
    """The names that TRL ships, such as "qwen3" and "qwen3_training"."""
    return sorted(file.stem for file in template_folder().glob("*.jinja"))


def named_template(name: str) -> str:
    """The text of a template.

    TRL marks assistant text with ``{% generation %}``, which only transformers understands. A saved template must also work in servers
    with a plain Jinja, so the marks become blocks without an effect.
    """
    text = (template_folder() / f"{name}.jinja").read_text(encoding="utf-8")
    return _GENERATION.sub(lambda match: f"{match[1]}{'endif' if match[2] else 'if true'}{match[3]}", text)


def _known(value: str) -> str:
    if value not in (OWN, TRAINING, *template_names()):
        raise ValueError(f"unknown chat template '{value}'{nearest(value, template_names())}; one of {', '.join(template_names())}")
    return value


TemplateName = Annotated[str, AfterValidator(_known)]
"""A setting: "model" is the model's own template, "training" TRL's training variant of it, else a name of ``template_names``."""


def use_template(tokenizer: Any, name: str) -> None:
    """Gives a tokenizer or processor the template of a name; it is saved with them.

    Raises:
        InputError: ``name`` is "training" and the model's own template is none of those that have a training variant.
    """
    if name == OWN:
        return
    if name == TRAINING:
        name = training_variant(tokenizer.chat_template)
    tokenizer.chat_template = named_template(name)


def training_variant(template: str | dict[str, str]) -> str:
    """The name of the training variant of a stock template. Raises InputError where there is none."""
    text = template if isinstance(template, str) else template.get("default", "")
    stock = [name.removesuffix(_SUFFIX) for name in template_names() if name.endswith(_SUFFIX)]
    for name in stock:
        if text.strip() == (template_folder() / f"{name}.jinja").read_text(encoding="utf-8").strip():
            return name + _SUFFIX
    raise InputError(
        "the model's chat template has no training variant",
        f"TRL has one for the stock templates of {', '.join(stock)}",
        "name one with chat_template=…, or leave the setting out: the model's own template can be used for training",
    )
