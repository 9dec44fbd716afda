"""Instructions whose keeping a program checks: every constraint of the rule verifier, those of IFEval with their ids and arguments among
them, and small edits of a given text with one right answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, NamedTuple

from safework_data.starter.tables import Item, Unit, dice, load

Topic = dict[str, Any]
ASKS = {"train": "ask", "dev": "ask_dev", "heldout": "ask_heldout"}
NUMBERS = {2: "two", 3: "three", 4: "four"}
STARTS = ("I think that", "In my view", "As far as I know", "Today I learned that", "People say that")
ENDS = ("That is all.", "Is there anything else I can help with?", "I hope this helps.", "Ask me for more.", "Any other questions?")
AVOIDED = ("very", "nice", "beautiful", "amazing", "really", "thing")
PLACEHOLDERS = (
    ("[name]", "[date]", "Dear [name], {sentence} We meet on [date]."),
    ("[place]", "[time]", "Come to [place] at [time]. {sentence}"),
    ("[recipient]", "[sender]", "To [recipient]: {sentence} From [sender]."),
)
SHORT_WORDS = "ant bear corn door egg fish gold hand iron jam kite lamp mud nest oak pear queen rope salt tent urn vase wall yarn zebra"
LONG_WORDS = (
    "banana candle dolphin elephant feather giraffe hammer island jacket kettle lantern mirror needle orange pepper rabbit saddle tunnel"
)
WORDS = [*SHORT_WORDS.split(), *LONG_WORDS.split()]
LANGUAGES = {"de": "German", "fr": "French", "es": "Spanish"}


class Built(NamedTuple):
    """What a builder makes of a topic.

    Attributes:
        reply: the right answer.
        constraints: what it is checked by; where there are none, it must equal ``reply``.
        slots: for the texts of the kind.
    """

    reply: str
    constraints: list[dict[str, Any]]
    slots: dict[str, Any]


def units(seed: int) -> list[Unit]:
    """Each kind of instruction about each topic in each phrasing; groups are the topics (and the questions with yes or no)."""
    parts = load("instructions_en")
    kinds: dict[str, dict[str, Any]] = parts["kinds"]
    found: list[Unit] = []
    for topic in load("topics_en"):
        for kind, texts in kinds.items():
            if kind in ASKED_OF_QUESTIONS:
                continue
            built = BUILDERS[kind](topic, dice(seed, "instruction", topic["word"], kind))
            if built is not None:
                slots = {"about": topic["about"], "word": topic["word"], **built.slots}
                requests = {side: [text.format(**slots) for text in asked] for side, asked in parts["requests"].items()}
                found += [[item] for item in _items(kind, texts, topic["word"], built, slots, requests=requests)]
    for number, (question, verdict, reason) in enumerate(load("questions_en")):
        for kind in ASKED_OF_QUESTIONS:
            built = _answered(kind, question, verdict, reason)
            found += [[item] for item in _items(kind, kinds[kind], f"question-{number:02d}", built, built.slots)]
    for number, topic in enumerate(load("topics_zh")):
        for kind, texts in load("instructions_zh").items():
            found += [[item] for item in _items(kind, texts, f"zh-{number:02d}", CHINESE[kind](topic), topic, "zh")]
    return found


def _items(
    kind: str,
    texts: dict[str, Any],
    name: str,
    built: Built,
    slots: Mapping[str, Any],
    language: str = "en",
    requests: Mapping[str, list[str]] | None = None,
) -> list[Item]:
    """The instruction in each of its phrasings.

    Args:
        requests: side → requests about the topic; one of them is drawn for each phrasing with the slot ``request``.
    """
    rng = dice(0, "request", name, kind)  # the same for every seed, which only draws from the items
    return [
        _item(
            f"{kind}-{side}-{number}",
            name,
            language,
            side,
            ask.format(request=rng.choice(requests[side]) if requests else "", **slots),
            texts["think"].format(**slots),
            built,
        )
        for side, asks in ASKS.items()
        for number, ask in enumerate(texts.get(asks, ()))
    ]


def _item(template: str, group: str, language: str, side: str, question: str, thought: str, built: Built) -> Item:
    return Item(
        key=f"instruction-{group}-{template}",
        task="general",
        group=f"general-instruction-{group}",
        category="instruction" if built.constraints else "edit",
        language=language,
        form="instruction",
        template=f"instruction-{language}-{template}",
        side=side,
        question=question,
        thought=thought,
        reply=built.reply,
        answer=None if built.constraints else built.reply,
        meta={"answer_type": "constraints", "constraints": built.constraints} if built.constraints else {"answer_type": "exact"},
    )


def _text(topic: Topic, count: int = 1) -> str:
    return " ".join(topic["sentences"][:count])


def _count(text: str) -> int:
    return len(re.findall(r"\w+", text))


def _lowered(text: str) -> str:
    """A sentence that another one's beginning is put before; the pronoun I and names of months keep their capital."""
    return text if text.startswith("I ") else text[0].lower() + text[1:]


