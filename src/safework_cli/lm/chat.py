"""Conversations to token ids, in one place, so that training, generation and judging see the same tokens.

Each assistant turn is tokenized on its own, after the prompt that generation would have seen: a token never straddles the
boundary, so what is trained on is exactly what can be sampled.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from safework_cli.errors import InputError
from safework_cli.rows import Message


@dataclass(slots=True)
class Encoded:
    """A tokenized conversation.

    Attributes:
        input_ids: (T,)
        supervised: (T,) True on the tokens that a policy would have sampled: assistant content and its stop token.
    """

    input_ids: list[int]
    supervised: list[bool]


class TemplateError(InputError):
    """A row that the model's chat template changes or loses. Counted as a drop reason where rows are many."""


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
    """The template's text."""
    plain = [{"role": message["role"], "content": message["content"]} for message in messages]
    text = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=generation_prompt)
    assert isinstance(text, str)
    return text


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of text that the template wrote: special tokens are parsed, none is added (no double BOS)."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """The ids after which a reply begins; with a last assistant message, the ids after which that message goes on."""
    if messages[-1]["role"] != "assistant":
        return encode_text(tokenizer, render(tokenizer, messages, generation_prompt=True))
    start = encode_text(tokenizer, render(tokenizer, messages[:-1], generation_prompt=True))
    return start + encode_text(tokenizer, messages[-1]["content"])


def encode_conversation(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], stop_ids: Sequence[int]) -> Encoded:
    """Tokenizes a whole conversation with its supervision mask.

    Args:
        stop_ids: tokens that may end a turn; each assistant turn must end in one of them.

    Raises:
        TemplateError: the template rewrites earlier turns, drops or changes assistant content (a lost thought), or closes a turn
            without a stop token.
    """
    input_ids: list[int] = []
    supervised: list[bool] = []
    done = ""  # the rendered text that is already tokenized
    for position, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prefix = render(tokenizer, messages[:position], generation_prompt=True)
        whole = render(tokenizer, messages[: position + 1])
        if not prefix.startswith(done) or not whole.startswith(prefix):
            _explain_rewrite(whole, message["content"])
        closing = whole[len(prefix) :]
        if message["content"].strip() not in closing:
            _explain_rewrite(whole, message["content"])
        turn, stop = _cut_after_stop(tokenizer, closing, message["content"], stop_ids)
        for text, is_sampled in ((prefix[len(done) :], False), (turn, True)):
            ids = encode_text(tokenizer, text)
            input_ids += ids
            supervised += [is_sampled] * len(ids)
        if input_ids[-1] != stop:
            raise TemplateError(
                "the last supervised token is not a stop token", f"the turn ends in {tokenizer.convert_ids_to_tokens(input_ids[-1])!r}"
            )
        done = prefix + turn
    rest = render(tokenizer, messages)
    if not rest.startswith(done):
        raise TemplateError("the chat template rewrites earlier turns once later ones follow")
    return Encoded(input_ids, supervised)


def observation_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], stopped: bool) -> list[int]:
    """The ids between a sampled assistant turn and the next one: what the template puts around an environment's message.

    Args:
        messages: the conversation up to and including the environment's message; the turn before it is the assistant's.
        stopped: whether the sampled ids already hold the stop token.
    """
    anchor = "\u241fANCHOR\u241f"  # stands for the sampled text, which is never rendered again
    history = [*messages[:-2], Message(role="assistant", content=anchor)]
    text = render(tokenizer, [*history, messages[-1]], generation_prompt=True)
    tail = text[text.rindex(anchor) + len(anchor) :]
    if stopped and tail.startswith(tokenizer.eos_token):
        tail = tail[len(tokenizer.eos_token) :]
    return encode_text(tokenizer, tail)


def _cut_after_stop(tokenizer: PreTrainedTokenizerBase, closing: str, content: str, stop_ids: Sequence[int]) -> tuple[str, int]:
    """Splits what follows a turn's content after its first stop token; what comes behind (a newline, mostly) is never sampled."""
    after = closing.index(content.strip()) + len(content.strip())
    found = []
    for token_id in stop_ids:
        match = re.search(re.escape(str(tokenizer.convert_ids_to_tokens(token_id))), closing[after:])
        if match:
            found.append((after + match.end(), token_id))
    if not found:
        raise TemplateError(
            "the chat template closes an assistant turn without a stop token",
            "a model trained on it never learns to stop",
            "set eos_token to the template's end-of-turn token",
        )
    end, token_id = min(found)
    return closing[:end], token_id


def _explain_rewrite(whole: str, content: str) -> None:
    if "<think>" in content and content.split("</think>")[0].strip() not in whole:
        raise TemplateError(
            "the thought of a reply does not survive the chat template",
            "the template strips <think>…</think>; training would teach the model not to think",
            "use a template that keeps assistant content as it is",
        )
    raise TemplateError(
        "the chat template changes assistant content or rewrites earlier turns", "training and generation would see different tokens"
    )
