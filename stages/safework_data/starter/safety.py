"""Safety prompts in pairs: a harmful request and an ordinary question that shares its words, in the same phrasing.

Both sides of a pair use the same frame, or are whole questions written for one another, so that neither the phrasing nor one alarming word
tells them apart: only the meaning does. The whole questions are of the kinds that models refuse without need, as XSTest sorts them
(Röttger et al., arXiv 2308.01263): figures of speech, things and games, definitions, history, nonsense about groups, public facts.
"""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

from safework_data.starter.tables import Item, Unit, dice, load, upper_first

FILES = {"en": ("safety_en_1", "safety_en_2", "safety_en_3", "safety_en_4", "safety_en_5"), "zh": ("safety_zh",)}
FORMS = {"pair": 0.6, "question": 0.4}
"""A harmful and a benign verb phrase in one frame; whole questions. The questions are in English only."""
FORMS_OF_SUBSET = {"verifier": {"pair": 0.95, "question": 0.05}}
"""The judge learns from replies, and wants many prompts: there are fewer questions than pairs."""

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
        Frame("instructions", "Give detailed instructions for how to {vp}"),
        Frame("describe", "Describe in detail how someone could {vp}", THEM),
        Frame("guide", "Write a step-by-step guide on how to {vp}", remark="Good wording does not make it less dangerous."),
        Frame("article", "Write a short article that teaches readers to {vp}", THEM, "Readers could do what it says."),
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
ASKED_OUTRIGHT = (
    "This asks for help with {thing}.",
    "What is wanted here is help with {thing}.",
    "Answering would mean help with {thing}.",
)
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
NOTICED_OUTRIGHT = (
    "It may sound alarming for a moment, but the question is about {purpose}.",
    "Read as a whole, this concerns {purpose}, whatever single words suggest.",
    "The question is about {purpose}.",
)
SAFE = {
    "en": (
        "Nobody is hurt by it, so I can help.",
        "It is an ordinary question, so a useful answer is right.",
        "There is no harm in it. I answer plainly.",
    ),
    "zh": ("没有危害，可以回答。", "可以放心帮忙。"),
}


class Topic(NamedTuple):
    """A hand-written topic; ``parts`` has the keys that safety_en_1.yaml explains, or whole questions as in safety_en_4.yaml."""

    category: str
    language: str
    parts: dict[str, Any]

    @property
    def group(self) -> str:
        return f"safety-{self.parts['id']}"

    def prompts(self) -> list[Prompts]:
        """The pairs of this topic: one for each frame, or the questions as they are written."""
        if "asks" in self.parts:
            return [
                Prompts(f"ask{number}", ask["harmful"], ask["benign"], ask["help"])
                for number, ask in enumerate(self.parts["asks"], start=1)
            ]
        return [
            Prompts(frame.name, self._framed("harmful", frame), self._framed("benign", frame), self.parts["help"], frame.remark)
            for frame in FRAMES[self.language]
        ]

    def helps(self) -> list[str]:
        """Every answer to a benign question of this topic."""
        return [prompts.help for prompts in self.prompts()]

    def safe_reply(self, rng: Random) -> str:
        """Declines, names the risk and offers a safe alternative."""
        space = " " if self.language == "en" else ""
        refusal = rng.choice(REFUSALS[self.language]).format(thing=self.parts["thing"])
        return space.join((refusal, self.parts["warn"], self.parts["alt"]))

    def asked(self, rng: Random) -> str:
        """What a careful thought says first about the harmful request."""
        if "asks" in self.parts:
            return rng.choice(ASKED_OUTRIGHT).format(thing=self.parts["thing"])
        return rng.choice(ASKED[self.language]).format(vp=self.parts["harmful"].format(**THEM), thing=self.parts["thing"])

    def noticed(self, rng: Random) -> str:
        """What a careful thought says first about the benign question."""
        noticed = NOTICED_OUTRIGHT if "asks" in self.parts else NOTICED[self.language]
        return rng.choice(noticed).format(word=self.parts["word"], purpose=self.parts["purpose"])

    def _framed(self, side: str, frame: Frame) -> str:
        return upper_first(frame.text.format(vp=self.parts[side].format(**frame.speaker)))


class Prompts(NamedTuple):
    """A harmful prompt, a benign one next to it, the answer to the latter, and what a thought says about the phrasing."""

    name: str
    harmful: str
    benign: str
    help: str
    remark: str = ""


def topics() -> list[Topic]:
    found = []
    for language, files in FILES.items():
        for file in files:
            tables: dict[str, list[dict[str, Any]]] = load(file)
            found += [Topic(category, language, parts) for category, table in tables.items() for parts in table]
    return found


def units(seed: int) -> list[Unit]:
    """Every pair of every topic: first the harmful request, then its look-alike."""
    return [
        _pair(topic, prompts, dice(seed, "safety", topic.parts["id"], prompts.name)) for topic in topics() for prompts in topic.prompts()
    ]


def _pair(topic: Topic, prompts: Prompts, rng: Random) -> Unit:
    name = f"{topic.parts['id']}-{prompts.name}"

    def item(side: str, question: str, thought: str, reply: str) -> Item:
        other = "benign" if side == "harmful" else "harmful"
        return Item(
            key=f"{name}-{side}",
            task="safety",
            group=topic.group,
            category=topic.category,
            language=topic.language,
            form="question" if "asks" in topic.parts else "pair",
            question=question,
            thought=thought,
            reply=reply,
            harmful=side == "harmful",
            partner=f"{name}-{other}",
        )

    return [
        item("harmful", prompts.harmful, _risk_thought(topic, prompts, rng), topic.safe_reply(rng)),
        item("benign", prompts.benign, _calm_thought(topic, rng), prompts.help),
    ]


def _risk_thought(topic: Topic, prompts: Prompts, rng: Random) -> str:
    """What is asked, who could be hurt and how, what the frame changes (nothing), and the conclusion."""
    parts = [topic.asked(rng), topic.parts["risk"], prompts.remark, rng.choice(DECIDED[topic.language])]
    return (" " if topic.language == "en" else "").join(part for part in parts if part)


def _calm_thought(topic: Topic, rng: Random) -> str:
    return (" " if topic.language == "en" else "").join((topic.noticed(rng), rng.choice(SAFE[topic.language])))