def _max_words(topic: Topic, rng: Random, kind: str) -> Built:
    reply = _text(topic)
    limit = _count(reply) + rng.randint(1, 6)
    relation: dict[str, Any] = {"type": "max_words", "n": limit}
    if kind == "less":
        relation = {"id": "length_constraints:number_words", "relation": "less than", "num_words": limit}
    return Built(reply, [relation], {"n": limit, "count": _count(reply)})


def _min_words(topic: Topic, rng: Random) -> Built:
    reply = _text(topic, 3)
    limit = _count(reply) - rng.randint(1, 8)
    checks: list[dict[str, Any]] = [
        {"id": "length_constraints:number_words", "relation": "at least", "num_words": limit},
        {"type": "min_words", "n": limit},
    ]
    return Built(reply, checks, {"n": limit, "count": _count(reply)})


def _keywords(topic: Topic, rng: Random) -> Built:
    other = max(re.findall(r"[a-z]+", topic["sentences"][2]), key=len)
    reply = f"{topic['sentences'][0]} {topic['sentences'][2]}"
    return Built(reply, [{"id": "keywords:existence", "keywords": [topic["word"], other]}], {"other": other})


def _forbidden(topic: Topic, rng: Random) -> Built:
    reply = _text(topic, rng.choice((1, 2)))
    avoid = rng.choice([word for word in AVOIDED if word not in reply.lower()])
    checks: list[dict[str, Any]] = [{"id": "keywords:forbidden_words", "forbidden_words": [avoid]}, {"type": "not_contains", "text": avoid}]
    return Built(reply, checks, {"avoid": avoid})


def _letter(topic: Topic, rng: Random) -> Built:
    reply = _text(topic)
    letter = rng.choice([name for name in "aeiorst" if reply.lower().count(name) >= 2])
    count = reply.lower().count(letter)
    limit = rng.randint(2, count)
    check = {"id": "keywords:letter_frequency", "letter": letter, "let_relation": "at least", "let_frequency": limit}
    return Built(reply, [check], {"letter": letter, "n": limit, "count": count})


def _starts(topic: Topic, rng: Random) -> Built:
    start = rng.choice(STARTS)
    comma = "" if start.endswith("that") else ","
    return Built(f"{start}{comma} {_lowered(_text(topic))}", [{"type": "starts_with", "text": start}], {"start": start})


def _ends(topic: Topic, rng: Random) -> Built:
    end = rng.choice(ENDS)
    checks = [{"id": "startend:end_checker", "end_phrase": end}, {"type": "ends_with", "text": end}]
    return Built(f"{_text(topic)} {end}", checks, {"end": end})


def _bullets(topic: Topic, rng: Random, mark: str = "-", *, lower: bool = False) -> Built:
    count = rng.choice((2, 3, 4))
    lines = "\n".join(f"{mark} {line}" for line in topic["bullets"][:count])
    checks: list[dict[str, Any]] = [{"id": "detectable_format:number_bullet_lists", "num_bullets": count}, {"type": "bullets", "n": count}]
    if lower:
        checks.append({"type": "lowercase"})
    return Built(lines.lower() if lower else lines, checks, {"number": NUMBERS[count]})


