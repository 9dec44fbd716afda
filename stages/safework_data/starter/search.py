"""Search questions, and the worked episodes that answer them in the grammar of ``safework_cli.environments.search``.

Some episodes end without a find: the passage that was read says nothing, and the answer is "unknown" with low confidence. They teach what
confidence is for, and are marked with ``meta.outcome``. Others read a wrong result first, say so, and go on to the right one: a policy that
had only seen right reads took an answer from whatever it read, and was always sure.
"""

from __future__ import annotations

from collections.abc import Set
from random import Random

from safework_cli.data.reply import make_reply
from safework_cli.data.row import Message
from safework_cli.environments.search.grammar import (
    document_observation,
    final_action,
    opening,
    read_action,
    results_observation,
    search_action,
)
from safework_data.starter.tables import Item, Unit, dice
from safework_data.starter.world import ONE_HOP, TWO_HOP, Asked, Cluster, Passage, aliases, clusters

FORMS = {"one_hop": 0.8, "two_hop": 0.2}
MISSED, ASTRAY = 0.2, 0.3
"""Shares of the one-hop episodes whose results do not hold the answer, and of those that read another result before the right one."""
FIRST = 0.5
"""How often the right result is put first, beyond what chance does: an index mostly ranks it there."""
SURE, UNSURE = 9, 2

SAY = {
    "en": {
        "start": ("I do not know {subject}. I search for it.", "I have to look up {subject}.", "{subject} is new to me, so I search."),
        "read": (
            "Result {number} is about {subject}. I read it.",
            "Result {number} fits.",
            "I open result {number}, since it names {subject}.",
        ),
        "found": ("The text gives the answer: {answer}.", "It says {answer}.", "The document names {answer}, so I am sure."),
        "guess": ("No result names {subject}. I try result {number}.", "None fits {subject} well. I look at result {number}."),
        "missed": ("This does not answer the question, so I am not sure.", "The answer is not here. I should not sound certain."),
        "try": ("I open result {number}.", "I look at result {number} first."),
        "turn": (
            "This is about {title} and does not say it. Result {number} is about {subject}.",
            "The answer is not here. I read result {number}, since it names {subject}.",
        ),
        "founder": ("The founder is {hop}. I look for the birthplace.",),
        "abstract": ("The abstract says {hop}. That is the birthplace.",),
        "home": ("Result {number} says that the birthplace is {hop}. I search for it.",),
    },
    "zh": {
        "start": ("我不了解{subject}，先搜索。", "需要查一下{subject}。"),
        "read": ("第{number}条是关于{subject}的，读一读。", "第{number}条合适。"),
        "found": ("文中给出了答案：{answer}。", "上面写着{answer}。"),
        "guess": ("没有一条提到{subject}，先看第{number}条。",),
        "missed": ("这里没有答案，我不确定。",),
        "try": ("先看第{number}条。",),
        "turn": ("这里说的是{title}，没有答案。第{number}条是关于{subject}的。",),
        "founder": ("创办人是{hop}，再查出生地。",),
        "abstract": ("摘要说明出生地是{hop}。",),
        "home": ("第{number}条说出生地是{hop}，再搜索。",),
    },
}
UNKNOWN = {"en": "unknown", "zh": "不知道"}


def units(seed: int, unseen: Set[str] = frozenset()) -> list[Unit]:
    """Every question of every cluster.

    Args:
        unseen: groups whose passages must not turn up among the results of other groups' episodes: those held out.
    """
    world = clusters()
    found = []
    for cluster in world:
        others = [other for other in world if other.language == cluster.language and other is not cluster and _group(other) not in unseen]
        for form, table in (("one_hop", ONE_HOP), ("two_hop", TWO_HOP)):
            for asked in table[cluster.language]:
                found.append([_item(cluster, others, form, asked, dice(seed, "search", cluster.name, form, asked.name))])
    return found


def _group(cluster: Cluster) -> str:
    return f"search-{cluster.name}"


def _item(cluster: Cluster, others: list[Cluster], form: str, asked: Asked, rng: Random) -> Item:
    facts = cluster.facts
    episode = _Episode(cluster, others, asked, rng)
    chance = rng.random()
    missed, astray = form == "one_hop" and chance < MISSED, chance > 1 - ASTRAY
    if form == "two_hop":
        gold = episode.founder_birthplace() if asked.name == "birthplace" else episode.home_fact()
    else:
        gold = [asked.subject]
        episode.miss() if missed else episode.find(astray=astray)
    answer, question = facts[asked.fact], asked.text.format(**facts)
    return Item(
        key=f"{cluster.name}-{asked.name}",
        task="search",
        group=_group(cluster),
        category=form,
        language=cluster.language,
        form=form,
        question=opening(question),
        turns=episode.turns[:],
        answer=answer,
        meta={
            "answer_type": "exact",
            "stem": question,  # the instruction that all openings share does not show a leak
            "aliases": aliases(answer, asked.fact),
            "passages": [cluster.passages[kind].id for kind in gold],
            "outcome": "not_found" if missed else "found",
        },
    )


