"""The 25 instructions of IFEval (arXiv 2311.07911), by the ids and arguments that its data use.

Written from the paper's descriptions and the behaviour of its published checker. Where that checker counts sentences and words with NLTK's
models, the counts here are by punctuation and by runs of letters (``constraints``); keywords are text here, and patterns there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

Arguments = Mapping[str, Any]

_HIGHLIGHT = re.compile(r"\*\*(?P<two>[^\n*]*)\*\*|\*(?P<one>[^\n*]*)\*")
_BULLET = re.compile(r"^\s*(?:\*[^*]|-).*$", re.MULTILINE)
_FENCE = re.compile(r"^```(?:json)?\s*|\s*```$", re.IGNORECASE)
_FIRST_WORD = re.compile(r"^[\s'\"“‘(\[]*([^\s.,?!'\"”’)\]]+)")


def _compare(count: int, relation: str, wanted: int) -> bool:
    if relation == "at least":
        return count >= wanted
    if relation == "less than":
        return count < wanted
    raise ValueError(f"relation '{relation}' is neither 'at least' nor 'less than'")


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def _sentences(text: str) -> int:
    from safework_cli.verifiers.rules.constraints import count_sentences

    return count_sentences(text)


@cache
def _detector() -> Callable[[str], str]:
    from langdetect import DetectorFactory, detect

    DetectorFactory.seed = 0  # its guess about a short text is a draw
    return detect


def _language(text: str) -> str | None:
    """The ISO code of a text, or None where it has no words to tell it by."""
    from langdetect import LangDetectException

    try:
        return _detector()(text)
    except LangDetectException:
        return None


def _is_json(text: str) -> bool:
    try:
        json.loads(_FENCE.sub("", text.strip()))
    except ValueError:
        return False
    return True


def _highlights(text: str) -> int:
    return sum(bool((match["two"] or match["one"] or "").strip()) for match in _HIGHLIGHT.finditer(text))


def _parts(text: str, separator: str) -> list[str] | None:
    """The parts between separators; empty ones may stand at either end alone, elsewhere None."""
    parts = [part.strip() for part in re.split(separator, text)]
    if any(not part for part in parts[1:-1]):
        return None
    return [part for part in parts if part]


def _two_responses(text: str, _: Arguments) -> bool:
    parts = _parts(text, r"\*{6}")
    return parts is not None and len(parts) == 2 and parts[0] != parts[1]


def _paragraphs(text: str, a: Arguments) -> bool:
    parts = _parts(text, r"\s?\*\*\*\s?")
    return parts is not None and len(parts) == a["num_paragraphs"]


def _nth_paragraph(text: str, a: Arguments) -> bool:
    paragraphs = [part for part in re.split(r"\n\n", text) if part.strip()]
    nth = a["nth_paragraph"]
    if len(paragraphs) != a["num_paragraphs"] or nth > len(paragraphs):
        return False
    first = _FIRST_WORD.match(paragraphs[nth - 1])
    return first is not None and first[1].lower() == a["first_word"].lower()


def _postscript(text: str, a: Arguments) -> bool:
    marker = a["postscript_marker"].strip()
    known = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return re.search(known.get(marker, re.escape(marker.lower())), text.lower()) is not None


def _keyword_count(text: str, keyword: str) -> int:
    return len(re.findall(re.escape(keyword), text, re.IGNORECASE))


def _quoted(text: str, _: Arguments) -> bool:
    stripped = text.strip()
    return len(stripped) > 1 and stripped[0] == '"' == stripped[-1]


IFEVAL: dict[str, Callable[[str, Arguments], bool]] = {
    "change_case:capital_word_frequency": lambda t, a: _compare(
        sum(word.isupper() for word in re.findall(r"[\w'-]+", t)), a["capital_relation"], a["capital_frequency"]
    ),
    "change_case:english_capital": lambda t, a: t.isupper() and _language(t.lower()) in ("en", None),
    "change_case:english_lowercase": lambda t, a: t.islower() and _language(t) in ("en", None),
    "combination:repeat_prompt": lambda t, a: t.strip().lower().startswith(a["prompt_to_repeat"].strip().lower()),
    "combination:two_responses": _two_responses,
    "detectable_content:number_placeholders": lambda t, a: len(re.findall(r"\[.*?\]", t)) >= a["num_placeholders"],
    "detectable_content:postscript": _postscript,
    "detectable_format:constrained_response": lambda t, a: any(f"My answer is {word}." in t for word in ("yes", "no", "maybe")),
    "detectable_format:json_format": lambda t, a: _is_json(t),
    "detectable_format:multiple_sections": lambda t, a: (
        len(re.findall(rf"\s?{re.escape(a['section_spliter'])}\s?\d+\s?", t)) >= a["num_sections"]
    ),
    "detectable_format:number_bullet_lists": lambda t, a: len(_BULLET.findall(t)) == a["num_bullets"],
    "detectable_format:number_highlighted_sections": lambda t, a: _highlights(t) >= a["num_highlights"],
    "detectable_format:title": lambda t, a: any(found.strip("<> ") for found in re.findall(r"<<[^\n]+>>", t)),
    "keywords:existence": lambda t, a: all(_keyword_count(t, word) for word in a["keywords"]),
    "keywords:forbidden_words": lambda t, a: (
        not any(re.search(rf"\b{re.escape(word)}\b", t, re.IGNORECASE) for word in a["forbidden_words"])
    ),
    "keywords:frequency": lambda t, a: _compare(_keyword_count(t, a["keyword"]), a["relation"], a["frequency"]),
    "keywords:letter_frequency": lambda t, a: _compare(t.lower().count(a["letter"].lower()), a["let_relation"], a["let_frequency"]),
    "language:response_language": lambda t, a: _language(t) in (a["language"], None),
    "length_constraints:nth_paragraph_first_word": _nth_paragraph,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_sentences": lambda t, a: _compare(_sentences(t), a["relation"], a["num_sentences"]),
    "length_constraints:number_words": lambda t, a: _compare(len(_words(t)), a["relation"], a["num_words"]),
    "punctuation:no_comma": lambda t, a: "," not in t,
    "startend:end_checker": lambda t, a: t.strip().strip('"').lower().endswith(a["end_phrase"].strip().lower()),
    "startend:quotation": _quoted,
}
"""By id: (final answer, arguments) → kept or not. A missing argument is a KeyError."""
