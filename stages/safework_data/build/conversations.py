"""Conversations as people publish them, read by the names of their layouts. What a row cannot hold is refused by name; nothing of a message
that a model would learn from, or be asked by, is left out.

Layouts (a table in ``docs/data.md``): ``role`` and ``content`` (OpenAI, TRL's lists), ``from`` and ``value`` (ShareGPT), ``parts``
(Gemini), content as a list of parts, a thought in a key of its own (``reasoning_content``, ``reasoning``, ``thinking``).
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from safework_cli.data.images import MAX_BYTES, TAG
from safework_cli.data.reply import THINK_CLOSE, THINK_OPEN, make_reply
from safework_cli.data.row import Message, truth_of

ROLES_READ = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant",
}  # fmt: skip
TOOL_ROLES = frozenset(("tool", "function", "function_call", "function_response", "observation", "tool_call", "tool_response", "ipython"))
TOOL_KEYS = ("tool_calls", "function_call", "tool_call_id")
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")
TEXT_PARTS = frozenset(("text", "input_text", "output_text"))
THOUGHT_PARTS = frozenset(("thinking", "reasoning"))
IMAGE_PARTS = frozenset(("image", "image_url", "input_image"))
LOSS_KEYS = ("train", "training", "trainable", "loss")
OTHER_MEDIA = ("audio", "video", "videos", "image", "images")
CONTENT_KEYS = ("content", "value", "parts")
READ_KEYS = frozenset(
    ("role", "from", *CONTENT_KEYS, "refusal", "weight", *TOOL_KEYS, *THOUGHT_KEYS, "reasoning_details", *LOSS_KEYS, *OTHER_MEDIA)
)


class Unfit(Exception):
    """A record that no row can be made of; the text is ``reason`` or ``reason: detail``."""


@dataclass(slots=True)
class Conversation:
    """What was read.

    Attributes:
        messages: with an ``<image>`` tag for each image among the parts of their contents.
        images: in the order of those tags; None where the part only marks the place, and a column has the image.
        unread: keys of messages that hold something which rows have no place for, such as a time.
    """

    messages: list[Message] = field(default_factory=list)
    images: list[Any] = field(default_factory=list)
    unread: set[str] = field(default_factory=set)

    def extend(self, other: Conversation) -> None:
        self.messages += other.messages
        self.images += other.images
        self.unread |= other.unread


def is_conversation(value: Any) -> bool:
    """Whether a cell holds messages and not a text: TRL's prompts and completions may be either."""
    return isinstance(value, list | dict)


