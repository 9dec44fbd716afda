"""The invented world of the search tasks: passages that no model has read, and questions whose answers they hold.

A cluster is a town, a person born there, what that person founded, and a place nearby. It is the group of all its questions, so that no
fact is asked on both sides of a split.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any, NamedTuple

from safework_data.starter.tables import load, upper_first

KINDS = ("town", "person", "institute", "feature")

TEXTS: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "town": (
            "{town} is a town of {region} on the river {river}. It was founded in {founded} and grew by trade with the villages around it. "
            "Today it is known for its {product}, which merchants carry to distant markets. "
            "Every {month} the people hold a festival called {festival}. {town_colour}",
            "The river {river} runs through {town}, an old town of {region}. Records say that settlers founded it in {founded}. "
            "Travellers come mainly for its {product}, sold at a market beside the water. "
            "A festival named {festival} takes place there each {month}. {town_colour}",
        ),
        "person": (
            "{person} was {a_job} who was born in {town} in {born}. {she} is best remembered for the work {work}, which appeared in "
            "{year}. {person_colour} {she} also founded the {institute} and left all notes and letters to it.",
            "Born in {born} in the town of {town}, {person} became {a_job}. Fame came with {work}, published in {year} after long years of "
            "work. {person_colour} The {institute} was founded by the same hand and still keeps the first drafts.",
        ),
        "institute": (
            "The {institute} stands in the city of {city} and was opened in {opened}. It was founded by {person} and is devoted to the "
            "study of {subject}. {institute_colour} About two hundred visitors come each month, and guides show them the oldest rooms.",
            "In {opened} {person} founded the {institute} in the city of {city}. Its teachers and guests study {subject} above all. "
            "{institute_colour} The house is open to the public on Sundays and asks no entrance fee.",
        ),
        "feature": (
            "{feature} is a {kind} near {town}, a town of {region}. It is {size}. Naturalists visit it for its {animal}, which are found "
            "nowhere else. {feature_colour} A path with wooden signs leads there from the town in about three hours.",
            "Near the town of {town} lies {feature}, a {kind} that is {size}. Its best known inhabitants are {animal}, which are found "
            "nowhere else. {feature_colour} Guides from the town lead small groups there in the warm months.",
        ),
    },
    "zh": {
        "town": (
            "{town}位于{region}，{river}从旁边流过。这里始建于{founded}，靠与周围村庄的贸易逐渐兴旺。如今当地以{product}闻名，商人把它运到很远的集市。"
            "每年{month}，人们都要举办{festival}。{town_colour}",
            "{river}穿过{region}的{town}。据记载，{town}始建于{founded}。游客多半为了当地的{product}而来，河边的集市上就能买到。"
            "{festival}在每年{month}举行。{town_colour}",
        ),
        "person": (
            "{person}是一位{job}，{born}出生于{town}。{she}最有名的作品是{work}，{year}问世。{person_colour}{she}还创办了{institute}，并把全部手稿留给了那里。",
        ),
        "institute": (
            "{institute}位于{city}，{opened}开放，由{person}创办，专门研究{subject}。{institute_colour}每个月大约有两百人前来参观，向导会带他们看最古老的房间。",
        ),
        "feature": (
            "{feature}是{town}附近的一处{kind}，{size}。这里最有名的动物是{animal}，别的地方都见不到。{feature_colour}沿着有木牌的小路，从{town}走过去大约要三个小时。",
        ),
    },
}
ABSTRACTS = {
    "en": {
        "town": "{town} is a town of {region}.",
        "person": "{person} was {a_job} born in {town}.",
        "institute": "The {institute} is a place of study in {city}.",
        "feature": "{feature} is a {kind} near {town}.",
    },
    "zh": {
        "town": "{town}是{region}的一个地方。",
        "person": "{person}是出生于{town}的{job}。",
        "institute": "{institute}是{city}的一处研究场所。",
        "feature": "{feature}是{town}附近的{kind}。",
    },
}


class Asked(NamedTuple):
    """A question form. ``words`` are what a sensible search adds to the subject's name."""

    name: str
    subject: str
    fact: str
    text: str
    words: str


