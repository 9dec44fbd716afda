"""The 25 instructions of IFEval (arXiv 2311.07911), by the ids and arguments that its data use, and its strict and loose reading.

Written to the definitions of the published checker, in time linear in the reply. Sentences and the words of ``capital_word_frequency`` are
those of NLTK's Punkt and Treebank tokenizers, as there. NLTK's trained parameters for English are a download of their own: in their place
stand the abbreviations and sentence starters below, written for this module. Keywords are text here, and patterns there; a letter that is
none of a–z ("#") is counted here, and replaced by a random one there. langdetect is seeded.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from itertools import islice
from typing import Any

Arguments = Mapping[str, Any]

_FENCES = ("```json", "```Json", "```JSON", "```")
_ABBREVIATIONS = (
    "mr mrs ms dr prof st jr sr messrs gen col maj lt adm sen rep reps inc ltd co corp bros cie ave ft vs "
    "jan feb aug sep sept oct nov dec "
    "tues wed fri a.m p.m u.s u.k u.n u.s.a u.s.s.r d.c n.y n.j n.c s.c n.h n.m w.va l.a ph.d m.b.a a.d ala ariz calif "
    "colo conn fla ga ill "
    "kan ky mich minn nev okla ore pa tenn va vt wash wis yr mg"
)
"""Without the full stop, as Punkt's published model for English takes them: it ends a sentence at "e.g." and "etc."."""
_MAX_CHARACTERS = 40_000
"""Of a reply in which sentences are counted: far more than any instruction asks for."""
_INITIALS = "cdefghklmnprstvw"
_STARTERS = (
    "the this these he it they i there in if when while although though since but so yet nor however moreover meanwhile instead "
    "indeed thus "
    "many most some both even despite under among according"
)


def _compare(count: int, relation: str, wanted: int) -> bool:
    if relation == "at least":
        return count >= wanted
    if relation == "less than":
        return count < wanted
    raise ValueError(f"relation '{relation}' is neither 'at least' nor 'less than'")


@cache
def _punkt() -> Any:
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    parameters = PunktParameters()
    parameters.abbrev_types = {*_ABBREVIATIONS.split(), *_INITIALS}
    parameters.sent_starters = set(_STARTERS.split())
    return PunktSentenceTokenizer(parameters)


def sentences(text: str) -> list[str]:
    """The sentences of an English text, by Punkt (Kiss and Strunk 2006)."""
    return list(_punkt().tokenize(text))


def _sentences_up_to(text: str, limit: int) -> int:
    """How many sentences a text has, or ``limit`` where it has more."""
    return sum(1 for _ in islice(_punkt().span_tokenize(text[:_MAX_CHARACTERS]), limit))


def _capital_words(text: str) -> int:
    """Words of the Treebank tokenizer that are all in capitals. It splits at spaces first, so that each stretch is split once."""
    from nltk.tokenize.destructive import NLTKWordTokenizer

    words = NLTKWordTokenizer()
    stretches = Counter(part[start : start + 500] for part in text.split() for start in range(0, len(part), 500))
    return sum(
        count * sum(word.isupper() for word in words.tokenize(part)) for part, count in stretches.items() if any(map(str.isupper, part))
    )


@cache
def _detector() -> Callable[[str], str]:
    from langdetect import DetectorFactory, detect

    DetectorFactory.seed = 0  # its guess about a short text is a draw
    return detect


def _in_language(text: str, language: str) -> bool:
    """A text without words to tell its language by is in every language."""
    from langdetect import LangDetectException

    try:
        return _detector()(text) == language
    except LangDetectException:
        return True


