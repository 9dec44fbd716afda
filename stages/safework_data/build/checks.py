"""Whether one row may stay, whatever the other rows hold."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from safework_cli.core.errors import InputError
from safework_cli.data.reply import language_of, parse_reply
from safework_cli.data.row import Row, problems
from safework_cli.data.schema import meta_problem
from safework_cli.data.verdict import mark_of
from safework_cli.verifiers.contract import Exchange
from safework_cli.verifiers.rules.correctness import CorrectnessRule
from safework_cli.verifiers.rules.refusal import refusal_label
from safework_data.build.config import BuildConfig
from safework_data.build.drops import Candidate

Problem = tuple[str, str]
"""(reason, detail). Reasons are few and countable, details are not."""
TemplateCheck = Callable[[Row], Problem | None]
_SURROGATE = re.compile("[\ud800-\udfff]")
_PARTICULARS = re.compile(r"'[^']*'|\d+")


def examined(candidates: Sequence[Candidate], config: BuildConfig, template: TemplateCheck | None = None) -> list[Problem | None]:
    """The first rule that each row breaks, or None. Answers are compared with their gold together.

    Args:
        template: what a model's chat template makes of a row, where one was given.
    """
    first = [problem_of(candidate, config) or (template(candidate.row) if template else None) for candidate in candidates]
    wrong = _wrong_answers([c for c, problem in zip(candidates, first, strict=True) if problem is None and _is_checked(c, config)])
    return [problem or wrong.get(id(c)) for c, problem in zip(candidates, first, strict=True)]


def _is_checked(candidate: Candidate, config: BuildConfig) -> bool:
    row = candidate.row
    if candidate.subset not in config.check_replies or row.reply is None or not (row.answer or row.meta.get("constraints")):
        return False
    # an episode of several turns ends in an action, which its own stage reads
    return row.task != "search" or all(message["role"] != "assistant" for message in row.prompt)


def _wrong_answers(candidates: list[Candidate]) -> dict[int, Problem]:
    """id() → problem of replies whose final answer is not the gold one, or breaks a constraint; what no rule can compare stays."""
    if not candidates:
        return {}
    from safework_cli.verifiers.contract import judged
    from safework_cli.verifiers.rules import rule_verifier

    verdicts = judged(rule_verifier("correctness"), [Exchange.of(candidate.row) for candidate in candidates])
    return {
        id(candidate): ("wrong final answer", f"{verdict.label}; gold {candidate.row.answer!r}"[:80])
        for candidate, verdict in zip(candidates, verdicts, strict=True)
        if verdict.score is not None and verdict.score < 1.0
    }


@cache
def template_check(folder: Path, trust_remote_code: bool = False) -> TemplateCheck:
    """A check that a model's chat template takes a row: its roles, and the end of each reply in a stop token."""
    from safework_cli.models.chat_template import encode_conversation, encode_prompt
    from safework_cli.models.load import template_of
    from safework_cli.models.processors import load_processor
    from safework_cli.models.rendering import TemplateError

    tokenizer, stops = template_of(folder, trust_remote_code=trust_remote_code)
    processors: list[Any] = []  # loaded at the first row with images: text is checked without

    def processor_for(row: Row) -> Any:
        if row.images and not processors:
            processors.append(load_processor(folder, trust_remote_code=trust_remote_code))
        return processors[0] if row.images else None

    def check(row: Row) -> Problem | None:
        try:
            if row.reply is None:
                encode_prompt(tokenizer, row.messages, row.images, processor_for(row))
            else:
                encode_conversation(tokenizer, row.messages, stops, None, row.images, processor_for(row))
        except TemplateError as error:
            return "refused by the chat template", error.what
        return None

    return check


def problem_of(candidate: Candidate, config: BuildConfig) -> Problem | None:
    """The first rule that a row breaks; None for a sound row."""
    row, subset = candidate.row, candidate.subset
    if candidate.problem:
        reason, _, detail = candidate.problem.partition(": ")
        return reason, detail
    if found := problems(row):
        return f"schema: {_PARTICULARS.sub('…', found[0])}", "; ".join(found)
    if bad := meta_problem(row.meta):
        return f"schema: {bad.split(' is ')[0]}", bad
    if "verdict" in row.meta:
        try:
            mark_of(row)
        except InputError as error:
            return "meta.verdict marks no word of the reply", f"{error.what}; {error.why}"
    length = sum(len(message["content"]) for message in row.messages)
    if length > config.max_characters:
        return "over-long", f"{length:,} characters"
    if config.languages and (language := row.meta.get("language") or language_of(row.question)) not in config.languages:
        return "other language", language
    if row.meta.get("answer_type") == "choice" and not _is_choice(row):
        return "answer is not one of the choices", repr(row.answer)[:60]
    if row.answer is not None and (bad := CorrectnessRule.gold_problem(Exchange.of(row, ""))):
        return "gold answer that no reply can be compared with", bad
    return _reply_problem(row, subset, config)


def _reply_problem(row: Row, subset: str, config: BuildConfig) -> Problem | None:
    reply = row.reply
    if reply is None:
        return ("no reply", "") if subset in config.require_reply or subset in config.require_thought else None
    parsed = parse_reply(reply)
    if parsed.format == "unclosed" or row.meta.get("finish_reason") == "length":
        return "truncated reply", "the thought is never closed" if parsed.format == "unclosed" else "generation stopped at its limit"
    if subset in config.require_thought and parsed.format != "ok":
        return "malformed thought", parsed.format
    if parsed.format == "empty_answer":
        return "empty reply", ""
    if subset in config.require_label and not row.meta.get("label"):
        return "no label", ""
    if subset in config.check_replies and row.harmful is not None and (kind := refusal_label(parsed.answer)) != "empty":
        if row.harmful and kind == "compliance":
            return "harmful prompt answered", "no refusing phrase"
        if not row.harmful and kind == "refusal":
            return "benign prompt refused", "a refusing phrase"
    return None


def _is_choice(row: Row) -> bool:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(row.meta.get("choices") or [])]
    return row.answer is not None and len(row.answer) == 1 and row.answer in letters


def with_whole_characters(candidate: Candidate) -> Candidate:
    """Puts U+FFFD for each lone surrogate (JSON's ``\\ud800`` makes one), which no file can hold; the row is counted."""
    row = candidate.row
    candidate.problem = _whole(candidate.problem)
    texts = [row.id, row.answer, row.category, row.source, row.licence, *(message["content"] for message in row.messages)]
    if not (any(map(_lone, texts)) or _any_lone(row.meta)):
        return candidate
    row.id, row.answer, row.category, row.source, row.licence = map(_whole, texts[:5])
    row.messages = [{"role": message["role"], "content": _whole(message["content"])} for message in row.messages]
    row.meta = _whole(row.meta)
    candidate.remarks = (*candidate.remarks, "lone surrogates are replaced by U+FFFD")
    return candidate


def _lone(text: object) -> bool:
    if not isinstance(text, str) or text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _any_lone(value: object) -> bool:
    if isinstance(value, dict):
        return any(_lone(key) or _any_lone(item) for key, item in value.items())
    if isinstance(value, list):
        return any(map(_any_lone, value))
    return _lone(value)


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_whole(key): _whole(item) for key, item in value.items()}
    return [_whole(item) for item in value] if isinstance(value, list) else value


def fill(candidate: Candidate) -> None:
    """Sets ``meta.language`` of a sound row where the source did not."""
    candidate.row.meta.setdefault("language", language_of(candidate.row.question))