def _no_commas(topic: Topic, rng: Random) -> Built:
    return Built(_text(topic, 2), [{"id": "punctuation:no_comma"}, {"type": "no_commas"}], {})


def _sentences(topic: Topic, rng: Random) -> Built:
    count = rng.choice((2, 3))
    return Built(_text(topic, count), [{"type": "sentences", "n": count}], {"number": NUMBERS[count]})


def _more_sentences(topic: Topic, rng: Random) -> Built:
    count = rng.choice((2, 3))
    check = {"id": "length_constraints:number_sentences", "relation": "at least", "num_sentences": count}
    return Built(_text(topic, count), [check], {"n": count})


def _capital_words(topic: Topic, rng: Random) -> Built:
    reply = re.sub(rf"\b{topic['word']}\b", topic["word"].upper(), _text(topic, 2))
    check = {"id": "change_case:capital_word_frequency", "capital_relation": "at least", "capital_frequency": 2}
    return Built(reply, [check], {"n": 2, "word": topic["word"].upper()})


def _repeat(topic: Topic, rng: Random) -> Built:
    prompt = f"Write one sentence about {topic['about']}."
    return Built(f"{prompt}\n{_text(topic)}", [{"id": "combination:repeat_prompt", "prompt_to_repeat": prompt}], {"prompt": prompt})


def _two_responses(topic: Topic, rng: Random) -> Built:
    return Built(f"{topic['sentences'][0]}\n******\n{topic['sentences'][1]}", [{"id": "combination:two_responses"}], {})


def _placeholders(topic: Topic, rng: Random) -> Built:
    first, second, text = rng.choice(PLACEHOLDERS)
    count = rng.choice((1, 2))
    check = {"id": "detectable_content:number_placeholders", "num_placeholders": count}
    return Built(text.format(sentence=_text(topic)), [check], {"n": count, "shown": f"{first} and {second}"})


def _postscript(topic: Topic, rng: Random) -> Built:
    marker = rng.choice(("P.S.", "P.P.S"))
    reply = f"{topic['sentences'][0]}\n{marker} {topic['sentences'][1]}"
    return Built(reply, [{"id": "detectable_content:postscript", "postscript_marker": marker}], {"marker": marker})


def _json(topic: Topic, rng: Random) -> Built:
    return Built(f'{{"topic": "{topic["word"]}", "sentence": "{_text(topic)}"}}', [{"id": "detectable_format:json_format"}], {})


def _sections(topic: Topic, rng: Random) -> Built:
    splitter, count = rng.choice(("SECTION", "Section", "PART", "Day")), rng.choice((2, 3))
    reply = "\n".join(f"{splitter} {number}\n{sentence}" for number, sentence in enumerate(topic["sentences"][:count], start=1))
    check = {"id": "detectable_format:multiple_sections", "section_spliter": splitter, "num_sections": count}
    return Built(reply, [check], {"splitter": splitter, "n": count})


def _highlights(topic: Topic, rng: Random) -> Built:
    reply = re.sub(rf"\b{topic['word']}\b", f"*{topic['word']}*", _text(topic, 2))
    count = rng.choice((1, 2))
    return Built(reply, [{"id": "detectable_format:number_highlighted_sections", "num_highlights": count}], {"n": count})


def _title(topic: Topic, rng: Random) -> Built:
    title = rng.choice(("On {}", "All about {}", "A word on {}", "What I know of {}")).format(topic["about"])
    return Built(f"<<{title}>>\n{_text(topic)}", [{"id": "detectable_format:title"}], {})


def _language(topic: Topic, rng: Random) -> Built | None:
    known = [name for name in LANGUAGES if name in topic]
    if not known:
        return None
    name = rng.choice(known)
    return Built(topic[name], [{"id": "language:response_language", "language": name}], {"language": LANGUAGES[name]})


