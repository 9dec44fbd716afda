"""The language of a search episode: what the model may write in a turn, and how the environment words its replies.

The action space is the paper's (`docs/safeladder.md` 6): think, search, read, confidence, answer. Its wording is not published;
these tags are ours.
A turn is one thought and one action, nothing else:

    <think>I need the founder.</think><search>Korrin Observatory founder</search>
    <think>The second result fits.</think><read>2</read>
    <think>The text names her.</think><confidence>9</confidence><answer>Ilva Korrin</answer>

Parsing is strict. A turn that does not fit is ``Malformed``, and its reason is what the environment tells the model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from safework_cli.data.reply import THINK_CLOSE, parse_reply
from safework_cli.data.row import Message

SEARCH_INSTRUCTION = (
    "Answer with the help of a search tool. In each turn write <think>a thought</think> and one action: "
    "<search>words</search> or <read>number</read> or <confidence>0-10</confidence><answer>short answer</answer>"
)
"""Stands before the question in the first user message. Short, because a small model reads it in every episode."""

MAX_CONFIDENCE = 10
ENVIRONMENT = 2
"""Raised when the same turns would be answered otherwise. 2: the tags in an error are whole."""


@dataclass(frozen=True, slots=True)
class Action:
    """What a well-formed turn does. Only the fields of its kind are set.

    Attributes:
        query: the words of a search.
        number: which result to read, from 1 as shown; whether it was shown is for the episode to check.
        confidence, answer: of the final action; confidence is 0 to ``MAX_CONFIDENCE``.
    """

    kind: Literal["search", "read", "answer"]
    query: str = ""
    number: int = 0
    confidence: int = 0
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Malformed:
    """A turn without a valid action. ``reason`` is a clause for people and models: the error, and the correct form."""

    reason: str


def opening(question: str) -> str:
    """The first user message of an episode."""
    return f"{SEARCH_INSTRUCTION}\n\nQuestion: {question.strip()}"


def episode_prompt(prompt: Sequence[Message]) -> list[Message]:
    """What a question's episode begins with: its prompt, with the search instruction if the prompt does not have it already."""
    last = prompt[-1]
    if last["content"].startswith(SEARCH_INSTRUCTION):
        return list(prompt)
    return [*prompt[:-1], Message(role=last["role"], content=opening(last["content"]))]


def search_action(query: str) -> str:
    return f"<search>{query.strip()}</search>"


def read_action(number: int) -> str:
    return f"<read>{number}</read>"


def final_action(confidence: int, answer: str) -> str:
    return f"<confidence>{confidence}</confidence><answer>{answer.strip()}</answer>"


def results_observation(results: Sequence[tuple[str, str]]) -> str:
    """The reply to a search: (title, abstract) of each result, numbered from 1."""
    if not results:
        return "No results. Try other words."
    return "Results:\n" + "\n".join(f"{number}. {title}: {abstract}" for number, (title, abstract) in enumerate(results, 1))


def document_observation(title: str, text: str) -> str:
    """The reply to a read."""
    return f"Document: {title}\n{text}"


_THOUGHT_REASONS = {
    "no_thought": "write <think>a thought</think> before the action",
    "empty_answer": "write an action after </think>",
    "unclosed": "close the thought with </think>, then write an action",
    "unopened": "open the thought with <think>",
    "empty_thought": "the thought is empty",
    "repeated": "write only one <think>...</think> in a turn",
    "text_before": "write nothing before <think>",
}
_TAG = re.compile(r"</?(search|read|confidence|answer)>")
_ELEMENT = re.compile(r"<(search|read|confidence|answer)>(.*?)</\1>", re.DOTALL)
_WHOLE_NUMBER = re.compile(r"[0-9]{1,4}")  # ASCII digits only: int() would also take other scripts


def parse_action(text: str) -> Action | Malformed:
    """Reads one turn of the model, strictly: one thought, then one action, with white space at most between and around them."""
    reply = parse_reply(text)
    if reply.format != "ok":
        return Malformed(_THOUGHT_REASONS[reply.format])
    if _TAG.search(reply.thought):
        return Malformed(f"write the action after {THINK_CLOSE}, not inside the thought")
    elements = _ELEMENT.findall(reply.answer)
    if not elements:
        started = _TAG.search(reply.answer)
        return Malformed(f"<{started.group(1)}> needs its opening and closing tag" if started else "no action; search, read or answer")
    rest = _ELEMENT.sub("", reply.answer).strip()
    if any(_TAG.search(content) for _, content in elements) or _TAG.search(rest):
        return Malformed("each tag needs its opening and closing tag, and none stands inside another")
    if rest:
        return Malformed("write nothing but the action after </think>")
    return _action([(name, content.strip()) for name, content in elements])


def _action(elements: list[tuple[str, str]]) -> Action | Malformed:
    """The action that the elements of a turn spell, in their order."""
    names = [name for name, _ in elements]
    if names == ["confidence", "answer"]:
        confidence, answer = elements[0][1], elements[1][1]
        if not _WHOLE_NUMBER.fullmatch(confidence) or int(confidence) > MAX_CONFIDENCE:
            return Malformed(f"confidence must be a whole number from 0 to {MAX_CONFIDENCE}")
        if not answer:
            return Malformed("the answer is empty")
        return Action("answer", confidence=int(confidence), answer=answer)
    if "answer" in names or "confidence" in names:
        return Malformed("the final action is <confidence>0-10</confidence><answer>short answer</answer>, in this order and alone")
    if len(names) > 1:
        return Malformed("write one action in a turn")
    name, content = elements[0]
    if name == "search":
        return Action("search", query=content) if content else Malformed("the search has no words")
    if not _WHOLE_NUMBER.fullmatch(content) or int(content) < 1:
        return Malformed("read needs the number of a result, from 1")
    return Action("read", number=int(content))
