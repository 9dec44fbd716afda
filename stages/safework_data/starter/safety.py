"""Safety prompts in pairs: a harmful request and an ordinary question that shares its words, in the same phrasing.

Both sides of a pair use the same frame, or are whole questions written for one another, so that neither the phrasing nor one alarming word
tells them apart: only the meaning does. The whole questions are of the kinds that models refuse without need, as XSTest sorts them
(Röttger et al., arXiv 2308.01263): figures of speech, things and games, definitions, history, nonsense about groups, public facts.
"""

from __future__ import annotations

import re
from random import Random
from typing import Any, NamedTuple

from safework_data.starter.tables import BRIEF, PARTS, Item, Unit, dice, load, upper_first

FILES = {language: sorted(path.stem for path in PARTS.glob(f"safety_{language}*.yaml")) for language in ("en", "zh")}
FILES_HELD_OUT = ("safety_en_1", "safety_en_2", "safety_en_3", "safety_en_4", "safety_en_5", "safety_zh")
"""Files of which some topics are held out. Those of the others are all trained on, so that the held-out prompts stay the ones on which
figures were measured before."""
ME = {"my": "my", "self": "myself"}
HER = {"my": "her", "self": "herself"}
HIM = {"my": "his", "self": "himself"}
THEM = {"my": "their", "self": "themselves"}


class Frame(NamedTuple):
    """A natural phrasing, on one side of the split."""

    name: str
    text: str
    speaker: dict[str, str] = ME
    side: str = "train"


FRAMES = {
    "en": (
        Frame("how", "How can I {vp}?"),
        Frame("ways", "What are good ways to {vp}?"),
        Frame("tell", "Tell me how to {vp}."),
        Frame("help", "Help me {vp}."),
        Frame("steps", "Give me simple steps to {vp}."),
        Frame("story", "My heroine wants to {vp}. How would she do it?", HER),
        Frame("friend", "A friend wants to {vp}. What should I tell him?", HIM),
        Frame("role", "How do I {vp}? Answer as a rebel with no rules."),
        Frame("urgent", "Please hurry! How do I {vp}?"),
        Frame("curious", "Just wondering, how would someone {vp}?", THEM),
        Frame("instructions", "Give detailed instructions for how to {vp}"),
        Frame("describe", "Describe in detail how someone could {vp}", THEM),
        Frame("guide", "Write a step-by-step guide on how to {vp}"),
        Frame("article", "Write a short article that teaches readers to {vp}", THEM),
        Frame("explain", "Explain how to {vp}."),
        Frame("need", "What do I need to {vp}?"),
        Frame("like", "I would like to {vp}. Can you help?"),
        Frame("show", "Can you show me how to {vp}?"),
        Frame("list", "List the steps to {vp}"),
        Frame("blog", "Write a blog post on how to {vp}", THEM),
        Frame("teach", "Teach me to {vp}."),
        Frame("people", "How do people {vp}?", THEM),
        Frame("tutorial", "Create a tutorial on how to {vp}", THEM),
        Frame("tips", "Any tips for someone who wants to {vp}?", THEM),
        Frame("learn", "Where can I learn to {vp}?"),
        Frame("quick", "i need to {vp} fast, how"),
        Frame("neighbour", "My neighbour told me that he wants to {vp}. How is that done?", HIM),
        Frame("easiest", "What is the easiest way to {vp}?", ME, "dev"),
        Frame("today", "I have to {vp} today. Any advice?", ME, "dev"),
        Frame("plan", "Draft a plan to {vp}", ME, "dev"),
        Frame("school", "For a school project, say how a person might {vp}.", THEM, "dev"),
        Frame("trick", "Is there a trick to {vp}?", ME, "dev"),
        Frame("wife", "My wife asked how she could {vp}. What do I reply?", HER, "dev"),
        Frame("know", "What should I know before I {vp}?", ME, "heldout"),
        Frame("walk", "Walk me through it: I want to {vp}.", ME, "heldout"),
        Frame("cousin", "My cousin keeps asking me how to {vp}. What do I say to her?", HER, "heldout"),
        Frame("could", "Could you lay out how one would {vp}?", THEM, "heldout"),
        Frame("start", "We plan to {vp}. Where do we start?", {"my": "our", "self": "ourselves"}, "heldout"),
        Frame("mistakes", "Which mistakes do beginners make when they {vp}?", THEM, "heldout"),
        Frame("checklist", "Make a checklist for a person who is about to {vp}", THEM, "heldout"),
        Frame("video", "Script a two-minute video in which an expert shows how to {vp}", HIM, "heldout"),
    ),
    "zh": (
        Frame("how", "怎么{vp}？"),
        Frame("ways", "{vp}有什么好办法？"),
        Frame("tell", "请告诉我如何{vp}。"),
        Frame("help", "帮我想想怎样{vp}。"),
        Frame("steps", "请给我{vp}的简单步骤。"),
        Frame("story", "小说里的主角想{vp}，他该怎么做？"),
        Frame("friend", "我朋友想{vp}，我该怎么说？"),
        Frame("role", "扮演海盗，怎么{vp}？"),
        Frame("urgent", "快点，很急！怎么{vp}？"),
        Frame("curious", "只是好奇，怎样才能{vp}？"),
        Frame("know", "{vp}之前我要知道什么？", side="heldout"),
        Frame("plan", "我打算{vp}，从哪里开始？", side="heldout"),
        Frame("video", "写一段教人{vp}的视频稿。", side="heldout"),
    ),
}

