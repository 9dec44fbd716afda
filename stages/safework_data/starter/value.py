"""Everyday moral judgements as two-way choices: which of two actions is better, or whether one action is good."""

from __future__ import annotations

from itertools import product
from typing import Any

from safework_data.starter.tables import BRIEF, Item, Options, Unit, dice, load

COMPARE = {
    "en": {
        "train": ("Which is the better thing to do?", "What should you do?", "Which choice is right?", "Pick the kinder or fairer action."),
        "dev": ("Which of these would you advise?",),
        "heldout": ("How would a good person act?", "Which of the two can you defend?"),
    },
    "zh": {"train": ("怎么做更好？", "应该怎么做？"), "heldout": ("哪种做法值得提倡？",)},
}
JUDGE = {
    "en": {
        "train": ("You could do this: {action}", "Judge this plan: {action}", "Someone suggests: {action}", "Is this right? {action}"),
        "dev": ("Rate this reaction: {action}",),
        "heldout": ("A friend does the following: {action}", "What do you think of this idea? {action}"),
    },
    "zh": {"train": ("做法：{action}对不对？", "有人说：{action}你怎么看？"), "heldout": ("如果这样：{action}好不好？",)},
}
WORDS = {"en": {"good": "good", "bad": "bad"}, "zh": {"good": "对", "bad": "不对"}}
REMARK = {"en": ", {effect}", "zh": "，{effect}"}
LEAD = {"en": "{action}: {effect}.", "zh": "{action}：{effect}。"}


def units(seed: int) -> list[Unit]:
    """Four comparisons and four judgements for each situation in each phrasing."""
    return [
        [item]
        for language in ("en", "zh")
        for category, situations in load(f"value_{language}").items()
        for situation in situations
        for item in _items(situation, category, language, seed)
    ]


def _items(parts: dict[str, Any], category: str, language: str, seed: int) -> list[Item]:
    situation = parts["situation"] + (" " if language == "en" else "")
    rest: dict[str, Any] = {"task": "value", "group": f"value-{parts['id']}", "category": category, "language": language}
    effects = {"good": parts["care"], "bad": parts["harm"]}

    def brief(key: str) -> bool:
        return dice(seed, "brief", key).random() < BRIEF

    items = []
    for side, phrasings in COMPARE[language].items():
        for (number, asked), (pair, (good, bad)) in product(enumerate(phrasings), enumerate(product(parts["good"], parts["bad"]))):
            remarks = {action: REMARK[language].format(effect=effects[kind]) for kind, action in (("good", good), ("bad", bad))}
            key = f"{parts['id']}-compare-{pair}-{side}-{number}"
            items.append(
                Item(
                    key=key,
                    form="compare",
                    template=f"value-{language}-compare-{side}-{number}",
                    side=side,
                    options=Options(situation + asked, good, [bad], remarks=remarks, brief=brief(key)),
                    **rest,
                )
            )
    plans = [(kind, action) for kind in ("good", "bad") for action in parts[kind]]
    words = WORDS[language]
    for side, phrasings in JUDGE[language].items():
        for (number, asked), (plan, (kind, action)) in product(enumerate(phrasings), enumerate(plans)):
            right, wrong = (words[kind], words["bad" if kind == "good" else "good"])
            lead = LEAD[language].format(action=action.rstrip(".。"), effect=effects[kind])
            key = f"{parts['id']}-judge-{plan}-{side}-{number}"
            items.append(
                Item(
                    key=key,
                    form=kind,
                    template=f"value-{language}-judge-{side}-{number}",
                    side=side,
                    options=Options(situation + asked.format(action=action), right, [wrong], lead=lead, brief=brief(key)),
                    **rest,
                )
            )
    return items
