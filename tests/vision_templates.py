"""The chat templates of vision-language families: those that TRL ships, and others written here, which render as the family's own does."""

from __future__ import annotations

from safework_cli.models.templates import named_template

_IMAGES_FIRST = "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ IMAGE }}{% endfor %}"
_THEN_TEXT = "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ TEXT }}{% endfor %}"


def _lists(before: str, image: str, text: str, end: str, opening: str) -> str:
    """A template that reads lists of parts only, an image before all text wherever it was."""
    parts = _IMAGES_FIRST.replace("IMAGE", repr(image)) + _THEN_TEXT.replace("TEXT", text)
    opened = f"{{% if add_generation_prompt %}}{{{{ {opening!r} }}}}{{% endif %}}"
    return f"{{% for message in messages %}}{before}{parts}{end}{{% endfor %}}{opened}"


LLAVA = _lists(
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}",
    "<image>\n",
    "part['text'] + ' '",
    "",
    "ASSISTANT:",
)
ONEVISION = _lists(
    "{{ '<|im_start|>' + message['role'] + ' ' }}", "<image>", "'\\n' + part['text']", "{{ '<|im_end|>' }}", "<|im_start|>assistant\n"
)
INTERNVL = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\\n' }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PIXTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' }}"
    "{% elif message['role'] == 'user' %}{{ '[INST]' }}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '[IMG]' }}{% elif part['type'] == 'text' %}{{ part['content'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '[/INST]' }}{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = {
    "qwen2_vl": named_template("qwen2_5_vl"),  # the same text
    "qwen2_5_vl": named_template("qwen2_5_vl"),
    "qwen3_vl": named_template("qwen3_vl"),
    "internvl": INTERNVL,
    "llava": LLAVA,
    "llava_next": named_template("llava_next"),
    "llava_onevision": ONEVISION,
    "idefics3": named_template("idefics3"),
    "smolvlm": named_template("smolvlm"),
    "gemma3": named_template("gemma3"),
    "mistral3": PIXTRAL,
}
"""Family → template."""
TOKENS = {
    "qwen2_vl": ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"],
    "qwen2_5_vl": ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"],
    "qwen3_vl": ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"],
    "internvl": ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"],
    "llava": ["<image>", "</s>"],
    "llava_next": ["<image>", "</s>"],
    "llava_onevision": ["<image>", "<video>"],
    "idefics3": [
        "<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", "<|begin_of_text|>",
        *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
    ],
    "smolvlm": [
        "<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", "<video>",
        *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
    ],
    "gemma3": ["<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"],
    "mistral3": ["<s>", "</s>", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"],
}  # fmt: skip
"""Family → the special tokens that its template and its processor write."""
END_OF_TURN = {
    "llava": "</s>", "llava_next": "</s>", "idefics3": "<end_of_utterance>", "smolvlm": "<end_of_utterance>", "gemma3": "<end_of_turn>",
    "mistral3": "</s>",
}  # fmt: skip
"""Family → its token that ends a turn, where that is not <|im_end|>."""
NAMED = {
    "internvl": {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"
    },
    "gemma3": {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"},
}  # fmt: skip
"""Family → names of its tokenizer's for tokens."""
BEGIN = {"gemma3": "<bos>", "mistral3": "<s>"}
FAMILIES = tuple(TEMPLATES)


def family_tokenizer(text_model, family: str):
    """The tiny byte tokenizer with a family's tokens, end of turn and template."""
    from transformers import AutoTokenizer

    end = END_OF_TURN.get(family, "<|im_end|>")
    named = {"extra_special_tokens": NAMED[family]} if family in NAMED else {}
    tokenizer = AutoTokenizer.from_pretrained(str(text_model), **named)
    tokenizer.add_special_tokens({"additional_special_tokens": TOKENS[family]}, replace_extra_special_tokens=False)
    tokenizer.eos_token = end
    if family in BEGIN:
        tokenizer.bos_token = BEGIN[family]
    tokenizer.chat_template = TEMPLATES[family]
    return tokenizer
