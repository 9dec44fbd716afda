"""The public sets that may be trained on, by name, read by the same readers as the evaluation suites.

Prompts for RL carry their gold answer. Sets for verifiers end in a reply and carry its gold label in ``meta.label``, in the words of the
verifier's preset (``verifiers/spec.py``): good and bad for value, TRUE and FALSE for knowledge.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safework_cli.core.errors import ConfigError, InputError, nearest
from safework_cli.data.row import Image, Message, Row
from safework_cli.data.suites.public import harmbench_prompt, virtue_parts
from safework_cli.data.suites.readers import Columns, Record, evaluation_half, gsm8k_answer, in_dev_half, render_choices, shuffled
from safework_cli.data.suites.suite import Suite
from safework_cli.data.suites.tables import read_table

GOOD, BAD = "good", "bad"
TRUE, FALSE = "TRUE", "FALSE"


@dataclass(frozen=True)
class Judged:
    """Reads a table whose records hold one or more replies with a gold label each.

    Attributes:
        prompt: the question or scene.
        replies: (reply, label) pairs of a record, in order; all of them are one group.
        id: the record's key; its number where not given.
        group: what records about the same thing share, so that no split comes between them; the record's key where not given.
        answer: the gold answer that a reply is compared with.
        keep: which records are read.
        same_prompt: all records have one prompt, so that the reply is what tells a held-out row (``meta.stem``).
    """

    prompt: Callable[[Record], list[Message]]
    replies: Callable[[Record], list[tuple[str, str]]]
    same_prompt: bool = False
    id: str | None = None
    group: Callable[[Record], str] | None = None
    answer: Callable[[Record], str] | None = None
    category: Callable[[Record], str] | None = None
    keep: Callable[[Record], bool] = lambda record: True

    def __call__(self, suite: Suite, path: Path) -> Iterator[Row]:
        for number, record in enumerate(read_table(path), start=1):
            try:
                if not self.keep(record):
                    continue
                key = str(record[self.id]) if self.id else f"{number:05d}"
                group = hashlib.sha256(self.group(record).encode()).hexdigest()[:16] if self.group else key
                for place, (reply, label) in enumerate(self.replies(record)):
                    meta = {"language": suite.language, "label": label, "group": f"{suite.name}/{group}"}
                    if self.same_prompt:
                        meta["stem"] = reply.strip()
                    yield suite.row(
                        f"{key}/{place}",
                        [*self.prompt(record), Message(role="assistant", content=reply.strip())],
                        answer=self.answer(record) if self.answer else None,
                        category=self.category(record) if self.category else None,
                        meta=meta,
                    )
            except KeyError as error:
                name = str(error.args[0])
                raise InputError(
                    f"{path}, record {number}: no column '{name}'{nearest(name, record)}",
                    f"set {suite.name} reads the file as {suite.upstream} publishes it; the file has: {', '.join(map(str, record))}",
                ) from None


def _asked(text: str) -> list[Message]:
    return [Message(role="user", content=text.strip())]


def _by_label(record: Record) -> str:
    """ETHICS prints 1 for what is reasonable, fitting; for commonsense, 1 is wrong, and that reader turns it round."""
    return GOOD if int(record["label"]) == 1 else BAD


def ethics_judged(part: str) -> Judged:
    """A part of ETHICS as replies that are good or bad: the excuse to a question, the trait to a scene, the claim, the deed.

    Its authors vary one scene several times; the variants are one group.
    """
    if part == "deontology":
        return Judged(
            lambda r: _asked(r["scenario"]), lambda r: [(r["excuse"], _by_label(r))], group=lambda r: r["scenario"], category=lambda r: part
        )
    if part == "virtue":
        return Judged(
            lambda r: _asked(f"{virtue_parts(r)[0]}\nWhich trait does this show?"),
            lambda r: [(virtue_parts(r)[1], _by_label(r))],
            group=lambda r: virtue_parts(r)[0],
            category=lambda r: part,
        )
    if part == "justice":
        return Judged(
            lambda r: _asked("Make a claim about how people should be treated, and give your reason."),
            lambda r: [(r["scenario"], _by_label(r))],
            same_prompt=True,
            group=lambda r: r["scenario"].split(" because")[0],
            category=lambda r: part,
        )
    return Judged(
        lambda r: _asked("What did you do?"),
        lambda r: [(r["input"], BAD if int(r["label"]) == 1 else GOOD)],
        same_prompt=True,
        category=lambda r: part,
    )


def _hh_turns(text: str) -> list[Message]:
    """The turns of a dialogue in Anthropic's plain form: paragraphs that begin with "Human:" or "Assistant:"."""
    turns: list[Message] = []
    for part in f"\n\n{text.strip()}".split("\n\nHuman:")[1:]:
        human, *replies = part.split("\n\nAssistant:")
        turns.append(Message(role="user", content=human.strip()))
        turns += [Message(role="assistant", content=reply.strip()) for reply in replies[:1]]
    return turns