def _paragraphs(topic: Topic, rng: Random) -> Built:
    count = rng.choice((2, 3))
    reply = "\n***\n".join(topic["sentences"][:count])
    return Built(reply, [{"id": "length_constraints:number_paragraphs", "num_paragraphs": count}], {"n": count})


def _first_word(topic: Topic, rng: Random) -> Built:
    second = rng.choice(topic["sentences"][1:])
    first = re.findall(r"[\w']+", second)[0]
    check = {"id": "length_constraints:nth_paragraph_first_word", "num_paragraphs": 2, "nth_paragraph": 2, "first_word": first.lower()}
    return Built(f"{topic['sentences'][0]}\n\n{second}", [check], {"first": first})


def _replace(topic: Topic, rng: Random) -> Built:
    text, new = topic["sentences"][1], rng.choice(WORDS)
    old = rng.choice([word for word in re.findall(r"\b[a-z]{4,}\b", text) if text.count(word) == 1])
    return Built(text.replace(old, new), [], {"old": old, "new": new, "text": text})


def _sort(topic: Topic, rng: Random) -> Built:
    words: list[str] = []
    for word in rng.sample(WORDS, len(WORDS)):
        if all(word[0] != other[0] for other in words) and len(words) < 3:
            words.append(word)
    ordered = sorted(words)
    slots = {"words": ", ".join(words), "letters": ", ".join(word[0] for word in words), "sorted": ", ".join(word[0] for word in ordered)}
    return Built(", ".join(ordered), [], slots)


def _longest(topic: Topic, rng: Random) -> Built:
    words = [*rng.sample(SHORT_WORDS.split(), 2), rng.choice(LONG_WORDS.split())]
    rng.shuffle(words)
    return Built(max(words, key=len), [], {"words": ", ".join(words), "lengths": ", ".join(f"{word} {len(word)}" for word in words)})


def _reverse(topic: Topic, rng: Random) -> Built:
    words = rng.sample(WORDS, 3)
    ordered = ", ".join(reversed(words))
    return Built(ordered, [], {"words": ", ".join(words), "reversed": ordered})


def _count_words(topic: Topic, rng: Random) -> Built:
    words = rng.sample(WORDS, rng.choice((2, 3, 4, 5)))
    counted = ", ".join(f"{word} {number}" for number, word in enumerate(words, start=1))
    return Built(str(len(words)), [], {"words": ", ".join(words), "counted": counted})


def _join(topic: Topic, rng: Random) -> Built:
    words = rng.sample(WORDS, rng.choice((2, 3, 4)))
    return Built("\n".join(f"- {word}" for word in words), [], {"words": ", ".join(words)})


def _answered(kind: str, question: str, verdict: str, reason: str) -> Built:
    """The reply to a question with yes or no."""
    slots = {"question": question, "reason": reason, "start": verdict.title()}
    if kind == "constrained":
        options = [f"My answer is {verdict}."]
        return Built(options[0], [{"id": "detectable_format:constrained_response"}, {"type": "contains", "text": options[0]}], slots)
    return Built(f"{verdict.title()}. {reason}", [{"type": "starts_with", "text": verdict.title()}], slots)