def read_conversation(value: Any) -> Conversation:
    """Messages of a cell: a list of them, JSON text of one, or a mapping of lists (as some Parquet writers turn a list of structs).

    Raises:
        Unfit: it is none of these, or holds what a row cannot: tool calls, a turn that is not to be trained on, audio.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise Unfit("messages are not readable: text that is not JSON") from None
    if isinstance(value, Mapping) and value and all(isinstance(column, list) for column in value.values()):
        lengths = {len(column) for column in value.values()}
        if len(lengths) == 1:
            value = [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Unfit("messages are not readable: not a list of {role, content}, nor of {from, value}")
    conversation = Conversation()
    for item in value:
        _read_message(item, conversation)
    return conversation


def _read_message(item: Mapping[str, Any], conversation: Conversation) -> None:
    given = item.get("role") if not _nothing(item.get("role")) else item.get("from")
    if not isinstance(given, str):
        raise Unfit("messages are not readable: not a list of {role, content}, nor of {from, value}")
    role = ROLES_READ.get(given.lower(), given)
    if given.lower() in TOOL_ROLES:
        raise Unfit(f"tool turns: a message of the role '{given[:40]}'")
    for key in TOOL_KEYS:
        if not _nothing(item.get(key)):
            raise Unfit(f"tool calls: a message has {key}")
    for key in OTHER_MEDIA:
        if not _nothing(item.get(key)):
            raise Unfit(f"{key} in a message: name a column of images in columns.images")
    if role == "assistant":
        _refuse_unsupervised(item)
    content, thought = _content(
        next((item[key] for key in ("content", "value", "parts") if not _nothing(item.get(key))), None), conversation
    )
    if role == "assistant":
        thought = thought or _separate_thought(item)
        if not content.strip() and isinstance(item.get("refusal"), str):
            content = item["refusal"]
        content = _with_thought(thought, content) if thought else content
    elif thought or any(not _nothing(item.get(key)) for key in THOUGHT_KEYS):
        raise Unfit(f"a thought outside a reply: of the role '{role[:40]}'")
    conversation.messages.append(Message(role=role, content=content))
    conversation.unread |= {key for key, value in item.items() if key not in READ_KEYS and not _nothing(value)}


def _refuse_unsupervised(item: Mapping[str, Any]) -> None:
    """Rows have no place for a loss of their own by turn: all replies of a row are learnt from."""
    weight = item.get("weight")
    if not _nothing(weight) and weight not in (1, "1", "1.0"):
        raise Unfit(f"a turn with a weight of its own: weight {str(weight)[:20]}")
    for key in LOSS_KEYS:
        if not _nothing(item.get(key)):
            try:
                learnt = truth_of(whole(item[key]))
            except ValueError:
                learnt = False
            if not learnt:
                raise Unfit(f"a turn that is not to be trained on: {key} is {str(item[key])[:20]}")


def _separate_thought(item: Mapping[str, Any]) -> str:
    for key in THOUGHT_KEYS:
        if not _nothing(item.get(key)):
            if not isinstance(item[key], str):
                raise Unfit(f"a thought that is not text: {key} is {type(item[key]).__name__}")
            return str(item[key])
    details = item.get("reasoning_details")
    if _nothing(details):
        return ""
    texts = [part.get("text") for part in details if isinstance(part, dict)] if isinstance(details, list) else []
    if not texts or not all(isinstance(text, str) for text in texts):
        raise Unfit("a thought that is not text: reasoning_details without text")
    return "".join(map(str, texts))


def _with_thought(thought: str, content: str) -> str:
    """A reply in the one format. A content that repeats the thought inside its tags stands as it is."""
    if any(tag in thought for tag in (THINK_OPEN, THINK_CLOSE)):
        raise Unfit("two thoughts: the reply's separate thought holds tags of its own")
    if THINK_OPEN in content or THINK_CLOSE in content:
        if thought.strip() not in content:
            raise Unfit("two thoughts: a separate one and another in the reply")
        return content
    return make_reply(thought, content)


def _content(value: Any, conversation: Conversation) -> tuple[str, str]:
    """The text of a message, and what it says that was thought; images go to the conversation."""
    if value is None:
        return "", ""
    if not isinstance(value, list):
        if isinstance(value, int | float) and not isinstance(value, bool):
            return plain_number(value), ""
        if not isinstance(value, str):
            raise Unfit(f"content is not text: {type(value).__name__}")
        return value, ""
    text, thought = "", ""
    for part in value:
        if isinstance(part, str):
            text += part
            continue
        if not isinstance(part, dict):
            raise Unfit(f"content is not text: a list that holds a {type(part).__name__}")
        kind = part.get("type") or next(
            (key for key in ("text", "thinking", "image_url", "image") if not _nothing(part.get(key))), "nothing"
        )
        if kind in TEXT_PARTS and isinstance(part.get("text"), str):
            text += part["text"]
        elif kind in THOUGHT_PARTS and isinstance(written := part.get("thinking") or part.get("reasoning") or part.get("text"), str):
            thought += written
        elif kind in IMAGE_PARTS:
            text += TAG
            conversation.images.append(_image(part))
        else:
            raise Unfit(f"content that is not text: a part of the type '{str(kind)[:40]}'")
    return text, thought


def _image(part: Mapping[str, Any]) -> Any:
    """What a part says of its image: bytes, or None where it only marks the place."""
    given = _first(part, ("image_url", "image", "url"))
    if isinstance(given, dict) and not isinstance(given.get("bytes"), bytes):
        given = given.get("url")
    if given is None or isinstance(given, dict):
        return given
    if not isinstance(given, str) or not given.startswith("data:"):
        raise Unfit("an image outside its row: parts hold images as data: URLs; for files, name a column of paths in columns.images")
    encoded = given.partition(",")[2]
    if len(encoded) > MAX_BYTES * 4 // 3:
        raise Unfit(f"unreadable image: more than {MAX_BYTES:,} bytes")
    try:
        return {"bytes": base64.b64decode(encoded, validate=True), "path": None}
    except (binascii.Error, ValueError) as error:
        raise Unfit(f"unreadable image: {error}") from None


def whole(value: Any) -> Any:
    """A whole number that a column with gaps turned into a float (5.0), as its author wrote it; other values as they are."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def plain_number(value: int | float) -> str:
    """A number as text."""
    return str(whole(value))


def _first(item: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    """The value of the first key that has one."""
    return next((item[key] for key in keys if not _nothing(item.get(key))), None)


def _nothing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or (isinstance(value, str | list | dict) and not value)
