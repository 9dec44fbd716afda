"""Conversations to token ids, in one place, so that training, generation and judging see the same tokens.

What a model says is never read from the template's rendering of it: many templates drop or rearrange a thought (DeepSeek-R1-Distill,
Qwen3). An assistant turn is what generation would have sampled: the tokens after the generation prompt, and the template's end of turn.
Later turns are appended to it, as a search episode or an agent's loop appends them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from safework_cli.core.errors import InputError
from safework_cli.data.images import TAG
from safework_cli.data.reply import THINK_CLOSE, THINK_OPEN
from safework_cli.data.row import Image, Message
from safework_cli.models.processors import Headers
from safework_cli.models.rendering import ANCHOR, TemplateError, render
from safework_cli.models.thoughts import reader_of
from safework_cli.models.vision import EncodedImages, Prompt, after, joined, prompt_with_images

_MARKS = re.compile(rf"{THINK_OPEN}|{THINK_CLOSE}|\s+")
_OPENED = re.compile(rf"{THINK_OPEN}\s*$")


@dataclass(slots=True)
class Encoded:
    """A tokenized conversation.

    Attributes:
        input_ids: (T,)
        supervised: (T,) True on the tokens that a policy would have sampled: assistant content and its stop token.
        vision: what the vision tower takes; None where no message has an image.
        marked: the first token of the marked word and the token after its last one; None where no word is marked.
    """

    input_ids: list[int]
    supervised: list[bool]
    marked: tuple[int, int] | None = None
    vision: EncodedImages | None = None


class _Writer:
    """Turns what the template writes into token ids, piece by piece, each with the images of its messages.

    Args:
        processor: of the model, where it reads images.

    Raises:
        TemplateError: there are images, and the model reads text only; or they are not as many as there are ``<image>`` tags.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], images: Sequence[Image], processor: Any):
        self.tokenizer, self._processor, self._left = tokenizer, processor, list(images)
        self.images = bool(images)
        if self.images and processor is None:
            raise TemplateError("it has images, and the model reads text only", "", "take a model that reads images")
        if self.images and (tags := sum(message["content"].count(TAG) for message in messages)) != len(images):
            raise TemplateError(f"it has {tags} {TAG} tags for {len(images)} images", "each tag is an image's place", "correct the row")

    def render(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        return render(self.tokenizer, messages, generation_prompt=generation_prompt, images=self.images)

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text of a prompt, generation prompt included."""
        text = self.render(messages, generation_prompt=True)
        said = messages[-1]["content"] if messages else ""
        if not all(part.strip() in text for part in (said.split(TAG) if self.images else [said])):
            raise TemplateError(
                f"the chat template drops or changes what the {messages[-1]['role']} says",
                "the model would get another prompt",
                "choose another template with chat_template=…, or another model",
            )
        return text

    def ids(self, text: str, messages: Sequence[Message] = ()) -> Prompt:
        """The ids of a text that the template wrote of messages, and what their images are encoded to."""
        count = sum(message["content"].count(TAG) for message in messages) if self.images else 0
        if not count:
            return Prompt(encode_text(self.tokenizer, text))
        images, self._left = self._left[:count], self._left[count:]
        try:
            return prompt_with_images(self._processor, text, images)
        except InputError as error:
            raise TemplateError(error.what, error.why, error.do) from None


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of text that the template wrote: special tokens are parsed, none is added (no double BOS)."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], images: Sequence[Image] = (), processor: Any = None
) -> Prompt:
    """The ids after which a reply begins; with a last assistant message, the ids after which that message continues.

    Args:
        images: one for each ``<image>`` tag, in order.
        processor: of the model, where it reads images; as ``Headers``, no image is decoded, and the ids come without images.

    Raises:
        TemplateError: the template refuses the conversation, drops what the user says or has no place for images; the processor refuses an
            image; or the model reads text only.
    """
    writer = _Writer(tokenizer, messages, images, processor)
    if messages[-1]["role"] != "assistant":
        return writer.ids(writer.prompt(messages), messages)
    prefix = writer.prompt(messages[:-1])
    return joined([writer.ids(prefix, messages[:-1]), writer.ids(after_opening(prefix, messages[-1]["content"]))])


def prompt_tokens(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], images: Sequence[Image] = (), processor: Any = None
) -> int:
    """The number of ids that ``encode_prompt`` would return, from the sizes of the images: none is decoded. Raises as it does."""
    return len(encode_prompt(tokenizer, messages, images, processor and Headers(processor)).ids)


def instructed(tokenizer: PreTrainedTokenizerBase, system: str, messages: Sequence[Message]) -> list[Message]:
    """A conversation under an instruction of ours: a system message, or the beginning of the user's where the template takes no system
    message (Gemma's raises)."""
    if not system:
        return list(messages)
    with_system = [Message(role="system", content=system), *messages]
    try:
        render(tokenizer, with_system, generation_prompt=True)
    except TemplateError:
        first, *others = messages
        return [Message(role=first["role"], content=f"{system}\n\n{first['content']}"), *others]
    return with_system


def missing_generation_prompt(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What the template writes before a reply and leaves out of its prompts, where it has no generation prompt at all."""
    asked = [Message(role="user", content="?")]
    try:
        before = render(tokenizer, [*asked, Message(role="assistant", content=ANCHOR)])
        before = _MARKS.sub("", before[: _place(before)])
        prompts = [_MARKS.sub("", render(tokenizer, asked, generation_prompt=given)) for given in (False, True)]
    except TemplateError:
        return None  # each row says why
    return before.removeprefix(prompts[1]) if prompts[0] == prompts[1] != before and before.startswith(prompts[1]) else None


def after_opening(prefix: str, content: str) -> str:
    """A reply's text as it follows a generation prompt: without the ``<think>`` that the prompt holds already."""
    if not _OPENED.search(prefix):
        return content
    bare = content.lstrip()
    return bare.removeprefix(THINK_OPEN).lstrip() if bare.startswith(THINK_OPEN) else content


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    stop_ids: Sequence[int],
    mark: tuple[int, int] | None = None,
    images: Sequence[Image] = (),
    processor: Any = None,
) -> Encoded:
    """Tokenizes a whole conversation with its supervision mask.

    Args:
        stop_ids: tokens that may end a turn; each assistant turn must end in one of them.
        mark: character offsets of a word in the content of the last assistant message.
        images, processor: see ``encode_prompt``.

    Raises:
        TemplateError: the template refuses the conversation, changes what an assistant says, writes something before a reply that its
            generation prompt lacks, opens a thought that the reply does not close, or closes a turn without a stop token; or a reply
            writes a control token or has an image; or the marked word is not in the text that is trained on; or see ``encode_prompt``.
    """
    writer = _Writer(tokenizer, messages, images, processor)
    if writer.images and any(TAG in message["content"] for message in messages if message["role"] == "assistant"):
        raise TemplateError("a reply has an image", "models write text", "leave the row out")
    marked: tuple[int, int] | None = None
    control = reader_of(tokenizer).control_ids | set(stop_ids)
    pieces: list[Prompt] = []
    supervised: list[bool] = []

    def add(piece: Prompt, is_sampled: bool) -> None:
        pieces.append(piece)
        supervised.extend([is_sampled] * len(piece.ids))

    asked = [position for position, message in enumerate(messages) if message["role"] == "assistant"]
    for number, position in enumerate(asked):
        before = messages[:position]
        turn = _turn_of(writer, before, stop_ids)
        if number == 0:
            prefix = writer.prompt(before)
            _refuse_other_prompt(prefix, turn.before)
            add(writer.ids(prefix, before), False)
        else:
            last = asked[number - 1]
            prefix = _text_between(writer, before, last)
            add(_after_turn_end(tokenizer, writer.ids(prefix, before[last + 1 :]), turn.closing), False)
        indent, content = turn.indent(prefix), messages[position]["content"]
        text = indent + _reply_text(prefix, content)
        _refuse_control(tokenizer, text, control)
        if mark is not None and position == asked[-1]:
            # only the left end of a reply's text is moved: by what the template opened already, and white space
            shift = len(indent) - (len(content) - len(after_opening(prefix, content).lstrip()))
            marked = _marked_tokens(tokenizer, text, turn.closing, (mark[0] + shift, mark[1] + shift), len(supervised))
        add(writer.ids(text + turn.closing), True)
        if (end := pieces[-1].ids[-1]) not in stop_ids:
            ends = tokenizer.convert_ids_to_tokens(end)
            raise TemplateError("the last supervised token is not a stop token", f"the turn ends in {ends!r}")
    whole = joined(pieces)
    return Encoded(whole.ids, supervised, marked, whole.vision)


def _marked_tokens(tokenizer: PreTrainedTokenizerBase, text: str, closing: str, mark: tuple[int, int], before: int) -> tuple[int, int]:
    """The tokens that hold the marked characters of a reply.

    Args:
        before: tokens before the reply.
    """
    if not 0 <= mark[0] < mark[1] <= len(text):
        raise TemplateError("the marked word is not in the text that is trained on", "the mark is in white space or in the opening tag")
    if not tokenizer.is_fast:
        raise TemplateError("the tokenizer does not say which characters its tokens hold", "a mark cannot be found among its tokens")
    offsets = tokenizer(text + closing, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    places = [place for place, (start, end) in enumerate(offsets) if start < mark[1] and end > mark[0]]
    return before + places[0], before + places[-1] + 1


def observation_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], stop_ids: Sequence[int], stopped: bool) -> list[int]:
    """The ids between a sampled assistant turn and the next one: what the template puts around an environment's message.

    Args:
        messages: the conversation up to and including the environment's message; the turn before it is the assistant's.
        stopped: whether the sampled ids already hold a stop token. The template's own end of turn is left out then, whichever of the
            model's stop tokens was sampled.
    """
    last_reply, writer = len(messages) - 2, _Writer(tokenizer, messages, (), None)
    between, turn = writer.ids(_text_between(writer, messages, last_reply)), _turn_of(writer, messages[:last_reply], stop_ids)
    if stopped:
        return _after_turn_end(tokenizer, between, turn.closing).ids
    return between.ids if turn.written else [*encode_text(tokenizer, turn.closing), *between.ids]


def _text_between(writer: _Writer, messages: Sequence[Message], last_reply: int) -> str:
    """What the template writes from the end of a reply's content to the beginning of the next one.

    Args:
        messages: up to the next reply.
        last_reply: position of the reply; it and earlier ones are not rendered.
    """
    text = writer.render(
        [*_without_replies(messages[:last_reply]), Message(role="assistant", content=ANCHOR), *messages[last_reply + 1 :]],
        generation_prompt=True,
    )
    return text[_place(text) + len(ANCHOR) :]


def _without_replies(messages: Sequence[Message]) -> list[Message]:
    return [Message(role=m["role"], content="." if m["role"] == "assistant" else m["content"]) for m in messages]


def _place(text: str) -> int:
    place = text.rfind(ANCHOR)
    if place < 0:
        raise TemplateError(
            "the chat template changes or drops what an assistant says",
            "the model would get another reply than the row has",
            "choose another template with chat_template=…",
        )
    return place


@dataclass(frozen=True, slots=True)
class _Turn:
    """What the template writes around an assistant's content: everything before it, and what follows up to the first stop token. What
    comes after that (a newline, mostly) is never sampled.

    Attributes:
        written: the template itself writes ``closing``; LLaVA-1.5's ends a reply with nothing, and its training data with eos.
    """

    before: str
    closing: str
    written: bool = True

    def indent(self, prefix: str) -> str:
        """White space that the template puts between its generation prompt and the content (Mistral's space)."""
        lead = self.before.removeprefix(prefix) if self.before.startswith(prefix) else ""
        return lead if lead.isspace() else ""


def _turn_of(writer: _Writer, before: Sequence[Message], stop_ids: Sequence[int]) -> _Turn:
    tokenizer = writer.tokenizer
    whole = writer.render([*_without_replies(before), Message(role="assistant", content=ANCHOR)])
    place = _place(whole)
    closing = whole[place + len(ANCHOR) :]
    if not closing.strip() and tokenizer.eos_token_id in stop_ids:
        return _Turn(whole[:place], str(tokenizer.eos_token), written=False)
    tokens = [str(tokenizer.convert_ids_to_tokens(token)) for token in stop_ids]
    ends = [match.end() for token in tokens if (match := re.search(re.escape(token), closing))]
    if not ends:
        raise TemplateError(
            "the chat template closes an assistant turn without a stop token",
            "a model trained on it never learns to stop",
            "set eos_token to the template's end-of-turn token",
        )
    return _Turn(whole[:place], closing[: min(ends)])


def _refuse_other_prompt(prefix: str, before: str) -> None:
    """Refuses a template whose generation prompt lacks what the template writes before a reply; thought marks and white space aside."""
    bare_prefix, bare_before = _MARKS.sub("", prefix), _MARKS.sub("", before)
    if bare_before != bare_prefix:
        raise TemplateError(
            f"the chat template writes {bare_before.removeprefix(bare_prefix)[:60]!r} before a reply, and its generation prompt does not",
            "training and generation would see different tokens",
            "choose another template with chat_template=…",
        )


def _reply_text(prefix: str, content: str) -> str:
    text = after_opening(prefix, content).strip()
    if _OPENED.search(prefix) and THINK_CLOSE not in text:
        raise TemplateError(
            "the chat template opens a thought in the prompt, and the reply closes none",
            "the model would learn to answer inside its thought",
            "give the rows thoughts (safework data cot), or choose another template with chat_template=…",
        )
    return text


def _refuse_control(tokenizer: PreTrainedTokenizerBase, text: str, control: set[int]) -> None:
    if written := [token for token in encode_text(tokenizer, text) if token in control]:
        what = f"a reply writes the control token {tokenizer.convert_ids_to_tokens(written[0])}"
        raise TemplateError(what, "the model would learn to end or to open a turn in the middle of a reply", "remove it from the reply")


def _after_turn_end(tokenizer: PreTrainedTokenizerBase, between: Prompt, closing: str) -> Prompt:
    """The ids between two replies, without the end of turn that the first one already has."""
    ids, ended = between.ids, encode_text(tokenizer, closing)
    same = next((i for i, pair in enumerate(zip(ids, ended, strict=False)) if pair[0] != pair[1]), min(len(ids), len(ended)))
    added = tokenizer.added_tokens_decoder  # computed at each access
    return after(between, max((i + 1 for i in range(same) if ids[i] in added), default=0))