ONE_HOP = {
    "en": (
        Asked("river", "town", "river", "Which river runs through {town}?", "river"),
        Asked("founded", "town", "founded", "In which year was {town} founded?", "founded"),
        Asked("product", "town", "product", "Which product is the town of {town} known for?", "known for"),
        Asked("festival", "town", "festival", "What is the festival of {town} called?", "festival"),
        Asked("month", "town", "month", "In which month does {town} hold its festival?", "festival month"),
        Asked("born", "person", "born", "In which year was {person} born?", "born"),
        Asked("work", "person", "work", "Which work is {person} best known for?", "work"),
        Asked("year", "person", "year", "In which year did {person} publish {work}?", "{work}"),
        Asked("institute", "person", "institute", "Which institution did {person} found?", "founded"),
        Asked("founder", "institute", "person", "Who founded the {institute}?", "founder"),
        Asked("opened", "institute", "opened", "In which year was the {institute} founded?", "founded"),
        Asked("subject", "institute", "subject", "What is studied at the {institute}?", "study"),
        Asked("size", "feature", "measure", "How {dimension} is {feature}?", "{dimension}"),
        Asked("animal", "feature", "animal", "Which rare animals are found at {feature}?", "animals"),
    ),
    "zh": (
        Asked("river", "town", "river", "哪条河流经{town}？", "河"),
        Asked("founded", "town", "founded", "{town}始建于哪一年？", "始建"),
        Asked("product", "town", "product", "{town}以什么特产闻名？", "特产"),
        Asked("festival", "town", "festival", "{town}每年举办的节日叫什么？", "节日"),
        Asked("month", "town", "month", "{town}的{festival}在几月举行？", "{festival}"),
        Asked("born", "person", "born", "{person}出生于哪一年？", "出生"),
        Asked("work", "person", "work", "{person}最有名的作品是什么？", "作品"),
        Asked("institute", "person", "institute", "{person}创办了什么机构？", "创办"),
        Asked("founder", "institute", "person", "{institute}是谁创办的？", "创办"),
        Asked("opened", "institute", "opened", "{institute}是哪一年开放的？", "开放"),
        Asked("subject", "institute", "subject", "{institute}专门研究什么？", "研究"),
        Asked("size", "feature", "measure", "{feature}有多{dimension}？", "{dimension}"),
        Asked("animal", "feature", "animal", "{feature}最有名的动物是什么？", "动物"),
    ),
}
TWO_HOP = {
    "en": (
        Asked("birthplace", "institute", "town", "Where was the founder of the {institute} born?", "founder"),
        Asked("home-river", "person", "river", "Which river runs through the town where {person} was born?", "born"),
        Asked("home-product", "person", "product", "Which product is the town where {person} was born known for?", "born"),
    ),
    "zh": (
        Asked("birthplace", "institute", "town", "{institute}的创办人出生在哪里？", "创办"),
        Asked("home-river", "person", "river", "哪条河流经{person}的出生地？", "出生"),
        Asked("home-product", "person", "product", "{person}的出生地以什么特产闻名？", "出生"),
    ),
}


class Passage(NamedTuple):
    """A document of the world and the cluster that it belongs to."""

    id: str
    title: str
    text: str
    abstract: str
    kind: str
    cluster: str


@dataclass(frozen=True, slots=True)
class Cluster:
    """Four passages about things that belong together, and the facts that they state."""

    name: str
    language: str
    facts: dict[str, str]
    passages: dict[str, Passage]


@cache
def clusters() -> list[Cluster]:
    """The hand-written clusters and the drawn ones, always the same."""
    written = {language: load(f"search_{language}") for language in ("en", "zh")}
    written["en"] = [*written["en"], *_drawn(load("worlds_en"), written["en"])]
    return [_cluster(parts, number, language) for language, of_language in written.items() for number, parts in enumerate(of_language)]


