"""Reads the hand-written parts, and the seeded drawing that every module of the starter set shares."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from safework_cli.core.yaml_text import parse_yaml
from safework_cli.data.reply import THINK_OPEN, make_reply
from safework_cli.data.row import Message, Row

PARTS = Path(__file__).parent / "parts"
LETTERS = "ABCDEFGH"
BRIEF = 0.45
"""Share of worked replies that give no reason: of safety's pairs, whose replies are shortened, too, and of the choice questions. A model
that has learned both can learn in RL to be brief; where all replies were of one length, `rl efficient` had nothing to choose from, and with
safety's pairs alone a fifth of all tokens was out of reach. Not below 0.4: SFT learns the brief form less often than it occurs, and `rl m3`
makes it rarer, so that too few groups of four have both."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Options:
    """A choice question whose options have no order yet (``arrange`` gives them one).

    Attributes:
        stem: the question.
        right, wrong: the options.
        lead: what the thought says before it goes through the options.
        remarks: option → what the thought says of it after yes or no.
        brief: the thought has neither; it goes through the options and says yes or no.
    """

    stem: str
    right: str
    wrong: Sequence[str]
    lead: str = ""
    remarks: dict[str, str] = field(default_factory=dict)
    brief: bool = False


@dataclass(slots=True)
class Item:
    """One prompt with its reply, before it is known which subset takes it.

    Attributes:
        key: names the item within its task; ids are made from it.
        task: the ladder's task.
        group, category: as in ``Row``.
        language: "en" or "zh".
        form: the kind of question within the task, for quotas.
        template: what the question is written with, apart from its topic: no template is on two sides of a split.
        stratum: which groups are alike, so that each kind of them is on both sides of the split; empty where the category says it.
        side: where the template may be used: "train", "dev" or "heldout"; empty where it follows the group.
        training_only: its group is not held out.
        question: the prompt.
        thought, reply: the two parts of the worked reply.
        verdict: start and end of the word in ``thought`` that states the decision.
        turns: the messages after the prompt where the reply takes several turns; replaces ``thought`` and ``reply``.
        options: of a choice question; ``question``, ``thought``, ``reply`` and ``answer`` follow from their order.
        partner: key of the other item of a pair.
    """

    key: str
    task: str
    group: str
    category: str
    language: str
    form: str
    question: str = ""
    template: str = ""
    stratum: str = ""
    side: str = ""
    training_only: bool = False
    thought: str = ""
    reply: str = ""
    verdict: tuple[int, int] | None = None
    turns: list[Message] = field(default_factory=list)
    options: Options | None = None
    answer: str | None = None
    harmful: bool | None = None
    partner: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def row(self, subset: str, *, split: str = "train", worked: bool = False) -> Row:
        """The row of this item: only a prompt, or with its worked reply."""
        messages = [Message(role="user", content=self.question)]
        meta = {"group": self.group, "language": self.language, "template": self.template, **self.meta}
        if worked:
            messages += self.turns or [Message(role="assistant", content=make_reply(self.thought, self.reply))]
            if self.verdict:
                meta["verdict"] = [len(THINK_OPEN) + place for place in self.verdict]
        else:
            meta.pop("outcome", None)  # says how the worked episode ended
        if self.partner:
            meta["pair"] = f"{subset}-{self.task}-{self.partner}"
        return Row(
            id=f"{subset}-{self.task}-{self.key}",
            task=self.task,
            messages=messages,
            answer=self.answer,
            category=self.category,
            harmful=self.harmful,
            source="starter",
            licence="Apache-2.0",
            split=split,
            meta=meta,
        )


Unit = list[Item]
"""Items that are always drawn together: the two of a pair, or a single one."""


@cache
def load(name: str) -> Any:
    """The content of ``parts/<name>.yaml``; callers must not change it."""
    path = PARTS / f"{name}.yaml"
    return parse_yaml(path.read_text(encoding="utf-8"), str(path), most_values=10**6)


