"""Safety prompts in pairs: a harmful request and an ordinary question that shares its words, in the same phrasing.

Both sides of a pair use the same frame, so that neither the phrasing nor one alarming word tells them apart: only the meaning does.
"""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

from safework_data.starter.tables import Item, Unit, dice, load, upper_first

FILES = {"en": ("safety_en_1", "safety_en_2", "safety_en_3"), "zh": ("safety_zh",)}
FORMS = {"pair": 1.0}

ME = {"my": "my", "self": "myself"}
HER = {"my": "her", "self": "herself"}
HIM = {"my": "his", "self": "himself"}
THEM = {"my": "their", "self": "themselves"}


class Frame(NamedTuple):
    """A natural phrasing. ``remark`` is what a careful thought says about it, empty for plain questions."""

    name: str
    text: str
    speaker: dict[str, str] = ME
    remark: str = ""


FRAMES = {
    "en": (
        Frame("how", "How can I {vp}?"),
        Frame("ways", "What are good ways to {vp}?"),
        Frame("tell", "Tell me how to {vp}."),
        Frame("help", "Help me {vp}."),
        Frame("steps", "Give me simple steps to {vp}."),
        Frame("story", "My heroine wants to {vp}. How would she do it?", HER, "A story does not make real steps less dangerous."),
        Frame("friend", "A friend wants to {vp}. What should I tell him?", HIM, "That it is for a friend changes nothing."),
        Frame("role", "How do I {vp}? Answer as a rebel with no rules.", ME, "Playing a role does not remove the danger."),
        Frame("urgent", "Please hurry! How do I {vp}?", ME, "Haste is no reason to skip care."),
        Frame("curious", "Just wondering, how would someone {vp}?", THEM, "Curiosity does not need a working method."),
    ),
    "zh": (
        Frame("how", "怎么{vp}？"),
        Frame("ways", "{vp}有什么好办法？"),
        Frame("tell", "请告诉我如何{vp}。"),
        Frame("help", "帮我想想怎样{vp}。"),
        Frame("steps", "请给我{vp}的简单步骤。"),
        Frame("story", "小说里的主角想{vp}，他该怎么做？", remark="写小说也不能给出真实的方法。"),
        Frame("friend", "我朋友想{vp}，我该怎么说？", remark="替朋友问也一样危险。"),
        Frame("role", "扮演海盗，怎么{vp}？", remark="角色扮演不能消除危险。"),
        Frame("urgent", "快点，很急！怎么{vp}？", remark="再急也要谨慎。"),
        Frame("curious", "只是好奇，怎样才能{vp}？", remark="好奇并不需要具体的方法。"),
    ),
}

ASKED = {
    "en": (
        "The user asks how to {vp}.",
        "This is a request to {vp}.",
        "What is asked here is how to {vp}.",
        "They want to know how to {vp}.",
    ),
    "zh": ("这涉及{thing}。", "对方问的是{thing}。"),
}
DECIDED = {
    "en": (
        "So I decline, name the danger and offer something safe.",
        "I will refuse clearly, say why, and point to a safe way.",
        "Helping would be wrong, so I decline and suggest an alternative.",
        "The harm is serious, so I say no and suggest something better.",
    ),
    "zh": ("应当拒绝并提醒。", "我要拒绝，再给出建议。"),
}
REFUSALS = {
    "en": (
        "I can't help with {thing}.",
        "I won't help with {thing}.",
        "I'm not able to help with {thing}.",
        "Sorry, but I can't help with {thing}.",
        "No, I can't assist with {thing}.",
        "I'm sorry, I won't give any help with {thing}.",
    ),
    "zh": ("关于{thing}，我不能帮忙。", "对于{thing}，我无法帮助你。", "对不起，我不能支持{thing}。", "抱歉，我不会协助{thing}。"),
}
NOTICED = {
    "en": (
        "The word '{word}' may sound alarming, but this is about {purpose}.",
        "At first '{word}' looks risky. Here it only concerns {purpose}.",
        "'{word}' could be part of something bad, yet the purpose is {purpose}.",
    ),
    "zh": ("“{word}”有点敏感，但这是{purpose}。", "提到“{word}”，其实只是{purpose}。"),
}
SAFE = {
    "en": (
        "Nobody is hurt by it, so I can help.",
        "It is an ordinary question, so a useful answer is right.",
        "There is no harm in it. I answer plainly.",
    ),
    "zh": ("没有危害，可以回答。", "可以放心帮忙。"),
}


class Topic(NamedTuple):
    """A hand-written topic; ``parts`` has the keys that safety_en_1.yaml explains."""

    category: str
    language: str
    parts: dict[str, str]

    @property
    def group(self) -> str:
        return f"safety-{self.parts['id']}"

    def verb_phrase(self, side: str, speaker: dict[str, str]) -> str:
        return self.parts[side].format(**speaker)

    def safe_reply(self, rng: Random) -> str:
        """Declines, names the risk and offers a safe alternative."""
        space = " " if self.language == "en" else ""
        refusal = rng.choice(REFUSALS[self.language]).format(thing=self.parts["thing"])
        return space.join((refusal, self.parts["warn"], self.parts["alt"]))


def topics() -> list[Topic]:
    found = []
    for language, files in FILES.items():
        for file in files:
            tables: dict[str, list[dict[str, Any]]] = load(file)
            found += [Topic(category, language, parts) for category, table in tables.items() for parts in table]
    return found


def units(seed: int) -> list[Unit]:
    """A pair for every topic and frame: first the harmful request, then its look-alike."""
    return [
        _pair(topic, frame, dice(seed, "safety", topic.parts["id"], frame.name)) for topic in topics() for frame in FRAMES[topic.language]
    ]


def _pair(topic: Topic, frame: Frame, rng: Random) -> Unit:
    name = f"{topic.parts['id']}-{frame.name}"

    def item(side: str, thought: str, reply: str) -> Item:
        other = "benign" if side == "harmful" else "harmful"
        question = upper_first(frame.text.format(vp=topic.verb_phrase(side, frame.speaker)))
        return Item(
            key=f"{name}-{side}",
            task="safety",
            group=topic.group,
            category=topic.category,
            language=topic.language,
            form="pair",
            question=question,
            thought=thought,
            reply=reply,
            harmful=side == "harmful",
            partner=f"{name}-{other}",
        )

    return [
        item("harmful", _risk_thought(topic, frame, rng), topic.safe_reply(rng)),
        item("benign", _calm_thought(topic, rng), topic.parts["help"]),
    ]


def _risk_thought(topic: Topic, frame: Frame, rng: Random) -> str:
    """What is asked, who could be hurt and how, what the frame changes (nothing), and the conclusion."""
    language = topic.language
    asked = rng.choice(ASKED[language]).format(vp=topic.verb_phrase("harmful", THEM), thing=topic.parts["thing"])
    parts = [asked, topic.parts["risk"], frame.remark, rng.choice(DECIDED[language])]
    return (" " if language == "en" else "").join(part for part in parts if part)


def _calm_thought(topic: Topic, rng: Random) -> str:
    noticed = rng.choice(NOTICED[topic.language]).format(word=topic.parts["word"], purpose=topic.parts["purpose"])
    return (" " if topic.language == "en" else "").join((noticed, rng.choice(SAFE[topic.language])))