def _drawn(pools: dict[str, Any], written: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parts of clusters put together from pools; no name is used twice, and none is part of another one."""
    rng = Random("worlds")
    used = [str(parts[kind]["name"]) for parts in written for kind in KINDS] + [parts["town"]["river"] for parts in written]

    def fresh(make: Callable[[], str]) -> str:
        while True:
            name = make()
            if not any(name in other or other in name for other in used):
                used.append(name)
                return name

    return [_drawn_cluster(pools, rng, fresh) for _ in range(pools["worlds"])]


def _drawn_cluster(pools: dict[str, Any], rng: Random, fresh: Callable[[Callable[[], str]], str]) -> dict[str, Any]:
    def joined(pool: str, between: str = "") -> str:
        return between.join(rng.choice(part) for part in pools[pool])

    she = rng.choice(("She", "He"))
    surname = fresh(lambda: joined("surname"))
    born = rng.randint(1690, 1900)
    year = born + rng.randint(26, 50)
    kind = rng.choice(sorted(pools["size"]))
    unit = pools["size"][kind]
    size = rng.randint(5, 60) if unit.startswith("kilometres") else rng.randint(70, 2900)
    return {
        "town": {
            "name": fresh(lambda: joined("town")),
            "region": rng.choice(pools["region"]),
            "river": fresh(lambda: joined("river")),
            "founded": rng.randint(1050, 1680),
            "product": f"{rng.choice(pools['material'])} {rng.choice(pools['goods'])}",
            "festival": joined("festival", " "),
            "month": rng.choice(pools["month"]),
            "colour": rng.choice(pools["town_colour"]),
        },
        "person": {
            "name": f"{rng.choice(pools['woman' if she == 'She' else 'man'])} {surname}",
            "job": rng.choice(pools["job"]),
            "born": born,
            "work": joined("work", " "),
            "year": year,
            "she": she,
            "colour": rng.choice(pools["person_colour"]),
        },
        "institute": {
            "name": f"{surname} {rng.choice(pools['institute'])}",
            "city": rng.choice(pools["city"]),
            "year": year + rng.randint(3, 20),
            "subject": rng.choice(pools["subject"]),
            "colour": rng.choice(pools["institute_colour"]),
        },
        "feature": {
            "name": fresh(lambda: " ".join((*(rng.choice(part) for part in pools["feature"][:2]), pools["feature"][2][kind]))),
            "kind": kind,
            "size": f"{size} {unit}",
            "animal": joined("animal", " "),
            "colour": rng.choice(pools["feature_colour"]),
        },
    }


def _cluster(parts: dict[str, Any], number: int, language: str) -> Cluster:
    name = f"{language}-{number:02d}"
    facts = _facts(parts, language)
    passages = {}
    for kind in KINDS:
        texts = TEXTS[language][kind]
        text = texts[number % len(texts)].format(**facts)
        passages[kind] = Passage(f"{name}-{kind}", facts[kind], text, ABSTRACTS[language][kind].format(**facts), kind, name)
    return Cluster(name, language, facts, passages)


def _facts(parts: dict[str, Any], language: str) -> dict[str, str]:
    """The values of the templates, all as text."""
    town, person, institute, feature = read = [{key: str(value) for key, value in parts[kind].items()} for kind in KINDS]
    facts = {key: town[key] for key in ("region", "river", "founded", "product", "festival", "month")}
    facts |= {key: person[key] for key in ("job", "born", "work", "year", "she")}
    facts |= {key: institute[key] for key in ("city", "subject")} | {"opened": institute["year"]}
    facts |= {key: feature[key] for key in ("kind", "size", "animal")}
    for kind, values in zip(KINDS, read, strict=True):
        facts[kind] = values["name"]
        facts[f"{kind}_colour"] = values["colour"]
    if language == "en":
        facts["a_job"] = f"{'an' if person['job'][0] in 'aeiou' else 'a'} {person['job']}"
        facts["measure"], facts["dimension"] = feature["size"].rsplit(" ", 1)
    else:
        facts["dimension"], facts["measure"] = feature["size"][0], feature["size"][1:]
    return facts


def aliases(answer: str, fact: str) -> list[str]:
    """Further forms of an answer that are right."""
    found = []
    number = re.match(r"[0-9]+", answer)
    if number and number.group() != answer:
        found.append(number.group())
    if fact in ("institute", "festival") and answer.isascii():
        found.append(f"the {answer}")
    if fact == "river" and answer.isascii():
        found += [f"the {answer}", f"river {answer}", f"the river {answer}"]
    if answer.startswith("《"):
        found.append(answer.strip("《》"))
    return found


def passages() -> list[dict[str, str]]:
    """The search corpus: id, title, text and a one-sentence abstract of each passage."""
    found = [passage for cluster in clusters() for passage in cluster.passages.values()]
    return [{"id": p.id, "title": upper_first(p.title), "text": p.text, "abstract": p.abstract} for p in found]