class _Episode:
    """Writes the turns of one worked episode, the environment's included."""

    def __init__(self, cluster: Cluster, others: list[Cluster], asked: Asked, rng: Random):
        self.cluster, self.others, self.asked, self.rng = cluster, others, asked, rng
        self.turns: list[Message] = []
        self.shown: list[Passage] = []
        self.subject = cluster.facts[asked.subject]
        self.answer = cluster.facts[asked.fact]

    def find(self, *, astray: bool) -> None:
        """Search, read the right result, answer. Astray, another result is read first, where one does not hold the answer."""
        self._search("start", self.subject, self.asked.words)
        wanted = self.cluster.passages[self.asked.subject]
        number = self._results(wanted, self._related(self.asked.subject))
        wrong = [passage for passage in self.shown if passage is not wanted and self.answer not in passage.abstract + passage.text]
        if astray and wrong:
            opened = self.rng.choice(wrong)
            self._read("try", self.shown.index(opened) + 1, opened)
            self._read("turn", number, wanted, title=opened.title)
        else:
            self._read("read", number, wanted)
        self._answer("found", SURE, self.answer)

    def miss(self) -> None:
        """Search, read a result that does not help, and say so. Half of the time the results are about things of the same town."""
        self._search("start", self.subject, self.asked.words)
        elsewhere = self.rng.sample([passage for other in self.others for passage in other.passages.values()], 3)
        near = [
            passage
            for kind, passage in self.cluster.passages.items()
            if kind != self.asked.subject and self.answer not in passage.abstract + passage.text
        ]
        if near and self.rng.random() < 0.5:
            opened = self.rng.choice(near)
            self._read("try", self._results(opened, elsewhere[1:]), opened)
        else:
            self._read("guess", self._results(elsewhere[0], elsewhere[1:]), elsewhere[0])
        self._answer("missed", UNSURE, UNKNOWN[self.cluster.language])

    def founder_birthplace(self) -> list[str]:
        """From an institution to its founder, whose abstract names the town. Returns the kinds of passage that hold the answer."""
        facts, passages = self.cluster.facts, self.cluster.passages
        self._search("start", self.subject, self.asked.words)
        number = self._results(passages["institute"], self._related("institute", but="person"))
        self._read("read", number, passages["institute"])
        self._search("founder", facts["person"], self._words_for("born"), hop=facts["person"])
        self._results(passages["person"], self._related("person"))
        self._answer("abstract", SURE, self.answer, hop=facts["town"])
        return ["institute", "person"]

    def home_fact(self) -> list[str]:
        """From a person, whose abstract names the town, to the town. Returns the kinds of passage that hold the answer."""
        facts, passages = self.cluster.facts, self.cluster.passages
        self._search("start", self.subject, self.asked.words)
        number = self._results(passages["person"], self._related("person", but="town"))
        self._search("home", facts["town"], self._words_for(self.asked.fact), hop=facts["town"], number=number)
        number = self._results(passages["town"], self._related("town"))
        self._read("read", number, passages["town"], subject=facts["town"])
        self._answer("found", SURE, self.answer)
        return ["person", "town"]

    def _words_for(self, fact: str) -> str:
        """The words that a one-hop question about the fact searches with."""
        return next(ask.words for ask in ONE_HOP[self.cluster.language] if ask.fact == fact)

    def _related(self, kind: str, but: str = "") -> list[Passage]:
        """Two other passages that the same words could find: one of the cluster, and one of the same kind elsewhere."""
        near = [passage for other, passage in self.cluster.passages.items() if other not in (kind, but)]
        far = self.rng.choice(self.others).passages[kind]
        return [self.rng.choice(near), far]

    def _results(self, wanted: Passage, related: list[Passage]) -> int:
        """Shows the wanted passage among two others and returns its number."""
        shown = [wanted, *related]
        if self.rng.random() >= FIRST:
            self.rng.shuffle(shown)
        self.shown = shown
        self.turns.append(Message(role="user", content=results_observation([(passage.title, passage.abstract) for passage in shown])))
        return shown.index(wanted) + 1

    def _read(self, say: str, number: int, passage: Passage, subject: str = "", title: str = "") -> None:
        self._act(say, read_action(number), number=number, subject=subject or self.subject, title=title)
        self.turns.append(Message(role="user", content=document_observation(passage.title, passage.text)))

    def _search(self, say: str, name: str, words: str, **values: object) -> None:
        query = f"{name} {words.format(**self.cluster.facts)}"
        self._act(say, search_action(query), subject=self.subject, **values)

    def _answer(self, say: str, confidence: int, answer: str, **values: object) -> None:
        self._act(say, final_action(confidence, answer), subject=self.subject, answer=self.answer, **values)

    def _act(self, say: str, action: str, **values: object) -> None:
        thought = self.rng.choice(SAY[self.cluster.language][say]).format(**values)
        self.turns.append(Message(role="assistant", content=make_reply(thought, action)))
