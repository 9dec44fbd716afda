"""An engine that generates a given text, and a tokenizer that writes the spaces before words as SentencePiece models do."""

from __future__ import annotations

import math

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from safework_cli.engines.protocol import Completion
from safework_cli.models.thoughts import ThoughtReader


def spaced_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """Whole words with the space before them, "▁word": decoded by itself, a word has no space."""
    words = {f"▁{word}" for word in text.split()} | {"▁user", "▁assistant"}
    vocabulary = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", *sorted(words)])}
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    inner = Tokenizer(models.WordLevel(vocabulary, special["unk_token"]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, **special)
    made.chat_template = "{% for m in messages %}{{ m.role + ' ' + m.content }}{% endfor %}{{ ' assistant' if add_generation_prompt }}"
    return made


class Scripted:
    """Generates the same text for every prompt, up to ``max_tokens`` at a time, n equal completions."""

    def __init__(self, tokenizer, text: str):
        self.tokenizer, self._reader = tokenizer, ThoughtReader(tokenizer)
        self.stop_ids = [tokenizer.eos_token_id]
        self.script = tokenizer(text, add_special_tokens=False)["input_ids"] + self.stop_ids
        self.prompt: int | None = None

    def generate_ids(self, prompts, sampling, n=1, visions=None, seeds=None):
        self.prompt = self.prompt or len(prompts[0])
        made = []
        for ids in prompts:
            ids_left = self.script[len(ids) - self.prompt :][: sampling.max_tokens]
            finish = "stop" if ids_left[-1:] == self.stop_ids else "length"
            made.append([Completion(self.text_of(ids, ids_left), ids_left, [-1.0] * len(ids_left), finish, ids) for _ in range(n)])
        return made

    def text_of(self, prompt_ids, token_ids):
        return self._reader.text_of(prompt_ids, token_ids)

    def longest_prompt(self, sampling):
        return math.inf