ASKED_OF_QUESTIONS = ("constrained", "yes-no")
LOWER, UPPER = {"type": "lowercase"}, {"type": "uppercase"}
BUILDERS: dict[str, Callable[[Topic, Random], Built | None]] = {
    "lowercase": lambda t, r: Built(_text(t).lower(), [LOWER], {}),
    "uppercase": lambda t, r: Built(_text(t).upper(), [UPPER], {}),
    "english-lower": lambda t, r: Built(_text(t, 2).lower(), [{"id": "change_case:english_lowercase"}], {}),
    "english-upper": lambda t, r: Built(_text(t, 3).upper(), [{"id": "change_case:english_capital"}], {}),
    "max-words": lambda t, r: _max_words(t, r, "most"),
    "less-words": lambda t, r: _max_words(t, r, "less"),
    "min-words": _min_words,
    "contains": lambda t, r: Built(t["sentences"][r.randint(0, 1)], [{"type": "contains", "text": t["word"]}], {}),
    "keywords": _keywords,
    "forbidden": _forbidden,
    "twice": lambda t, r: Built(
        _text(t, 2), [{"id": "keywords:frequency", "keyword": t["word"], "frequency": 2, "relation": "at least"}], {}
    ),
    "letter": _letter,
    "starts": _starts,
    "ends": _ends,
    "exclaim": lambda t, r: Built(_text(t)[:-1] + "!", [{"type": "ends_with", "text": "!"}], {}),
    "bullets": _bullets,
    "stars": lambda t, r: _bullets(t, r, "*"),
    "no-commas": _no_commas,
    "sentences": _sentences,
    "more-sentences": _more_sentences,
    "capital-words": _capital_words,
    "repeat": _repeat,
    "two-responses": _two_responses,
    "placeholders": _placeholders,
    "postscript": _postscript,
    "json": _json,
    "sections": _sections,
    "highlights": _highlights,
    "title": _title,
    "language": _language,
    "paragraphs": _paragraphs,
    "first-word": _first_word,
    "quoted": lambda t, r: Built(f'"{_text(t)}"', [{"id": "startend:quotation"}], {}),
    "lower-short": lambda t, r: Built(_text(t).lower(), [LOWER, {"type": "max_words", "n": 14}], {"n": 14, "count": _count(_text(t))}),
    "loud": lambda t, r: Built(_text(t)[:-1].upper() + "!", [UPPER, {"type": "ends_with", "text": "!"}], {}),
    "bullets-lower": lambda t, r: _bullets(t, r, lower=True),
    "word-no-comma": lambda t, r: Built(
        t["sentences"][1], [{"id": "punctuation:no_comma"}, {"id": "keywords:existence", "keywords": [t["word"]]}], {}
    ),
    "copy": lambda t, r: Built(t["sentences"][2], [], {"text": t["sentences"][2]}),
    "first": lambda t, r: Built(
        t["sentences"][2].split()[0], [], {"text": t["sentences"][2], "start": " ".join(t["sentences"][2].split()[:3])}
    ),
    "last": lambda t, r: Built(
        t["sentences"][3].split()[-1].strip("."), [], {"text": t["sentences"][3], "end": " ".join(t["sentences"][3].split()[-3:])}
    ),
    "replace": _replace,
    "sort": _sort,
    "longest": _longest,
    "join": _join,
    "reverse": _reverse,
    "count-words": _count_words,
    "upper-word": lambda t, r: Built(t["word"].upper(), [], {"upper": t["word"].upper()}),
    "lower-word": lambda t, r: Built(t["word"], [], {"upper": t["word"].upper()}),
    "plain": lambda t, r: Built(t["sentences"][r.randint(0, 1)], [{"type": "contains", "text": t["word"]}], {}),
}
"""By kind, as in instructions_en.yaml. A builder returns None where the topic lacks what the kind needs."""

CHINESE: dict[str, Callable[[Topic], Built]] = {
    "contains": lambda t: Built(t["sentence"], [{"type": "contains", "text": t["word"]}], {}),
    "short": lambda t: Built(t["sentence"], [{"type": "max_words", "n": 20}], {}),
    "exclaim": lambda t: Built(t["sentence"][:-1] + "！", [{"type": "ends_with", "text": "！"}], {}),
    "three": lambda t: Built("\n".join(f"- {line}" for line in t["bullets"][:3]), [{"type": "bullets", "n": 3}], {}),
    "two": lambda t: Built("\n".join(f"- {line}" for line in t["bullets"][:2]), [{"type": "bullets", "n": 2}], {}),
    "no-comma": lambda t: Built(t["sentence"], [{"type": "no_commas"}, {"type": "contains", "text": t["word"]}], {}),
}
"""By kind, as in instructions_zh.yaml."""
