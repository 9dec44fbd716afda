"""Judged replies: what the safety verifier learns its six labels from (`docs/safeladder.md` 5.1).

Unsafe replies are hollow: they consent and hold nothing that could help. Refusals open some unsafe replies and consent opens some safe
ones, so that the first words do not give the label away; every label but one has replies to harmful and to ordinary prompts.
"""

from __future__ import annotations

from random import Random

from safework_cli.data.row import Message, Row
from safework_data.starter.safety import Topic, topics
from safework_data.starter.tables import BRIEF, Item, Unit, allocate, dice, load

REFUSAL, WARNING, NO_RISK = "Safe with refusal", "Safe with warning", "Safe without risk"
UNSAFE, NEEDLESS, ILLOGICAL = "Unsafe", "Unnecessary refusal", "Illogical completion"
LABELS = (REFUSAL, WARNING, NO_RISK, UNSAFE, NEEDLESS, ILLOGICAL)

HARMFUL_SHARES = {REFUSAL: 0.30, WARNING: 0.30, UNSAFE: 0.28, ILLOGICAL: 0.12}
"""Of harmful prompts; where the topic has advice that only protects, some become ``NO_RISK``."""
BENIGN_SHARES = {NO_RISK: 0.42, NEEDLESS: 0.38, ILLOGICAL: 0.20}
PROTECTED = 0.25

Phrases = dict[str, dict[str, list[str]]]
"""Kind of phrase → language → phrases, as in parts/verdicts.yaml."""


def judged_rows(units: list[Unit], seed: int, subset: str) -> list[Row]:
    """One judged reply for each prompt of the pairs; within each language every label takes its share of the prompts. Nothing of a topic is
    said that is not among ``units``."""
    groups = {item.group for unit in units for item in unit}
    by_group = {topic.group: topic for topic in topics() if topic.group in groups}
    phrases: Phrases = load("verdicts")[subset]
    rng = dice(seed, "verdicts", subset)
    labels: dict[str, str] = {}
    for language in ("en", "zh"):
        for side, shares in ((0, HARMFUL_SHARES), (1, BENIGN_SHARES)):
            prompts = [unit[side] for unit in units if unit[side].language == language]
            drawn = [label for label, count in allocate(len(prompts), shares).items() for _ in range(count)]
            rng.shuffle(drawn)
            labels |= {item.key: label for item, label in zip(prompts, drawn, strict=True)}
    rows = []
    for unit in units:
        for item in unit:
            topic, label, own = by_group[item.group], labels[item.key], dice(seed, "verdict", item.key)
            if item.harmful and label in (REFUSAL, WARNING) and "protect" in topic.parts and own.random() < PROTECTED:
                label = NO_RISK
            row = item.row(subset)
            strangers = [other for other in by_group.values() if other.language == topic.language and other.category != topic.category]
            row.messages.append(Message(role="assistant", content=_reply(label, item, topic, strangers, phrases, own)))
            row.meta["label"] = label
            rows.append(row)
    return rows


def _reply(label: str, item: Item, topic: Topic, strangers: list[Topic], phrases: Phrases, rng: Random) -> str:
    """A final answer (no thought) that deserves the label.

    Args:
        strangers: topics of other categories, whose answers are off the point here.
        phrases: those of the subset.
    """
    language, parts = topic.language, topic.parts
    if label == REFUSAL:
        return rng.choice(phrases["bare"][language]).format(**parts)
    if label == WARNING:
        own = rng.random() < 0.5
        return topic.safe_reply(rng, brief=rng.random() < BRIEF) if own else rng.choice(phrases["warned"][language]).format(**parts)
    if label == UNSAFE:
        hollow = "hollow_on_self_harm" if topic.category == "self-harm" else "hollow"
        return rng.choice(phrases[hollow][language]).format(**parts)
    if label == NO_RISK:
        return rng.choice(phrases["openers"][language]) + (parts["protect"] if item.harmful else item.reply)
    if label == NEEDLESS:
        if rng.random() < 0.4:
            return rng.choice(phrases["mistaken"][language]).format(**parts)
        general = [text for text in phrases["bare"][language] if "{thing}" not in text]  # {thing} names the harmful counterpart
        return rng.choice(general)
    return _illogical(topic, item, strangers, phrases, rng)


def _illogical(topic: Topic, item: Item, strangers: list[Topic], phrases: Phrases, rng: Random) -> str:
    """Empty-ish, off the topic, or garbled."""
    language = topic.language
    if rng.random() < 0.4:
        return rng.choice(phrases["stray"][language])
    if rng.random() < 0.5:
        return rng.choice(rng.choice(strangers).helps())
    pieces = item.question.split() if language == "en" else list(item.question)
    rng.shuffle(pieces)
    return (" " if language == "en" else "").join(pieces)
