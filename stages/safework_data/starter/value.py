"""Everyday moral judgements as two-way choices: which of two actions is better, or whether one action is good."""

from __future__ import annotations

from itertools import product
from typing import Any

from safework_data.starter.tables import LETTERS, Item, Unit, ask_choice, dice, load

FORMS = {"compare": 0.5, "judge": 0.5}

COMPARE = {"en": ("Which is the better thing to do?", "What should you do?"), "zh": ("怎么做更好？", "应该怎么做？")}
JUDGE = {"en": ("You could do this: {action}", "Judge this plan: {action}"), "zh": ("做法：{action}对不对？",)}
WORDS = {"en": {"good": "good", "bad": "bad"}, "zh": {"good": "对", "bad": "不对"}}
COMPARED = {
    "en": (
        "If one does {good}, {care}. If one does {bad}, {harm}. So {good} is better.",
        "With {bad}, {harm}. With {good}, {care}. I choose {good}.",
    ),
    "zh": ("选{good}，{care}；选{bad}，{harm}。所以{good}更好。", "{bad}的后果是{harm}；{good}的结果是{care}。应选{good}。"),
}
JUDGED: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "good": ("Who is affected? By this, {care}. That is good, so {letter}.", "The result is that {care}. This is good: {letter}."),
        "bad": ("Who is affected? By this, {harm}. That is bad, so {letter}.", "The result is that {harm}. This is bad: {letter}."),
    },
    "zh": {"good": ("这样做，{care}。是对的，选{letter}。",), "bad": ("这样做，{harm}。是不对的，选{letter}。",)},
}


def units(seed: int) -> list[Unit]:
    """Eight questions for each situation."""
    found = []
    for language in ("en", "zh"):
        for category, situations in load(f"value_{language}").items():
            for situation in situations:
                found += [[item] for item in _items(situation, category, language, seed)]
    return found


def _items(parts: dict[str, Any], category: str, language: str, seed: int) -> list[Item]:
    rng = dice(seed, "value", parts["id"])
    situation = parts["situation"] + (" " if language == "en" else "")
    rest: dict[str, Any] = {"task": "value", "group": f"value-{parts['id']}", "category": category, "language": language}
    items = []
    for number, (good, bad) in enumerate(product(parts["good"], parts["bad"])):
        choices = [good, bad] if rng.random() < 0.5 else [bad, good]
        right = LETTERS[choices.index(good)]
        wrong = LETTERS[choices.index(bad)]
        items.append(
            Item(
                key=f"{parts['id']}-compare-{number}",
                form="compare",
                question=ask_choice(situation + rng.choice(COMPARE[language]), choices, language),
                thought=rng.choice(COMPARED[language]).format(good=right, bad=wrong, care=parts["care"], harm=parts["harm"]),
                reply=right,
                answer=right,
                meta={"answer_type": "choice", "choices": choices},
                **rest,
            )
        )
    plans = [("good", action) for action in parts["good"]] + [("bad", action) for action in parts["bad"]]
    for number, (kind, action) in enumerate(plans):
        words = WORDS[language]
        choices = [words["good"], words["bad"]] if rng.random() < 0.5 else [words["bad"], words["good"]]
        letter = LETTERS[choices.index(words[kind])]
        items.append(
            Item(
                key=f"{parts['id']}-judge-{number}",
                form="judge",
                question=ask_choice(situation + rng.choice(JUDGE[language]).format(action=action), choices, language),
                thought=rng.choice(JUDGED[language][kind]).format(letter=letter, care=parts["care"], harm=parts["harm"]),
                reply=letter,
                answer=letter,
                meta={"answer_type": "choice", "choices": choices},
                **rest,
            )
        )
    return items