def read_preferences(suite: Suite, path: Path) -> Iterator[Row]:
    """Pairs of dialogues that differ in their last reply: the chosen one is good, the rejected one bad."""
    for number, record in enumerate(read_table(path), start=1):
        for name, label in (("chosen", GOOD), ("rejected", BAD)):
            turns = _hh_turns(record[name])
            meta = {"language": suite.language, "label": label, "group": f"{suite.name}/{number:05d}"}
            yield suite.row(f"{number:05d}/{name}", turns, meta=meta)


def read_truthfulqa_judged(suite: Suite, path: Path) -> Iterator[Row]:
    """Every correct and incorrect answer of a question, with the best one as gold."""

    def split(text: str) -> list[str]:
        return [part.strip() for part in text.split(";") if part.strip()]

    yield from Judged(
        lambda r: _asked(r["Question"]),
        lambda r: [(a, TRUE) for a in split(r["Correct Answers"])] + [(a, FALSE) for a in split(r["Incorrect Answers"])],
        answer=lambda r: r["Best Answer"],
        category=lambda r: r["Category"],
    )(suite, path)


SAID = ("{}", "{}.", "It is {}.", "The answer is {}.", "I think that it is {}.")
"""How a short answer is said, so that a verifier reads sentences too."""


@dataclass(frozen=True)
class Matched:
    """Short gold answers as judged replies: the gold answer, said in one of a few ways, is TRUE; that of a like question is FALSE.

    Attributes:
        question, answers: of a record; all answers are accepted, the first is the gold one.
        kind: records of one kind lend one another their answers (a person for a person, a year for a year).
        keep: which records are read.
    """

    question: Callable[[Record], str]
    answers: Callable[[Record], list[str]]
    kind: Callable[[Record], str]
    keep: Callable[[Record], bool] = lambda record: True

    def __call__(self, suite: Suite, path: Path) -> Iterator[Row]:
        records = [record for record in read_table(path) if self.keep(record)]
        kinds: dict[str, list[int]] = {}
        for place, record in enumerate(records):
            kinds.setdefault(self.kind(record), []).append(place)
        for members in kinds.values():
            order, _ = shuffled([str(place) for place in members], suite.name)
            lenders = dict(zip(map(int, order), map(int, order[1:] + order[:1]), strict=True))
            for place, lender in lenders.items():
                yield from self._pair(suite, place, records[place], records[lender])

    def _pair(self, suite: Suite, place: int, record: Record, lender: Record) -> Iterator[Row]:
        question, answers = self.question(record).strip(), [answer.strip() for answer in self.answers(record)]
        wrong = self.answers(lender)[0]
        for name, reply, label in (("right", answers[-1], TRUE), ("lent", wrong, FALSE)):
            if label == FALSE and wrong.strip().lower() in {a.strip().lower() for a in answers}:
                continue
            (said, *_), _ = shuffled(list(SAID), f"{question}/{name}")
            meta = {"language": suite.language, "label": label, "aliases": answers[1:], "group": f"{suite.name}/{place:05d}"}
            messages = [*_asked(question), Message(role="assistant", content=said.format(reply.strip()))]
            yield suite.row(f"{place:05d}/{name}", messages, answer=answers[0], category=self.kind(record), meta=meta)


def answer_kind(text: str) -> str:
    """A coarse kind of short answer: "number" where it holds a digit, "name" where it begins with a capital, else "other"."""
    if any(character.isdigit() for character in text):
        return "number"
    return "name" if text[:1].isupper() else "other"


def read_nlvr(suite: Suite, path: Path) -> Iterator[Row]:
    """Statements about an image, true or false; rows carry the image's path below the table's folder. The group is the drawn scene."""
    for record in read_table(path):
        image = Image(bytes=None, path=record["image"])
        group = str(record["identifier"]).rsplit("-", 1)[0]
        choices = ["It is true.", "It is false."]
        stem = f"<image>\nIs this true of the picture? {record['sentence'].strip()}"
        yield suite.row(
            f"{record['identifier']}",
            [Message(role="user", content=render_choices(stem, choices))],
            images=[image],
            answer="A" if str(record["label"]).lower() == "true" else "B",
            meta={"language": "en", "answer_type": "choice", "choices": choices, "stem": record["sentence"], "group": f"nlvr/{group}"},
        )


