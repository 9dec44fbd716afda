"""Tiny models that speak with the chat templates of real families, each with its special tokens and its end of turn.

Templates that TRL ships are read from the installed package. The others are written here, with the behaviour of the family's: where turns
end, what becomes of a system message, whether the thought is opened.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers import PreTrainedTokenizerBase as Tokenizer

from safework_cli.models.load import save_model
from safework_cli.models.templates import template_folder

MISTRAL = (  # no role headers, no generation prompt; a system message opens the first user turn; the end of turn is eos
    "{{ bos_token }}{% set first = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set first.system = m.content + '\n\n' %}{% elif m.role == 'user' %}{{ '[INST] ' + first.system + m.content + '[/INST]' }}"
    "{% set first.system = '' %}{% elif m.role == 'assistant' %}{{ ' ' + m.content | trim + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}{% endfor %}"
)
INTERNVL3 = (  # ChatML with a system turn of its own where none is given
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are a multimodal assistant.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PHI4 = (  # a separator of its own between role and content
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
THINKING = (  # drops the thoughts of earlier turns and opens the next one, as the thinking releases of Qwen3 do
    "{% for m in messages %}{% set said = m.content.split('</think>')[-1] if m.role == 'assistant' else m.content %}"
    "{{ '<|im_start|>' + m.role + '\n' + said | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """A family's manner of speaking.

    Attributes:
        template: a name that TRL ships, or the text of one of this module.
        eos, bos, pad: of the tokenizer.
        special: further special tokens; added: tokens that are not special.
        stops: stop tokens of the generation configuration in addition to eos.
        opens: the generation prompt opens the thought.
        system: the template takes a system message.
    """

    template: str
    eos: str
    bos: str | None = None
    pad: str | None = None
    special: Sequence[str] = ()
    added: Sequence[str] = ()
    stops: Sequence[str] = ()
    opens: bool = False
    system: bool = True

    @property
    def text(self) -> str:
        file = template_folder() / f"{self.template}.jinja"
        return file.read_text() if "{" not in self.template else self.template


CHATML = {"eos": "<|im_end|>", "pad": "<|endoftext|>", "special": ["<|im_start|>"]}
THINK = ["<think>", "</think>"]
HEADERS = ["<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>"]
R1 = {"special": ["<｜User｜>", "<｜Assistant｜>"], "added": THINK, "opens": True}
FAMILIES = {
    "deepseek-r1-distill": Family("deepseek_r1_distill", "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>", **R1),
    "deepseek-r1-distill, trained": Family("deepseek_r1_distill_training", "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>", **R1),
    "qwen2.5-vl": Family("qwen2_5_vl", **CHATML),
    "internvl3": Family(INTERNVL3, **CHATML),
    "qwen2.5": Family("qwen2_5", **CHATML),
    "qwen3": Family("qwen3", added=THINK, **CHATML),
    "qwen3, trained": Family("qwen3_training", added=THINK, **CHATML),
    "qwen3-instruct-2507": Family("qwen3_instruct_2507", added=THINK, **CHATML),
    "qwen3-thinking": Family(THINKING, added=THINK, opens=True, **CHATML),
    "think is special": Family(INTERNVL3, "<|im_end|>", pad="<|endoftext|>", special=["<|im_start|>", *THINK]),
    "llama3": Family("llama3", "<|eot_id|>", "<|begin_of_text|>", special=HEADERS, stops=["<|end_of_text|>"]),
    "llama3, eos is not the turn's end": Family(
        "llama3", "<|end_of_text|>", "<|begin_of_text|>", special=[*HEADERS[:2], "<|eot_id|>"], stops=["<|eot_id|>"]
    ),
    "llama3.2": Family("llama3_2", "<|eot_id|>", "<|begin_of_text|>", special=HEADERS),
    "gemma": Family("gemma", "<eos>", "<bos>", "<pad>", ["<start_of_turn>", "<end_of_turn>"], stops=["<end_of_turn>"], system=False),
    "gemma3": Family("gemma3", "<eos>", "<bos>", "<pad>", ["<start_of_turn>", "<end_of_turn>"], stops=["<end_of_turn>"]),
    "mistral": Family(MISTRAL, "</s>", "<s>", special=["[INST]", "[/INST]"]),
    "phi3": Family("phi3", "<|endoftext|>", special=["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"], stops=["<|end|>"]),
    "phi3, eos only": Family("phi3", "<|endoftext|>", special=["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]),
    "phi4": Family(PHI4, "<|im_end|>", pad="<|endoftext|>", special=["<|im_start|>", "<|im_sep|>"]),
}
"""The four bases of SafeWork-R1 first (DeepSeek-R1-Distill, Qwen2.5-VL, InternVL3, Qwen2.5), then others."""


def family_tokenizer(tiny: Path, family: Family) -> tuple[Tokenizer, list[int]]:
    """The tiny model's byte tokenizer with a family's tokens and template, and the ids that end its turns."""
    tokenizer = AutoTokenizer.from_pretrained(str(tiny))
    tokenizer.add_special_tokens({"eos_token": family.eos, "pad_token": family.pad or family.eos})
    if family.bos:
        tokenizer.add_special_tokens({"bos_token": family.bos})
    tokenizer.add_tokens([*family.special, *family.stops], special_tokens=True)
    tokenizer.add_tokens(list(family.added))
    tokenizer.chat_template = family.text
    stops = [tokenizer.eos_token_id, *(int(tokenizer.convert_tokens_to_ids(token)) for token in family.stops)]
    return tokenizer, sorted(stops)


def family_model(tiny: Path, family: Family, folder: Path) -> Path:
    """Saves a tiny random model of a family."""
    tokenizer, stops = family_tokenizer(tiny, family)
    model = AutoModelForCausalLM.from_pretrained(str(tiny))
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for settings in (model.config, model.generation_config):
        settings.eos_token_id, settings.pad_token_id, settings.bos_token_id = stops, tokenizer.pad_token_id, tokenizer.bos_token_id
    folder.mkdir(parents=True)
    save_model(model, tokenizer, folder)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == stops
    return folder