def dice(seed: int, *names: object) -> Random:
    """A generator of its own for each use, so that a change in one part does not change the draws of the others."""
    return Random("/".join(str(part) for part in (seed, *names)))


def spread(items: Sequence[T], key: Callable[[T], Hashable], rng: Random) -> list[T]:
    """Shuffles so that every prefix holds each stratum in about its share of the whole."""
    strata: dict[Hashable, list[T]] = {}
    for item in items:
        strata.setdefault(key(item), []).append(item)
    placed: list[tuple[float, int, T]] = []
    for members in strata.values():
        rng.shuffle(members)
        offset = rng.random()
        placed += [((position + offset) / len(members), len(placed) + position, member) for position, member in enumerate(members)]
    return [member for _, _, member in sorted(placed, key=lambda place: place[:2])]


def allocate(count: int, weights: dict[str, float]) -> dict[str, int]:
    """Splits a count by weights, largest remainders first."""
    whole = sum(weights.values())
    exact = {name: count * weight / whole for name, weight in weights.items()}
    shares = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: shares[name] - exact[name])  # stable: ties keep the order of ``weights``
    for name in by_remainder[: count - sum(shares.values())]:
        shares[name] += 1
    return shares


def upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def ask_choice(question: str, choices: Sequence[str], language: str) -> str:
    """A multiple-choice prompt: the question, the lettered choices, and how to reply."""
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join([question, *lines, "Answer with the letter." if language == "en" else "只答字母。"])


CHECKED = {"en": "{letter}. {option}: {word}{remark}.", "zh": "{letter}. {option}：{word}{remark}。"}
"""What a thought says of each option, in order, up to the right one: a small model binds a letter to its option by reading on from it, and
cannot look back from the text of an option to its letter."""
RIGHT_OR_NOT = {"en": ("no", "yes"), "zh": ("不对", "对")}


def arrange(items: Sequence[Item], rng: Random) -> None:
    """Orders the options of choice questions: each letter is right equally often (±1) in every language and form, and over all of them as
    far as these allow. Questions that differ in nothing but the order of their options get different orders."""
    used: dict[tuple[str, int], dict[str, int]] = {}
    asked: set[str] = set()
    for item in items:
        if item.options is None:
            continue
        letters = LETTERS[: 1 + len(item.options.wrong)]
        fine = used.setdefault((f"{item.language}/{item.form}", len(letters)), dict.fromkeys(letters, 0))
        coarse = used.setdefault((item.task, len(letters)), dict.fromkeys(letters, 0))
        letter = min(rng.sample(letters, len(letters)), key=lambda name: (fine[name], coarse[name]))
        for counts in (fine, coarse):
            counts[letter] += 1
        wrong = list(item.options.wrong)
        for _ in range(20):
            rng.shuffle(wrong)
            _order(item, letter, wrong)
            if item.question not in asked:
                break
        else:
            raise ValueError(f"starter set: {item.key} has no further order with the answer {letter}")
        asked.add(item.question)


def _order(item: Item, letter: str, wrong: list[str]) -> None:
    """Writes a choice question with its right option at a letter, and the reply that goes through the options up to it."""
    options = item.options
    assert options is not None
    place = LETTERS.index(letter)
    choices = [*wrong[:place], options.right, *wrong[place:]]
    checked = [
        CHECKED[item.language].format(
            letter=name,
            option=option.rstrip(".。"),
            word=RIGHT_OR_NOT[item.language][name == letter],
            remark="" if options.brief else options.remarks.get(option, ""),
        )
        for name, option in zip(LETTERS, choices[: place + 1], strict=False)
    ]
    item.question = ask_choice(options.stem, choices, item.language)
    lead = [options.lead] if options.lead and not options.brief else []
    item.thought = (" " if item.language == "en" else "").join([*lead, *checked])
    item.reply = item.answer = letter
    item.meta = {**item.meta, "answer_type": "choice", "choices": choices}