def _mmlu(split: str) -> Suite:
    return Suite(
        f"mmlu-{split}", f"multiple choice over 57 subjects, {split} split", f"mmlu/{split}.csv", "knowledge",
        Columns("question", answer="answer", category="subject", choices=lambda record: [record[letter] for letter in "ABCD"]),
        "github.com/hendrycks/test", "MIT", hub="cais/mmlu", split="train",
    )  # fmt: skip


def _ethics(part: str) -> Suite:
    return Suite(
        f"ethics-{part}-judged", f"ETHICS, {part}, training part: replies that are good or bad", f"ethics/{part}_train.csv", "value",
        ethics_judged(part), "github.com/hendrycks/ethics", "MIT", hub="hendrycks/ethics", split="train",
    )  # fmt: skip


def _ethics_test(part: str, file: str) -> Suite:
    return Suite(
        f"ethics-{part}-judged-test", f"ETHICS, {part}, test part: replies that are good or bad", f"ethics/{file}", "value",
        ethics_judged(part), "github.com/hendrycks/ethics", "MIT", hub="hendrycks/ethics",
    )  # fmt: skip


def _harmbench_val(name: str, summary: str, keep: Callable[[Record], bool] = lambda record: True, split: str = "train") -> Suite:
    return Suite(
        name, summary, "harmbench/harmbench_behaviors_text_val.csv", "safety",
        Columns(
            harmbench_prompt, id="BehaviorID", category="SemanticCategory", keep=keep,
            meta={"kind": "FunctionalCategory", "target": "Behavior"},
        ),
        "github.com/centerforaisafety/HarmBench", "MIT", harmful=True, hub="walledai/HarmBench", split=split,
    )  # fmt: skip


def _xstest_dev(label: str) -> Suite:
    return Suite(
        f"xstest-{label}-dev", f"XSTest's {label} prompts, dev half: to choose thresholds on", "xstest/xstest_prompts.csv", "safety",
        Columns("prompt", id="id", category="type", keep=lambda r: r["label"] == label and in_dev_half(r["id"])),
        "github.com/paul-rottger/xstest", "CC-BY-4.0", harmful=label == "unsafe", hub="walledai/XSTest",
    )  # fmt: skip