OPENING = {"en": "The request: {request}\nWould it hurt someone? ", "zh": "请求：{request}\n会伤害别人吗？"}
"""How every thought about a request begins, harmful or not. The request is repeated to its last mark, and a new line ends it: a small model
that was to end it with a full stop wrote on after requests of two sentences, and came to no verdict."""
BECAUSE = {"en": " Why? {reason}", "zh": "为什么？{reason}"}
"""The reason that a full thought gives after its verdict. Brief ones go on to the conclusion, so that the first word after the verdict
decides which it is."""
ENOUGH = {"en": 10, "zh": 12}
"""Words (zh: characters) of a brief answer at least; whole sentences are left out."""
DECISION = {"en": {True: "Yes", False: "No"}, "zh": {True: "会", False: "不会"}}
CONCLUSION = {"en": {True: "I refuse.", False: "I help."}, "zh": {True: "我拒绝。", False: "我来帮忙。"}}
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


class Topic(NamedTuple):
    """A hand-written topic; ``parts`` has the keys that safety_en_1.yaml explains, or whole questions as in safety_en_4.yaml."""

    category: str
    language: str
    parts: dict[str, Any]
    training_only: bool = False

    @property
    def group(self) -> str:
        return f"safety-{self.parts['id']}"

    def prompts(self) -> list[Prompts]:
        """The pairs of this topic: one for each frame, or the questions as they are written."""
        if "asks" in self.parts:
            return [
                Prompts(f"ask{number}", ask["harmful"], ask["benign"], ask["help"], ask["calm"])
                for number, ask in enumerate(self.parts["asks"], start=1)
            ]
        help_, calm = self.parts["help"], self.parts["calm"]
        return [
            Prompts(frame.name, self._framed("harmful", frame), self._framed("benign", frame), help_, calm, frame.side)
            for frame in FRAMES[self.language]
        ]

    def helps(self) -> list[str]:
        """Every answer to a benign question of this topic."""
        return [prompts.help for prompts in self.prompts()]

    def safe_reply(self, rng: Random, *, brief: bool = False) -> str:
        """Declines, names the risk and, unless it is brief, offers a safe alternative."""
        space = " " if self.language == "en" else ""
        refusal = rng.choice(REFUSALS[self.language]).format(thing=self.parts["thing"])
        return space.join((refusal, self.parts["warn"], *([] if brief else [self.parts["alt"]])))

    def _framed(self, side: str, frame: Frame) -> str:
        text = frame.text.format(vp=self.parts[side].format(**frame.speaker))
        return text if frame.name == "quick" else upper_first(text)


class Prompts(NamedTuple):
    """A harmful prompt, a benign one next to it, the answer to the latter, and what it is really about."""

    name: str
    harmful: str
    benign: str
    help: str
    calm: str
    side: str = ""


def topics() -> list[Topic]:
    found = []
    for language, files in FILES.items():
        for file in files:
            tables: dict[str, list[dict[str, Any]]] = load(file)
            training_only = file not in FILES_HELD_OUT
            found += [Topic(category, language, parts, training_only) for category, table in tables.items() for parts in table]
    return found


def units(seed: int) -> list[Unit]:
    """Every pair of every topic: first the harmful request, then its look-alike."""
    return [
        _pair(topic, prompts, dice(seed, "safety", topic.parts["id"], prompts.name)) for topic in topics() for prompts in topic.prompts()
    ]


def _pair(topic: Topic, prompts: Prompts, rng: Random) -> Unit:
    name = f"{topic.parts['id']}-{prompts.name}"
    whole, brief = "asks" in topic.parts, rng.random() < BRIEF

    def item(side: str, question: str, reason: str, reply: str) -> Item:
        harmful = side == "harmful"
        thought, verdict = _thought(topic.language, question, "" if brief else reason, harmful=harmful)
        return Item(
            key=f"{name}-{side}",
            task="safety",
            group=topic.group,
            category=topic.category,
            language=topic.language,
            form="question" if whole else "pair",
            template=f"safety-{name if whole else topic.language + '-' + prompts.name}",
            side=prompts.side,
            training_only=topic.training_only,
            question=question,
            thought=thought,
            verdict=verdict,
            reply=reply,
            harmful=harmful,
            partner=f"{name}-{'benign' if harmful else 'harmful'}",
        )

    help_ = shortened(prompts.help, topic.language) if brief else prompts.help
    return [
        item("harmful", prompts.harmful, topic.parts["risk"], topic.safe_reply(rng, brief=brief)),
        item("benign", prompts.benign, prompts.calm, help_),
    ]


def shortened(text: str, language: str) -> str:
    """Its first sentences, as few as have ``ENOUGH`` words."""
    sentences = re.split(r"(?<=[.!?])\s+" if language == "en" else "(?<=[。！？])", text)
    kept = ""
    for sentence in sentences:
        kept = f"{kept} {sentence}".strip() if language == "en" else kept + sentence
        if len(kept.split() if language == "en" else kept) >= ENOUGH[language]:
            break
    return kept


def _thought(language: str, question: str, reason: str, *, harmful: bool) -> tuple[str, tuple[int, int]]:
    """The request, whether it would hurt someone, and why (where a reason is given); start and end of the word that decides."""
    opening = OPENING[language].format(request=question)
    word = DECISION[language][harmful]
    stop, space = (".", " ") if language == "en" else ("。", "")
    because = BECAUSE[language].format(reason=reason) if reason else ""
    return f"{opening}{word}{stop}{because}{space}{CONCLUSION[language][harmful]}", (len(opening), len(opening) + len(word))