def _is_json(text: str) -> bool:
    plain = text.strip()
    for fence in _FENCES:
        plain = plain.removeprefix(fence)
    try:
        json.loads(plain.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _placeholders(text: str) -> int:
    """Pairs of square brackets on one line; the first that closes ends the first that is open."""
    count = 0
    for line in text.split("\n"):
        place = line.find("[")
        while place >= 0 and (end := line.find("]", place)) >= 0:
            count, place = count + 1, line.find("[", end)
    return count


def _bullets(text: str) -> int:
    """Lines that begin with a dash, and lines that begin with one asterisk; a lone asterisk takes the next line along."""
    lines = text.split("\n")
    count, taken = 0, False
    for number, line in enumerate(lines):
        head = line.lstrip()
        count += head.startswith("-")
        if taken:
            taken = False
        elif head == "*":
            taken = number + 1 < len(lines)
            count += taken
        else:
            count += head.startswith("*") and not head.startswith("**")
    return count


def _highlights(text: str) -> int:
    single, double = re.findall(r"\*[^\n*]*\*", text), re.findall(r"\*\*[^\n*]*\*\*", text)
    return sum(bool(found.strip("*").strip()) for found in single) + sum(bool(found[2:-2].strip()) for found in double)


def _has_title(text: str) -> bool:
    for line in text.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if start >= 0 and end >= start + 3 and line[start : end + 2].lstrip("<").rstrip(">").strip():
            return True
    return False


def _parts(text: str, separator: str) -> list[str] | None:
    """The parts between separators; empty ones may stand at either end only, elsewhere None."""
    parts = [part.strip() for part in text.split(separator)]
    return None if any(not part for part in parts[1:-1]) else [part for part in parts if part]


def _two_responses(text: str, _: Arguments) -> bool:
    parts = _parts(text, "******")
    return parts is not None and len(parts) == 2 and parts[0] != parts[1]


def _paragraphs(text: str, a: Arguments) -> bool:
    parts = _parts(text, "***")
    return parts is not None and len(parts) == a["num_paragraphs"]


def _nth_paragraph(text: str, a: Arguments) -> bool:
    paragraphs = text.split("\n\n")
    filled, nth = sum(bool(part.strip()) for part in paragraphs), a["nth_paragraph"]
    if nth > filled or filled != a["num_paragraphs"] or not (words := paragraphs[nth - 1].split(maxsplit=1)):
        return False
    first = re.split(r"[.,?!'\"]", words[0].lstrip("'").lstrip('"'), maxsplit=1)[0]
    return first.lower() == a["first_word"].lower()


def _postscript(text: str, a: Arguments) -> bool:
    marker = a["postscript_marker"].strip()
    known = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return re.search(known.get(marker, re.escape(marker.lower())), text.lower()) is not None


def _keyword_count(text: str, keyword: str) -> int:
    return len(re.findall(re.escape(keyword.strip()), text, re.IGNORECASE))


def _quoted(text: str, _: Arguments) -> bool:
    stripped = text.strip()
    return len(stripped) > 1 and stripped[0] == '"' == stripped[-1]


IFEVAL: dict[str, Callable[[str, Arguments], bool]] = {
    "change_case:capital_word_frequency": lambda t, a: _compare(_capital_words(t), a["capital_relation"], a["capital_frequency"]),
    "change_case:english_capital": lambda t, a: t.isupper() and _in_language(t, "en"),
    "change_case:english_lowercase": lambda t, a: t.islower() and _in_language(t, "en"),
    "combination:repeat_prompt": lambda t, a: t.strip().lower().startswith(a["prompt_to_repeat"].strip().lower()),
    "combination:two_responses": _two_responses,
    "detectable_content:number_placeholders": lambda t, a: _placeholders(t) >= a["num_placeholders"],
    "detectable_content:postscript": _postscript,
    "detectable_format:constrained_response": lambda t, a: any(f"My answer is {word}." in t for word in ("yes", "no", "maybe")),
    "detectable_format:json_format": lambda t, a: _is_json(t),
    "detectable_format:multiple_sections": lambda t, a: (
        len(re.findall(rf"{re.escape(a['section_spliter'].strip())}\s?\d+", t)) >= a["num_sections"]
    ),
    "detectable_format:number_bullet_lists": lambda t, a: _bullets(t) == a["num_bullets"],
    "detectable_format:number_highlighted_sections": lambda t, a: _highlights(t) >= a["num_highlights"],
    "detectable_format:title": lambda t, a: _has_title(t),
    "keywords:existence": lambda t, a: all(re.search(re.escape(word), t, re.IGNORECASE) for word in a["keywords"]),
    "keywords:forbidden_words": lambda t, a: (
        not any(re.search(rf"\b{re.escape(word)}\b", t, re.IGNORECASE) for word in a["forbidden_words"])
    ),
    "keywords:frequency": lambda t, a: _compare(_keyword_count(t, a["keyword"]), a["relation"], a["frequency"]),
    "keywords:letter_frequency": lambda t, a: _compare(t.lower().count(a["letter"].strip().lower()), a["let_relation"], a["let_frequency"]),
    "language:response_language": lambda t, a: _in_language(t, a["language"]),
    "length_constraints:nth_paragraph_first_word": _nth_paragraph,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_sentences": lambda t, a: _compare(
        _sentences_up_to(t, a["num_sentences"]), a["relation"], a["num_sentences"]
    ),
    "length_constraints:number_words": lambda t, a: _compare(len(re.findall(r"\w+", t)), a["relation"], a["num_words"]),
    "punctuation:no_comma": lambda t, a: "," not in t,
    "startend:end_checker": lambda t, a: t.strip().strip('"').lower().endswith(a["end_phrase"].strip().lower()),
    "startend:quotation": _quoted,
}
"""By id: (final answer, arguments) → kept or not. A missing argument is a KeyError."""


def loose_readings(answer: str) -> list[str]:
    """The eight texts of which one must keep an instruction in the loose reading: with and without asterisks, with and without the first
    and the last line. The first is the answer itself."""
    lines = answer.split("\n")
    cut = ["\n".join(lines[1:]).strip(), "\n".join(lines[:-1]).strip(), "\n".join(lines[1:-1]).strip()]
    return [answer, answer.replace("*", ""), *cut, *(text.replace("*", "") for text in cut)]


def kept(answer: str, constraint: Arguments, *, loose: bool = False) -> bool:
    """Whether an answer keeps an instruction, ``{"id": …, its arguments}``. A text without anything in it keeps none.

    Raises:
        KeyError: the id or an argument is missing.
        ValueError: an argument has no meaning.
    """
    check = IFEVAL[constraint["id"]]
    readings = dict.fromkeys(loose_readings(answer)) if loose else [answer]
    return any(bool(text.strip()) and check(text, constraint) for text in readings)


NUMBERS = ("prompt_level_strict_accuracy", "inst_level_strict_accuracy", "prompt_level_loose_accuracy", "inst_level_loose_accuracy")
"""What IFEval publishes: the share of prompts all of whose instructions are kept, and of instructions, by either reading."""


def published(answers: list[tuple[str, list[Arguments]]]) -> dict[str, float]:
    """The four published numbers of answers with their instructions; empty where there are none."""
    rates: dict[str, float] = {}
    for loose in (False, True):
        verdicts = [[kept(answer, constraint, loose=loose) for constraint in constraints] for answer, constraints in answers]
        single = [verdict for each in verdicts for verdict in each]
        if single:
            prompt, instruction = NUMBERS[2 * loose : 2 * loose + 2]
            rates |= {prompt: sum(map(all, verdicts)) / len(verdicts), instruction: sum(single) / len(single)}
    return rates