_ALL = [
    _harmbench_val("harmbench-val", "harmful requests, validation split: prompts for RL"),
    _harmbench_val(
        "harmbench-val-dev", "harmful requests, validation split: the half that may be trained on", lambda r: in_dev_half(r["BehaviorID"])
    ),
    _harmbench_val(
        "harmbench-val-test", "harmful requests, validation split: the other half, to choose on, not to train on",
        lambda r: not in_dev_half(r["BehaviorID"]), split="test",
    ),
    _xstest_dev("safe"),
    _xstest_dev("unsafe"),
    _mmlu("dev"),
    _mmlu("val"),
    Suite(
        "gsm8k-train", "grade-school mathematics, training split", "gsm8k/train.jsonl", "general",
        Columns("question", answer=gsm8k_answer, answer_type="math", category=lambda record: "mathematics"),
        "github.com/openai/grade-school-math", "MIT", hub="openai/gsm8k", split="train",
    ),
    Suite(
        "cvalues", "Chinese questions about responsibility; no gold answer", "cvalues/cvalues_responsibility_prompts.jsonl", "value",
        Columns("prompt", id="id_", category="domain_en"),
        "github.com/X-PLUG/CValues", "Apache-2.0", language="zh", split="train",
    ),
    Suite(
        "moralchoice", "scenes with a right and a wrong action, asked as a choice", "moralchoice/moralchoice_low_ambiguity.csv", "value",
        Columns(
            "context", id="scenario_id", category="generation_rule",
            choices=lambda r: shuffled([r["action1"], r["action2"]], r["scenario_id"])[0],
            right=lambda r: shuffled([r["action1"], r["action2"]], r["scenario_id"])[1].index(0),
        ),
        "github.com/ninodimontalcino/moralchoice", "MIT", hub="ninoscherrer/moralchoice", split="train",
    ),
    Suite(
        "moralchoice-judged", "scenes with a right action (good) and a wrong one (bad)", "moralchoice/moralchoice_low_ambiguity.csv",
        "value",
        Judged(
            lambda r: _asked(f"{r['context']} What do you do?"), lambda r: [(r["action1"], GOOD), (r["action2"], BAD)], id="scenario_id",
            category=lambda r: r["generation_rule"],
        ),
        "github.com/ninodimontalcino/moralchoice", "MIT", hub="ninoscherrer/moralchoice", split="train",
    ),
    Suite(
        "hh-harmless-judged", "preference pairs: the chosen reply is good, the rejected one bad",
        "hh_harmless_test/harmless-base/test.jsonl.gz", "value", read_preferences,
        "github.com/anthropics/hh-rlhf", "MIT", hub="Anthropic/hh-rlhf", split="train",
    ),
    *map(_ethics, ("justice", "deontology")),  # the published head of virtue's training part holds only the label 0
    _ethics_test("justice", "justice_test.csv"),
    _ethics_test("deontology", "deontology_test.csv"),
    _ethics_test("virtue", "virtue_test.csv"),
    _ethics_test("commonsense", "cm_test.csv"),
    Suite(
        "simpleqa-train", "short factual questions: the half whose question's sha256 ends in a 1 bit", "simpleqa/simple_qa_test_set.csv",
        "knowledge",
        Columns(
            "problem", answer="answer", answer_type="contains", keep=lambda r: not evaluation_half(r["problem"]),
            category=lambda r: ast.literal_eval(r["metadata"])["topic"],
        ),
        "github.com/openai/simple-evals", "MIT", hub="basicv8vc/SimpleQA", split="train",
    ),
    Suite(
        "chinese-simpleqa-train", "short factual questions in Chinese: the half whose question's sha256 ends in a 1 bit",
        "chinese_simpleqa/chinese_simpleqa.jsonl", "knowledge",
        Columns(
            "question", answer="answer", answer_type="contains", id="id", category="primary_category",
            keep=lambda r: not evaluation_half(r["question"]),
        ),
        "github.com/OpenStellarTeam/ChineseSimpleQA", "MIT", hub="OpenStellarTeam/Chinese-SimpleQA", language="zh", split="train",
    ),
    Suite(
        "simpleqa-judged", "the training half of SimpleQA as right answers, and answers lent by a question of the same kind",
        "simpleqa/simple_qa_test_set.csv", "knowledge",
        Matched(
            lambda r: r["problem"], lambda r: [r["answer"]], lambda r: ast.literal_eval(r["metadata"])["answer_type"],
            keep=lambda r: not evaluation_half(r["problem"]),
        ),
        "github.com/openai/simple-evals", "MIT", hub="basicv8vc/SimpleQA", split="train",
    ),
    Suite(
        "nq-open-judged", "NQ-open as right answers, and answers lent by a question of the same kind", "nq_open/NQ-open.dev.jsonl",
        "knowledge",
        Matched(lambda r: f"{r['question']}?", lambda r: list(r["answer"]), lambda r: answer_kind(r["answer"][0])),
        "github.com/google-research-datasets/natural-questions", "CC-BY-SA-3.0", hub="google-research-datasets/nq_open", split="train",
    ),
    Suite(
        "truthfulqa-judged", "every correct (TRUE) and incorrect (FALSE) answer, with the best one", "truthfulqa/TruthfulQA.csv",
        "knowledge", read_truthfulqa_judged, "github.com/sylinrl/TruthfulQA", "Apache-2.0", hub="truthfulqa/truthful_qa", split="train",
    ),
    Suite(
        "strategyqa", "yes-or-no questions that need several facts", "strategyqa/dev.json", "search",
        Columns(
            "question", id="qid", category=lambda r: "multi-hop", choices=lambda r: ["Yes.", "No."],
            right=lambda r: 0 if str(r["answer"]) == "True" else 1, meta={"facts": "facts", "decomposition": "decomposition"},
        ),
        "github.com/eladsegal/strategyqa", "MIT", hub="voidful/StrategyQA", split="train",
    ),
    Suite(
        "nlvr", "true or false statements about images", "nlvr_v1/dev.jsonl", "general", read_nlvr,
        "github.com/lil-lab/nlvr", "CC-BY-4.0", split="train", images=True,
    ),
]  # fmt: skip

TRAINING_SETS: dict[str, Suite] = {suite.name: suite for suite in _ALL}


def training_set(name: str) -> Suite:
    """The set of a name. Raises ConfigError with the nearest name and the list."""
    if name not in TRAINING_SETS:
        raise ConfigError(f"unknown set '{name}'{nearest(name, TRAINING_SETS)}", f"sets: {', '.join(sorted(TRAINING_SETS))}")
    return TRAINING_SETS[name]
