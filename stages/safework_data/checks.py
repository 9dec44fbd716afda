"""Whether one row, looked at alone, may stay."""

from __future__ import annotations

import re

from safework_cli.rows import Row, language_of, parse_reply, problems
from safework_data.drops import Candidate
from safework_data.settings import BuildConfig

_PARTICULARS = re.compile(r"'[^']*'|\d+")


def fault_of(candidate: Candidate, config: BuildConfig) -> tuple[str, str] | None:
    """The first rule that a row breaks, as (reason, detail); None for a sound row. Reasons are few and countable, details are not."""
    row, subset = candidate.row, candidate.subset
    if candidate.fault:
        reason, _, detail = candidate.fault.partition(": ")
        return reason, detail
    if unencodable(row):
        return "not valid Unicode", "a lone surrogate, which no file can hold"
    if found := problems(row):
        return f"schema: {_PARTICULARS.sub('…', found[0])}", "; ".join(found)
    length = sum(len(message["content"]) for message in row.messages)
    if length > config.max_characters:
        return "over-long", f"{length:,} characters"
    if config.languages and (language := row.meta.get("language") or language_of(row.question)) not in config.languages:
        return "other language", language
    if row.meta.get("answer_type") == "choice" and not _is_choice(row):
        return "answer is not one of the choices", repr(row.answer)[:60]
    return _reply_fault(row, subset, config)


def _reply_fault(row: Row, subset: str, config: BuildConfig) -> tuple[str, str] | None:
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
    return None


def _is_choice(row: Row) -> bool:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(row.meta.get("choices") or [])]
    return row.answer is not None and len(row.answer) == 1 and row.answer in letters


def unencodable(row: Row) -> bool:
    """Whether some text of the row cannot be written as UTF-8 (JSON's ``\\ud800`` alone makes such a text)."""
    texts = [row.id, row.answer, row.category, row.source, row.licence, *(message["content"] for message in row.messages)]
    return any(_surrogate(text) for text in texts) or _any_surrogate(row.meta)


def _surrogate(text: object) -> bool:
    if not isinstance(text, str) or text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _any_surrogate(value: object) -> bool:
    if isinstance(value, dict):
        return any(_surrogate(key) or _any_surrogate(item) for key, item in value.items())
    if isinstance(value, list):
        return any(map(_any_surrogate, value))
    return _surrogate(value)


def settle(candidate: Candidate) -> None:
    """Sets ``meta.language`` of a sound row where the source did not."""
    candidate.row.meta.setdefault("language", language_of(candidate.row.question))
